"""Difficulty-aligned exit matching: how much each student exit learns from a teacher's exit (DarkDistill, KDD 2025).

An exit stands for the difficulties of the samples that would leave there. The teacher's samples go, softly, to the
student exits whose difficulties are closest.

Departures from the published code. Its learned distance ends in tanh, may be negative, and its normaliser may
cross zero: here the distance is non-negative (softplus), or parameter-free. It sums over samples before the softmax,
so the softmax sharpens as the batch grows: here the mean is taken, with an explicit temperature.

A third one: a distance in standard deviations takes no exit with a single sample, unless no other exit has more. Its
deviation is 0, and its distance so large that after normalising all other exits would be equally near.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies.darkdistill.settings import DarkDistillSettings


@dataclass(frozen=True)
class ExitDifficulty:
    """Difficulty of each exit's samples. A single sample has variance 0."""

    mean: Tensor  # (E,), 0 for an exit without samples
    variance: Tensor  # (E,), of the population; 0 for an exit without samples
    present: Tensor  # (E,) bool, false for an exit with too few samples to match


def exit_difficulty(difficulty: Tensor, exit_sets: Sequence[Tensor], least: int = 1) -> ExitDifficulty:
    """Summarise the difficulties (B,) over the exit assignment (one index vector per exit, possibly empty).

    Exits with fewer samples than `least` are not present; if all have fewer, those with any are.
    """
    groups = [difficulty[indices] for indices in exit_sets]
    mean = torch.stack([g.mean() if len(g) else g.new_zeros(()) for g in groups])
    variance = torch.stack([g.var(correction=0) if len(g) else g.new_zeros(()) for g in groups])
    least = min(least, max(map(len, groups)))
    present = torch.tensor([len(g) >= max(least, 1) for g in groups], device=difficulty.device)
    return ExitDifficulty(mean, variance, present)


def difficulty_distance(difficulty: Tensor, exits: ExitDifficulty) -> Tensor:
    """Return |difficulty - mean| in standard deviations of each exit: (S,) and E exits -> (S, E)."""
    return (difficulty.unsqueeze(1) - exits.mean).abs() / (exits.variance.sqrt() + 1e-6)


class LearnedDistance(nn.Module):
    """The MLP f([difficulty, mean, variance]) >= 0 of one sample to one exit."""

    def __init__(self, hidden: int = 100) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Softplus())

    def forward(self, difficulty: Tensor, exits: ExitDifficulty) -> Tensor:
        """Return distances (S, E) of difficulties (S,) to E exits."""
        shape = (len(difficulty), len(exits.mean))
        columns = (difficulty.unsqueeze(1), exits.mean, exits.variance)
        return self.layers(torch.stack([column.expand(shape) for column in columns], dim=2)).squeeze(2)


def make_matcher(settings: DarkDistillSettings, seed: int) -> LearnedDistance | None:
    """Return the trainable distance, or None if the configured matcher has no parameters."""
    if settings.matcher != "learned":
        return None
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the accelerators.
        torch.default_generator.manual_seed(seed)
        return LearnedDistance(settings.matcher_hidden)


def matching_weights(distances: Tensor, present: Tensor, *, temperature: float, hard: bool = False) -> Tensor:
    """Turn distances of the kept samples into the weight of each student exit.

    Args:
        distances: (S, E), non-negative; each row is divided by its sum over the present exits.
        present: (E,) bool; an exit with too few samples has no difficulty to match and gets weight 0.
        temperature: of the softmax over minus the mean normalised distance.
        hard: put all weight on the nearest exit instead.

    Returns:
        Weights (E,) that sum to 1.
    """
    distances = distances * present
    normalised = distances / distances.sum(dim=1, keepdim=True).clamp_min(1e-12)
    affinity = (-normalised.mean(dim=0) / temperature).masked_fill(~present, -torch.inf)
    if hard:
        return F.one_hot(affinity.argmax(), len(affinity)).to(distances.dtype)
    return affinity.softmax(dim=0)


def match(
    difficulty: Tensor,
    kept: Tensor,
    student_sets: Sequence[Tensor],
    settings: DarkDistillSettings,
    learned: LearnedDistance | None = None,
) -> Tensor:
    """Weigh the student's exits for the samples that the teacher's last exit keeps.

    Args:
        difficulty: of the whole generated batch (B,).
        kept: indices (S,) of the samples assigned to the teacher's last exit, at least one.
        student_sets: the batch's assignment to the student's E exits.
        settings: matcher and temperature.
        learned: the distance to use with `matcher = "learned"`.

    Returns:
        Weights (E,) that sum to 1; with a learned distance they carry its gradient.
    """
    exits = exit_difficulty(difficulty, student_sets, least=1 if learned else 2)
    distances = (learned or difficulty_distance)(difficulty[kept], exits)
    return matching_weights(distances, exits.present, temperature=settings.temperature, hard=settings.matcher == "hard")
