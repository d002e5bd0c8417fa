"""The server's data-free transfer of one round (DarkDistill, KDD 2025): train generators, distil shallow to deep.

    repeat S times:
        draw conditions (difficulty, label) for every tier
        train each tier's generator one step                    (train_generator)
        repeat R times: distil tier k into tier k + 1, all k    (distill_step)

With real samples (a diagnostic) there is nothing to generate, and the difficulties are those measured.
Tiers without clients this round are skipped: the chain pairs adjacent tiers among those present.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from common.exits.assignment import assign_exits
from common.networks.base import EarlyExitNetwork
from strategies.darkdistill.diagnostics import variety
from strategies.darkdistill.difficulty import DifficultyPairs, rank_correlation
from strategies.darkdistill.generator import Generator, difficulty_loss, diversity_loss, label_loss, makes_pixels
from strategies.darkdistill.matching import LearnedDistance, match
from strategies.darkdistill.relational import rkd_angle, rkd_distance
from strategies.darkdistill.runtime import Optimizers, Runtime, Tier, evaluating, training_without_statistics
from strategies.darkdistill.samples import RealSamples, Samples, generate
from strategies.darkdistill.settings import DarkDistillSettings


@dataclass(frozen=True)
class GeneratorReport:
    """Loss terms of one generator step."""

    label: float
    difficulty: float
    diversity: float
    # Rank correlation of requested and measured difficulties. If some labels are harder than others, a part of it comes
    # from the label alone.
    spearman: float


@dataclass(frozen=True)
class PairReport:
    """One teacher and its student in one iteration."""

    loss: float
    distance: tuple[float, ...]  # relational distance loss per student exit, before matching and weighting
    angle: tuple[float, ...]  # relational angle loss per student exit, likewise
    weights: tuple[float, ...]  # matching weight per student exit, sum 1; all equal: nothing is selected
    kept: int  # samples of the batch that the teacher's last exit keeps
    spearman: float  # rank correlation of requested and measured difficulties; of real samples 1
    variety: float  # of the batch in the teacher's last feature, see `diagnostics.variety`


@dataclass(frozen=True)
class DistillReport:
    """One reverse-KD iteration."""

    loss: float  # L_KD
    pairs: dict[tuple[int, int], PairReport]  # by (teacher depth, student depth)


@dataclass(frozen=True)
class TransferReport:
    """All steps of a round, in order."""

    generators: list[dict[int, GeneratorReport]]  # per step, by depth
    distillation: list[DistillReport]  # per reverse-KD iteration


def make_meter(network: EarlyExitNetwork) -> EarlyExitNetwork:
    """Return the difficulty meter M: a frozen copy of the global model up to its first exit."""
    return network.prefix_units(network.exit_positions[0], exit_head=False).eval().requires_grad_(False)


def transfer(
    tiers: Mapping[int, Tier],
    generators: Mapping[int, Generator],
    meter: EarlyExitNetwork,
    optimizers: Optimizers,
    *,
    settings: DarkDistillSettings,
    runtime: Runtime,
    matcher: LearnedDistance | None = None,
    real: RealSamples | None = None,
) -> TransferReport:
    """Run a round's whole loop. The tiers' models, the generators and the matcher change in place.

    Args:
        tiers: by depth, only those with clients this round; all modules are on the runtime's device.
        generators: by depth, at least those of `tiers`.
        meter: last round's global model up to its first exit (see make_meter).
        optimizers: over exactly these models, generators and matcher.
        settings: hyper-parameters.
        runtime: device, precision and random numbers.
        matcher: the learned distance, with `matcher = "learned"`.
        real: what to distil on instead of generated samples; no generator is trained then.
    """
    report = TransferReport([], [])
    generated = sorted(tiers) if real is None else []
    for _ in range(settings.server_epochs):
        conditions = {k: tiers[k].pool.sample(settings.batch_size, runtime.rng).to(runtime.device) for k in generated}
        for _ in range(settings.generator_steps if generated else 0):
            steps = {
                k: train_generator(
                    generators[k],
                    optimizers.generators[k],
                    tiers[k].model,
                    meter,
                    conditions=conditions[k],
                    settings=settings,
                    runtime=runtime,
                )
                for k in generated
            }
            report.generators.append(steps)
        for _ in range(settings.distill_steps):
            step = distill_step(
                tiers,
                generators,
                meter,
                optimizers.distillation,
                conditions=conditions,
                settings=settings,
                runtime=runtime,
                matcher=matcher,
                real=real,
            )
            report.distillation.append(step)
    return report


def train_generator(
    generator: Generator,
    optimizer: Optimizer,
    model: EarlyExitNetwork,
    meter: EarlyExitNetwork,
    *,
    conditions: DifficultyPairs,
    settings: DarkDistillSettings,
    runtime: Runtime,
) -> GeneratorReport:
    """Take one step on L_G = L_y + L_diff + L_div, each weighted; an unconditional generator has no L_diff.

    Args:
        generator: is trained in place.
        optimizer: the generator's.
        model: W_k, which must recognise the labels; it is not changed.
        meter: M, which measures the difficulty of the generated samples; it is not changed.
        conditions: difficulties and labels (B,) to generate for.
        settings: hyper-parameters.
        runtime: device, precision and random numbers.
    """
    latent = not makes_pixels(model, settings)
    noise, generated = runtime.generate(generator.train(), conditions)
    with evaluating([model, meter]):
        logits = runtime.forward(model, generated, latent=latent).logits
        measured = measure(meter, generated, conditions.labels, runtime, latent=latent)

    label = label_loss(logits, conditions.labels, assign_exits(logits, settings.exit_spread))
    difficulty = difficulty_loss(measured, conditions.difficulty)
    diversity = diversity_loss(generated, noise)
    total = settings.label_weight * label + settings.diversity_weight * diversity
    if generator.conditional:
        total = total + settings.difficulty_weight * difficulty

    optimizer.zero_grad()
    total.backward(inputs=list(generator.parameters()))
    optimizer.step()
    return GeneratorReport(
        label.item(),
        difficulty.item(),
        diversity.item(),
        rank_correlation(conditions.difficulty, measured),
    )


def distill_step(
    tiers: Mapping[int, Tier],
    generators: Mapping[int, Generator],
    meter: EarlyExitNetwork,
    optimizers: list[Optimizer],
    *,
    conditions: Mapping[int, DifficultyPairs],
    settings: DarkDistillSettings,
    runtime: Runtime,
    matcher: LearnedDistance | None = None,
    real: RealSamples | None = None,
) -> DistillReport:
    """Distil every tier into the next deeper one present, all at once: one step on L_KD.

    A tier between two others is student of the shallower and teacher of the deeper one in the same step. Models
    train with dropout, but their batch norm statistics do not change.

    Args:
        tiers: by depth; with fewer than two, nothing happens.
        generators: by depth, at least those of the teachers.
        meter: M, measures the generated samples.
        optimizers: of the models and, if learned, the matcher.
        conditions: by depth, difficulties and labels (B,) to generate for.
        settings: hyper-parameters.
        runtime: device, precision and random numbers.
        matcher: the learned distance, with `matcher = "learned"`.
        real: what to distil on instead of generated samples; generators and conditions are not used then.
    """
    chain = list(pairwise(sorted(tiers)))
    if not chain:
        return DistillReport(0.0, {})
    teacher_samples = sum(tiers[teacher].samples for teacher, _ in chain)
    losses: list[Tensor] = []
    reports: dict[tuple[int, int], PairReport] = {}
    with training_without_statistics(tier.model for tier in tiers.values()), runtime.seeded_dropout():
        for teacher, student in chain:
            model = tiers[teacher].model
            if real is not None:
                samples = real.draw(settings.batch_size, runtime.rng, runtime.device)
            else:
                latent = not makes_pixels(model, settings)
                with torch.no_grad():
                    samples = generate(generators[teacher], conditions[teacher], runtime, latent=latent)
            loss, reports[teacher, student] = _pair_loss(
                model, tiers[student].model, meter, samples, settings=settings, runtime=runtime, matcher=matcher
            )
            losses.append(loss * (tiers[teacher].samples / teacher_samples))
    total = torch.stack(losses).sum()
    for optimizer in optimizers:
        optimizer.zero_grad()
    total.backward()
    for optimizer in optimizers:
        optimizer.step()
    return DistillReport(total.item(), reports)


def measure(meter: EarlyExitNetwork, generated: Tensor, labels: Tensor, runtime: Runtime, *, latent: bool) -> Tensor:
    """Return the difficulty (B,) of generated samples: the meter's first exit's cross-entropy, in nats."""
    first = runtime.forward(meter, generated, latent=latent).logits[0]
    return F.cross_entropy(first, labels, reduction="none")


def _pair_loss(
    teacher: EarlyExitNetwork,
    student: EarlyExitNetwork,
    meter: EarlyExitNetwork,
    samples: Samples,
    *,
    settings: DarkDistillSettings,
    runtime: Runtime,
    matcher: LearnedDistance | None,
) -> tuple[Tensor, PairReport]:
    """Return L_pair = (1/E) * sum over the student's exits j of w_j * RKD(exit j, the teacher's last exit).

    Only samples that the teacher's last exit keeps take part.
    """
    with torch.no_grad():
        measured = measure(meter, samples.x, samples.labels, runtime, latent=samples.latent)
        teacher_outputs = runtime.forward(teacher, samples.x, latent=samples.latent)
    student_outputs = runtime.forward(student, samples.x, latent=samples.latent)

    kept = assign_exits(teacher_outputs.logits, settings.exit_spread)[-1]
    student_sets = assign_exits(student_outputs.logits, settings.exit_spread)
    requested = measured if samples.requested is None else samples.requested
    difficulty = requested if samples.follows else measured
    weights = match(difficulty, kept, student_sets, settings, matcher)

    target = teacher_outputs.features[-1][kept]
    distance = torch.stack([rkd_distance(phi[kept], target) for phi in student_outputs.features])
    angle = torch.stack([rkd_angle(phi[kept], target) for phi in student_outputs.features])
    loss = (weights * (settings.rkd_distance * distance + settings.rkd_angle * angle)).mean()
    return loss, PairReport(
        loss.item(),
        tuple(distance.tolist()),
        tuple(angle.tolist()),
        tuple(weights.tolist()),
        len(kept),
        rank_correlation(requested, measured),
        variety(teacher_outputs.features[-1]),
    )
