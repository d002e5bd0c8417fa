"""The parallel variant, DarkDistill-PL (DarkDistill, KDD 2025): one generator per exit, one global student.

    repeat S times:
        draw labels for every exit's generator
        train all generators jointly one step                   (train_generators)
        repeat R times: distil the tiers into the global model  (distill_step)

Generators take no difficulty. Instead a loss term makes each exit's samples harder than the previous exit's (difficulty
increase). In the generators' step and in the student's the previous exit's difficulty is a constant: otherwise the gap
would also shrink by making easy samples harder. Batch 16 and a decay of the server's rates by 0.99 a round follow from
the variant (`DarkDistillSettings`).

Ours: each student exit is compared by its own feature, where the published code takes the student's deepest one and
sums the gap over all (teacher, student) pairs; student exits have equal weight, and so have the teachers of one student
exit; the norm of a step's gradient is bounded (`distill_clip`), since the gap has no bound and a single step can throw
the student off.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from common.networks.base import EarlyExitNetwork, ExitOutputs
from strategies.darkdistill.difficulty import DifficultyPairs
from strategies.darkdistill.generator import Generator, diversity_loss, makes_pixels
from strategies.darkdistill.relational import rkd_angle, rkd_distance
from strategies.darkdistill.runtime import Optimizers, Runtime, Tier, evaluating, training_without_statistics
from strategies.darkdistill.settings import DarkDistillSettings


@dataclass(frozen=True)
class GeneratorsReport:
    """Loss terms of one joint generator step."""

    total: float
    label: tuple[float, ...]  # label loss per exit
    diversity: tuple[float, ...]  # diversity loss per exit
    difficulty: tuple[float, ...]  # mean difficulty per exit, nats


@dataclass(frozen=True)
class ParallelDistillReport:
    """Loss terms of one distillation iteration."""

    total: float
    pairs: dict[tuple[int, int], float]  # relational loss by (teacher exit, student exit)
    gap: float  # sum of the difficulty gaps
    gradient: float  # norm of the student's gradient, before it is clipped


@dataclass(frozen=True)
class ParallelReport:
    """All steps of a round, in order."""

    generators: list[GeneratorsReport]  # per generator step
    distillation: list[ParallelDistillReport]  # per iteration


def transfer_parallel(
    tiers: Mapping[int, Tier],
    student: EarlyExitNetwork,
    generators: Mapping[int, Generator],
    optimizers: Optimizers,
    *,
    settings: DarkDistillSettings,
    runtime: Runtime,
) -> ParallelReport:
    """Run a round's whole loop. The student and the generators change in place; the tiers only teach.

    Args:
        tiers: by depth, only those with clients this round; all modules are on the runtime's device. Empty: nothing
            happens.
        student: the global model W, averaged layer by layer over the tiers.
        generators: by exit index from 0. Generators of exits that no present tier has are not trained.
        optimizers: over the student and these generators.
        settings: hyper-parameters.
        runtime: device, precision and random numbers.
    """
    report = ParallelReport([], [])
    if not tiers:
        return report
    for _ in range(settings.server_epochs):
        conditions = draw_conditions(tiers, settings.batch_size, runtime)
        for _ in range(settings.generator_steps):
            report.generators.append(
                train_generators(
                    tiers,
                    student,
                    generators,
                    optimizers.generators,
                    conditions=conditions,
                    settings=settings,
                    runtime=runtime,
                )
            )
        for _ in range(settings.distill_steps):
            report.distillation.append(
                distill_step(
                    tiers,
                    student,
                    generators,
                    optimizers.distillation,
                    conditions=conditions,
                    settings=settings,
                    runtime=runtime,
                )
            )
    return report


def draw_conditions(tiers: Mapping[int, Tier], count: int, runtime: Runtime) -> list[DifficultyPairs]:
    """Draw `count` samples per exit: a tier that has the exit, with weight n_k, then one of its pairs."""
    conditions = []
    for exit_index in range(_exits_present(tiers)):
        holders = _tiers_with_exit(tiers, exit_index)
        draws = [tier.pool.sample(count, runtime.rng) for tier in holders]
        weights = torch.tensor([float(tier.samples) for tier in holders], device=runtime.rng.device)
        holder = torch.multinomial(weights, count, replacement=True, generator=runtime.rng).cpu()
        column = torch.arange(count)
        difficulty = torch.stack([draw.difficulty.cpu() for draw in draws])[holder, column]
        labels = torch.stack([draw.labels.cpu() for draw in draws])[holder, column]
        conditions.append(DifficultyPairs(difficulty, labels).to(runtime.device))
    return conditions


def train_generators(
    tiers: Mapping[int, Tier],
    student: EarlyExitNetwork,
    generators: Mapping[int, Generator],
    optimizers: Mapping[int, Optimizer],
    *,
    conditions: list[DifficultyPairs],
    settings: DarkDistillSettings,
    runtime: Runtime,
) -> GeneratorsReport:
    """Take one joint step of all generators: labels of each exit's ensemble + diversity - difficulty increase.

    A sample's difficulty is its cross-entropy averaged over the student's exits; the previous exit's is a constant.
    Networks do not change.
    """
    latent = not makes_pixels(student, settings)
    labels, diversities, difficulties = [], [], []
    with evaluating([student, *(tier.model for tier in tiers.values())]):
        for index, condition in enumerate(conditions):
            noise, generated = runtime.generate(generators[index].train(), condition)
            ensemble = _ensemble(tiers, index, generated, runtime, latent=latent)
            outputs = runtime.forward(student, generated, latent=latent)
            labels.append(F.cross_entropy(ensemble.logits[-1], condition.labels))
            diversities.append(diversity_loss(generated, noise))
            difficulties.append(_difficulty(outputs.logits, condition.labels))
    label, diversity, difficulty = (torch.stack(terms) for terms in (labels, diversities, difficulties))
    increase = difficulty[1:] - difficulty[:-1].detach()
    total = (
        settings.label_weight * label.sum()
        + settings.diversity_weight * diversity.sum()
        - settings.gap_weight * increase.sum()
    )

    exits = range(len(conditions))
    for index in exits:
        optimizers[index].zero_grad()
    total.backward(inputs=[p for index in exits for p in generators[index].parameters()])
    for index in exits:
        optimizers[index].step()
    return GeneratorsReport(total.item(), tuple(label.tolist()), tuple(diversity.tolist()), tuple(difficulty.tolist()))


def distill_step(
    tiers: Mapping[int, Tier],
    student: EarlyExitNetwork,
    generators: Mapping[int, Generator],
    optimizers: list[Optimizer],
    *,
    conditions: list[DifficultyPairs],
    settings: DarkDistillSettings,
    runtime: Runtime,
) -> ParallelDistillReport:
    """Take one step of the student: exit s learns from the tiers' ensembles at the exits s - 1, s and s + 1.

    Each teacher exit is compared on the samples of its own generator. To the relational losses the student adds the
    absolute gaps between the mean difficulties of adjacent exits' samples, which move the deeper exit's difficulty
    alone. Batch norm statistics do not change.
    """
    latent = not makes_pixels(student, settings)
    exits = len(student.exit_positions)
    relational: dict[tuple[int, int], Tensor] = {}
    difficulties = []
    models = [student, *(tier.model for tier in tiers.values())]
    with training_without_statistics(models), runtime.seeded_dropout():
        for teacher_exit, condition in enumerate(conditions):
            with torch.no_grad():
                _, generated = runtime.generate(generators[teacher_exit].eval(), condition)
                target = _ensemble(tiers, teacher_exit, generated, runtime, latent=latent).features[-1]
            # The difficulty gap needs every exit of the student, the relational losses only the neighbours.
            reach = exits if settings.gap_weight > 0 else min(teacher_exit + 2, exits)
            outputs = runtime.forward(_first_exits(student, reach), generated, latent=latent)
            difficulties.append(_difficulty(outputs.logits, condition.labels))
            for student_exit in range(max(0, teacher_exit - 1), min(teacher_exit + 2, exits)):
                phi = outputs.features[student_exit]
                relational[teacher_exit, student_exit] = settings.rkd_distance * rkd_distance(
                    phi, target
                ) + settings.rkd_angle * rkd_angle(phi, target)
    difficulty = torch.stack(difficulties)
    gap = (difficulty[1:] - difficulty[:-1].detach()).abs().sum()
    total = _mean_over_teachers(relational).mean() + settings.gap_weight * gap

    for optimizer in optimizers:
        optimizer.zero_grad()
    total.backward()
    bound = settings.distill_clip or torch.inf
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), bound)
    for optimizer in optimizers:
        optimizer.step()
    pairs = {pair: loss.item() for pair, loss in relational.items()}
    return ParallelDistillReport(total.item(), pairs, gap.item(), norm.item())


def _mean_over_teachers(relational: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """Return the mean over its teachers of every student exit that has one."""
    by_student: dict[int, list[Tensor]] = {}
    for (_, student_exit), loss in relational.items():
        by_student.setdefault(student_exit, []).append(loss)
    return torch.stack([torch.stack(losses).mean() for losses in by_student.values()])


def _difficulty(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Return the scalar mean over exits and samples of the cross-entropy, in nats."""
    return torch.stack([F.cross_entropy(z, labels) for z in logits]).mean()


def _ensemble(tiers: Mapping[int, Tier], exit_index: int, x: Tensor, runtime: Runtime, *, latent: bool) -> ExitOutputs:
    """Average the logits and features of one exit over the tiers that have it, weights n_k; one entry each."""
    holders = _tiers_with_exit(tiers, exit_index)
    weights = torch.tensor([float(tier.samples) for tier in holders], device=x.device)
    weights = weights / weights.sum()
    outputs = [runtime.forward(_first_exits(t.model, exit_index + 1), x, latent=latent) for t in holders]
    logits = torch.einsum("t,tbc->bc", weights, torch.stack([o.logits[-1] for o in outputs]))
    features = torch.einsum("t,tbd->bd", weights, torch.stack([o.features[-1] for o in outputs]))
    return ExitOutputs([logits], [features], outputs[-1].trunk)


def _tiers_with_exit(tiers: Mapping[int, Tier], exit_index: int) -> list[Tier]:
    return [tiers[k] for k in sorted(tiers) if len(tiers[k].model.exit_positions) > exit_index]


def _exits_present(tiers: Mapping[int, Tier]) -> int:
    return max(len(tier.model.exit_positions) for tier in tiers.values())


def _first_exits(network: EarlyExitNetwork, count: int) -> EarlyExitNetwork:
    """Return the network up to its `count`-th exit, sharing (not copying) units, heads and their modes."""
    positions = network.exit_positions[:count]
    return EarlyExitNetwork(
        {index: network.units[str(index)] for index in range(positions[-1])},
        {position: network.head(position) for position in positions},
        network.architecture,
    )
