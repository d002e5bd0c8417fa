from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from common.data.images import Normalizer, SampleSet
from common.networks import EarlyExitNetwork, NetworkSpec, build
from strategies.darkdistill.difficulty import DifficultyPairs, DifficultySketch, rank_correlation
from strategies.darkdistill.generator import Generator, make_generator
from strategies.darkdistill.matching import LearnedDistance, make_matcher
from strategies.darkdistill.runtime import Optimizers, Runtime, Tier
from strategies.darkdistill.samples import RealSamples
from strategies.darkdistill.server_step import (
    DistillReport,
    distill_step,
    make_meter,
    measure,
    train_generator,
    transfer,
)
from strategies.darkdistill.settings import DarkDistillSettings

CLASSES, SHAPE = 4, (3, 8, 8)
CPU = torch.device("cpu")
SETTINGS = DarkDistillSettings(generator_channels=8, generator_hidden=32)


def new_network(name: str = "resnet_slim", width: int = 8, exits: tuple[int, ...] = ()) -> EarlyExitNetwork:
    return build(NetworkSpec(name, CLASSES, SHAPE, exits, width=width, ensemble=0.2), seed=0)


def runtime(seed: int = 5) -> Runtime:
    return Runtime(CPU, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained() -> tuple[EarlyExitNetwork, DifficultyPairs]:
    """Return a slightly trained network and its difficulties, shuffled so that they do not depend on the label."""
    rng = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, *SHAPE, generator=rng)
    labels = torch.randint(CLASSES, (512,), generator=rng)
    strength = 1.5 * torch.rand(512, 1, 1, 1, generator=rng)
    images = strength * patterns[labels] + torch.randn(512, *SHAPE, generator=rng)
    network = new_network()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for _ in range(60):
        batch = torch.randint(512, (64,), generator=rng)
        loss = torch.stack([F.cross_entropy(z, labels[batch]) for z in network(images[batch])]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        difficulty = F.cross_entropy(network(images)[0], labels, reduction="none")
    return network.train(), DifficultyPairs(difficulty[torch.randperm(512, generator=rng)], labels)


@dataclass
class ServerHalf:
    tiers: dict[int, Tier]
    generators: dict[int, Generator]
    meter: EarlyExitNetwork
    optimizers: Optimizers
    conditions: dict[int, DifficultyPairs]

    def distill(
        self, settings: DarkDistillSettings = SETTINGS, matcher: LearnedDistance | None = None, seed: int = 5
    ) -> DistillReport:
        return distill_step(
            self.tiers,
            self.generators,
            self.meter,
            self.optimizers.distillation,
            conditions=self.conditions,
            settings=settings,
            runtime=runtime(seed),
            matcher=matcher,
        )


def server_half(
    network: EarlyExitNetwork,
    pool: DifficultyPairs,
    depths: tuple[int, ...] = (1, 2, 3, 4),
    settings: DarkDistillSettings = SETTINGS,
    matcher: LearnedDistance | None = None,
) -> ServerHalf:
    tiers = {k: Tier(network.prefix(k), samples=10 * k, pool=pool) for k in depths}
    generators = {k: make_generator(network, settings, seed=k) for k in depths}
    models = [tier.model for tier in tiers.values()]
    return ServerHalf(
        tiers,
        generators,
        make_meter(network),
        Optimizers.create(models, generators, settings, matcher),
        {k: pool.sample(settings.batch_size, torch.Generator().manual_seed(k)) for k in depths},
    )


def snapshot(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("conditional", [True, False])
def test_measured_difficulty_follows_the_request_if_conditional(
    trained: tuple[EarlyExitNetwork, DifficultyPairs], conditional: bool
) -> None:
    network, pool = trained
    settings = SETTINGS.changed(difficulty_condition=conditional)
    generator, meter, run = make_generator(network, settings, seed=2), make_meter(network), runtime()
    optimizer = torch.optim.Adam(generator.parameters(), settings.generator_lr)
    kept = snapshot(network), snapshot(meter)
    for _ in range(100):
        conditions = pool.sample(settings.batch_size, run.rng)
        train_generator(generator, optimizer, network, meter, conditions=conditions, settings=settings, runtime=run)
    conditions = pool.sample(256, run.rng)
    with torch.no_grad():
        _, generated = run.generate(generator.eval(), conditions)
        difficulty = measure(meter, generated, conditions.labels, run, latent=True)
        recognised = network.eval().forward_exits(generated, latent=True).logits[-1].argmax(1) == conditions.labels
    network.train()
    spearman = rank_correlation(conditions.difficulty, difficulty)
    assert spearman > 0.5 if conditional else abs(spearman) < 0.25
    assert recognised.float().mean() > 0.8
    assert same(kept[0], network.state_dict())
    assert same(kept[1], meter.state_dict())
    assert all(p.grad is None for p in meter.parameters())


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("only", ["label_weight", "difficulty_weight", "diversity_weight"])
def test_each_term_trains_the_generator_by_its_weight(
    trained: tuple[EarlyExitNetwork, DifficultyPairs], only: str, conditional: bool
) -> None:
    network, pool = trained
    weights = dict.fromkeys(("label_weight", "difficulty_weight", "diversity_weight"), 0.0) | {only: 2.0}
    settings = SETTINGS.changed(difficulty_condition=conditional, **weights)
    generator = make_generator(network, settings, seed=0)
    before = [p.detach().clone() for p in generator.parameters()]
    report = train_generator(
        generator,
        torch.optim.Adam(generator.parameters()),
        network,
        make_meter(network),
        conditions=pool.sample(16, torch.Generator().manual_seed(0)),
        settings=settings,
        runtime=runtime(),
    )
    moved = any(not torch.equal(one, two) for one, two in zip(before, generator.parameters(), strict=True))
    assert moved == (conditional or only != "difficulty_weight")
    assert 0 < report.diversity < 1
    assert report.difficulty > 0


def test_distill_step_changes_students_but_no_statistics(
    trained: tuple[EarlyExitNetwork, DifficultyPairs],
) -> None:
    server = server_half(*trained)
    models = {k: tier.model for k, tier in server.tiers.items()}
    before = {k: snapshot(model) for k, model in models.items()}
    generators = {k: snapshot(generator) for k, generator in server.generators.items()}
    report = server.distill()
    assert same(before[1], models[1].state_dict())
    for depth in (2, 3, 4):
        after = models[depth].state_dict()
        statistics = [key for key in after if "running" in key or "num_batches" in key]
        assert statistics
        assert all(torch.equal(before[depth][key], after[key]) for key in statistics)
        assert not torch.equal(before[depth]["units.1.conv1.weight"], after["units.1.conv1.weight"])
        assert torch.equal(before[depth]["units.0.0.weight"], after["units.0.0.weight"])  # latents skip the stem
    assert all(same(generators[k], g.state_dict()) for k, g in server.generators.items())
    assert all(m.training for model in models.values() for m in model.modules())
    # 32 generated samples, of which the last of 1, 2, 3 teacher exits keeps 32, 20, 16.
    assert [report.pairs[pair].kept for pair in ((1, 2), (2, 3), (3, 4))] == [32, 20, 16]
    assert [len(pair.weights) for pair in report.pairs.values()] == [2, 3, 4]
    assert all(sum(pair.weights) == pytest.approx(1) for pair in report.pairs.values())


def test_loss_weighs_teachers_by_samples_and_exits_by_match(
    trained: tuple[EarlyExitNetwork, DifficultyPairs],
) -> None:
    report = server_half(*trained).distill()
    for pair in report.pairs.values():
        terms = [w * (5 * d + 10 * a) for w, d, a in zip(pair.weights, pair.distance, pair.angle, strict=True)]
        assert pair.loss == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    shares = {(1, 2): 10 / 60, (2, 3): 20 / 60, (3, 4): 30 / 60}
    expected = sum(share * report.pairs[pair].loss for pair, share in shares.items())
    assert report.loss == pytest.approx(expected, rel=1e-5)


def test_repeated_distill_steps_lower_the_loss(trained: tuple[EarlyExitNetwork, DifficultyPairs]) -> None:
    server = server_half(*trained, depths=(1, 4), settings=SETTINGS.changed(distill_lr=0.02))
    losses = [server.distill(seed=7).loss for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]


def test_chain_skips_absent_tiers(trained: tuple[EarlyExitNetwork, DifficultyPairs]) -> None:
    assert list(server_half(*trained, depths=(1, 3, 4)).distill().pairs) == [(1, 3), (3, 4)]
    alone = server_half(*trained, depths=(2,))
    before = snapshot(alone.tiers[2].model)
    assert alone.distill().pairs == {}
    assert same(before, alone.tiers[2].model.state_dict())


def test_transfer_is_reproducible(trained: tuple[EarlyExitNetwork, DifficultyPairs]) -> None:
    def run(seed: int) -> dict[str, torch.Tensor]:
        server = server_half(*trained, depths=(1, 2))
        transfer(
            server.tiers,
            server.generators,
            server.meter,
            server.optimizers,
            settings=SETTINGS,
            runtime=runtime(seed),
        )
        return snapshot(server.tiers[2].model)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


def test_transfer_on_real_samples_trains_students_and_no_generator(
    trained: tuple[EarlyExitNetwork, DifficultyPairs],
) -> None:
    network, pool = trained
    server = server_half(network, pool, depths=(1, 2))
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, *SHAPE), generator=rng, dtype=torch.uint8)
    source = SampleSet(pixels, torch.randint(CLASSES, (40,), generator=rng), tuple("abcd"))
    generators = {k: snapshot(generator) for k, generator in server.generators.items()}
    before = snapshot(server.tiers[2].model)
    report = transfer(
        server.tiers,
        server.generators,
        server.meter,
        server.optimizers,
        settings=SETTINGS,
        runtime=runtime(),
        real=RealSamples(source, Normalizer((0.5,), (0.5,))),
    )
    assert report.generators == []
    assert len(report.distillation) == 10
    for step in report.distillation:
        pair = step.pairs[1, 2]
        assert (pair.kept, pair.spearman) == (32, pytest.approx(1))
        assert 1 < pair.variety < 31
    assert all(same(generators[k], g.state_dict()) for k, g in server.generators.items())
    after = server.tiers[2].model.state_dict()
    assert not torch.equal(before["units.0.0.weight"], after["units.0.0.weight"])  # images pass the stem
    assert torch.equal(before["exits.3.linear.weight"], after["exits.3.linear.weight"])


def test_distill_step_trains_a_learned_matcher(trained: tuple[EarlyExitNetwork, DifficultyPairs]) -> None:
    settings = SETTINGS.changed(matcher="learned")
    matcher = make_matcher(settings, seed=0)
    assert matcher is not None
    server = server_half(*trained, settings=settings, matcher=matcher)
    before = snapshot(matcher)
    server.distill(settings, matcher)
    assert not same(before, matcher.state_dict())


@pytest.mark.parametrize(
    ("name", "width", "exits", "output"),
    [("resnet_slim", 4, (), "pixels"), ("wrn16", 1, (3, 5, 7), "latent"), ("vit_small32", 16, (), "latent")],
)
def test_transfer_runs_with_other_networks_sketch_and_autocast(
    name: str, width: int, exits: tuple[int, ...], output: str
) -> None:
    network = new_network(name, width, exits)
    rng = torch.Generator().manual_seed(0)
    pairs = DifficultyPairs(3 * torch.rand(64, generator=rng), torch.randint(CLASSES, (64,), generator=rng))
    sketch = DifficultySketch.build(pairs, CLASSES, bins=8, clip=10.0, epsilon=1.0, rng=rng)
    settings = SETTINGS.changed(generator_output=output, batch=12, distill_steps=2, difficulty_condition=False)
    tiers = {k: Tier(network.prefix(k), 10, sketch) for k in (1, 3)}
    generators = {k: make_generator(network, settings, seed=k) for k in tiers}
    report = transfer(
        tiers,
        generators,
        make_meter(network),
        Optimizers.create([tier.model for tier in tiers.values()], generators, settings),
        settings=settings,
        runtime=Runtime(CPU, rng, autocast=True),
    )
    assert len(report.generators) == 2
    assert len(report.distillation) == 4
    assert all(torch.isfinite(torch.tensor(step.loss)) for step in report.distillation)
    assert all(torch.isfinite(p).all() for tier in tiers.values() for p in tier.model.parameters())
