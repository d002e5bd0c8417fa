import pytest
import torch

from common.networks import EarlyExitNetwork, NetworkSpec, build
from strategies.darkdistill import parallel
from strategies.darkdistill.difficulty import DifficultyPairs
from strategies.darkdistill.generator import Generator, make_generator
from strategies.darkdistill.parallel import (
    ParallelDistillReport,
    _ensemble,
    _first_exits,
    distill_step,
    draw_conditions,
    train_generators,
    transfer_parallel,
)
from strategies.darkdistill.runtime import Optimizers, Runtime, Tier
from strategies.darkdistill.settings import DarkDistillSettings

CLASSES = 4
CPU = torch.device("cpu")
SETTINGS = DarkDistillSettings(variant="parallel", generator_channels=4, batch=12, distill_lr=0.02)


def network(seed: int) -> EarlyExitNetwork:
    return build(NetworkSpec("resnet_slim", CLASSES, (3, 8, 8), width=4), seed)


def runtime(seed: int = 0) -> Runtime:
    return Runtime(CPU, torch.Generator().manual_seed(seed))


def pool(label: int) -> DifficultyPairs:
    return DifficultyPairs(torch.full((6,), float(label)), torch.full((6,), label))


def tiers(*depths: int) -> dict[int, Tier]:
    return {k: Tier(network(k).prefix(k), samples=10 * k, pool=pool(k - 1)) for k in depths}


def step(
    present: dict[int, Tier], student: EarlyExitNetwork, generators: dict[int, Generator], settings: DarkDistillSettings
) -> ParallelDistillReport:
    run = runtime()
    return distill_step(
        present,
        student,
        generators,
        Optimizers.create([student], generators, settings).distillation,
        conditions=draw_conditions(present, 12, run),
        settings=settings,
        runtime=run,
    )


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_conditions_come_from_tiers_with_the_exit_by_samples() -> None:
    conditions = draw_conditions(tiers(1, 3), 4000, runtime())
    assert len(conditions) == 3
    shares = [c.labels.bincount(minlength=CLASSES) / 4000 for c in conditions]
    torch.testing.assert_close(shares[0], torch.tensor([0.25, 0, 0.75, 0]), atol=0.03, rtol=0)
    assert shares[1].tolist() == shares[2].tolist() == [0, 0, 1, 0]
    assert torch.equal(conditions[0].difficulty.long(), conditions[0].labels)


def test_ensemble_averages_tiers_by_their_samples() -> None:
    present = tiers(1, 2, 4)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = _ensemble(present, 1, x, runtime(), latent=False)
    shallow, deep = (present[k].model.forward_exits(x) for k in (2, 4))
    torch.testing.assert_close(outputs.logits[-1], (20 * shallow.logits[1] + 40 * deep.logits[1]) / 60)
    torch.testing.assert_close(outputs.features[-1], (20 * shallow.features[1] + 40 * deep.features[1]) / 60)


def test_first_exits_shares_weights_and_modes() -> None:
    model = network(0)
    model.units["1"].eval()
    part = _first_exits(model, 2)
    assert part.exit_positions == model.exit_positions[:2]
    assert all(p is dict(model.named_parameters())[name] for name, p in part.named_parameters())
    assert not part.units["1"].training


def test_joint_step_trains_only_the_generators() -> None:
    present, student = tiers(1, 2), network(9)
    generators = {e: make_generator(student, SETTINGS, seed=e) for e in range(4)}
    optimizers = Optimizers.create([student], generators, SETTINGS)
    before = {e: snapshot(g) for e, g in generators.items()}
    networks = [student, *(tier.model for tier in present.values())]
    kept = [snapshot(n) for n in networks]
    run = runtime()
    report = train_generators(
        present,
        student,
        generators,
        optimizers.generators,
        conditions=draw_conditions(present, 12, run),
        settings=SETTINGS,
        runtime=run,
    )
    assert [same(before[e], generators[e].state_dict()) for e in range(4)] == [False, False, True, True]
    assert all(same(a, b.state_dict()) for a, b in zip(kept, networks, strict=True))
    increase = report.difficulty[1] - report.difficulty[0]
    assert report.total == pytest.approx(sum(report.label) + sum(report.diversity) - increase, rel=1e-5)


def test_gap_weight_makes_samples_of_later_exits_harder() -> None:
    def final_increase(weight: float) -> float:
        settings = SETTINGS.changed(gap_weight=weight)
        present, student, run = tiers(2), network(9), runtime()
        generators = {e: make_generator(student, settings, seed=e) for e in range(2)}
        optimizers = Optimizers.create([student], generators, settings).generators
        for _ in range(40):
            conditions = draw_conditions(present, 12, run)
            report = train_generators(
                present, student, generators, optimizers, conditions=conditions, settings=settings, runtime=run
            )
        return report.difficulty[1] - report.difficulty[0]

    assert final_increase(1.0) > final_increase(0.0) + 0.1


@pytest.mark.parametrize("gap_weight", [0.0, 1.0])
def test_student_exits_learn_from_neighbouring_exits_only(gap_weight: float) -> None:
    settings = SETTINGS.changed(gap_weight=gap_weight)
    present, student, run = tiers(1, 4), network(9), runtime()
    generators = {e: make_generator(student, settings, seed=e) for e in range(4)}
    optimizers = Optimizers.create([student], generators, settings)
    kept = {k: snapshot(tier.model) for k, tier in present.items()}
    before = snapshot(student)
    report = distill_step(
        present,
        student,
        generators,
        optimizers.distillation,
        conditions=draw_conditions(present, 12, run),
        settings=settings,
        runtime=run,
    )
    assert set(report.pairs) == {(t, s) for t in range(4) for s in range(4) if abs(t - s) <= 1}
    by_student = [[loss for (_, s), loss in report.pairs.items() if s == exit_index] for exit_index in range(4)]
    relational = sum(sum(losses) / len(losses) for losses in by_student) / 4
    assert report.total == pytest.approx(relational + gap_weight * report.gap, rel=1e-4)
    assert all(same(kept[k], tier.model.state_dict()) for k, tier in present.items())
    after = student.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in after if "running" in key or "num_b" in key)
    assert not torch.equal(before["units.4.conv1.weight"], after["units.4.conv1.weight"])


def test_student_exits_are_compared_by_their_own_feature() -> None:
    # A student that is the only teacher's copy has nothing to learn from the same exit, on any generator's samples.
    present = {4: Tier(network(4), samples=10, pool=pool(0))}
    student = network(4)
    generators = {e: make_generator(student, SETTINGS, seed=e) for e in range(4)}
    report = step(present, student, generators, SETTINGS)
    assert all((loss < 1e-8) == (teacher == own) for (teacher, own), loss in report.pairs.items())


@pytest.mark.parametrize(("clip", "scale"), [(0.0, 1.0), (0.1, 0.1 / 2**0.5)])
def test_gap_moves_the_deeper_exit_alone_and_the_step_is_clipped(
    monkeypatch: pytest.MonkeyPatch, clip: float, scale: float
) -> None:
    # With difficulties 0, 2, 1, each moved by a parameter of its own, the gaps are |2 - 0| and |1 - 2|.
    settings = SETTINGS.changed(rkd_distance=0.0, rkd_angle=0.0, distill_clip=clip)
    present, student = tiers(3), network(9)
    bias = student.exits["2"].linear.bias
    difficulties = iter([bias[0] - bias[0].item(), bias[1] - bias[1].item() + 2, bias[2] - bias[2].item() + 1])
    monkeypatch.setattr(parallel, "_difficulty", lambda logits, labels: next(difficulties))
    generators = {e: make_generator(student, settings, seed=e) for e in range(3)}
    before = bias.detach().clone()
    report = step(present, student, generators, settings)
    assert report.gap == 3
    assert report.gradient == pytest.approx(2**0.5)
    torch.testing.assert_close(bias.detach() - before, -0.02 * scale * torch.tensor([0.0, 1.0, -1.0, 0.0]))


def test_transfer_parallel_is_reproducible() -> None:
    def run(seed: int) -> dict[str, torch.Tensor]:
        student = network(9)
        generators = {e: make_generator(student, SETTINGS, seed=e) for e in range(4)}
        report = transfer_parallel(
            tiers(1, 3),
            student,
            generators,
            Optimizers.create([student], generators, SETTINGS),
            settings=SETTINGS,
            runtime=runtime(seed),
        )
        assert len(report.generators) == 2
        assert len(report.distillation) == 10
        return snapshot(student)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


def test_transfer_parallel_without_tiers_changes_nothing() -> None:
    student = network(9)
    before = snapshot(student)
    report = transfer_parallel(
        {}, student, {}, Optimizers.create([student], {}, SETTINGS), settings=SETTINGS, runtime=runtime()
    )
    assert report.generators == report.distillation == []
    assert same(before, student.state_dict())
