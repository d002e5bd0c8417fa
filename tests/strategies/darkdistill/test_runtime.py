import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.networks.base import Rescale
from strategies.darkdistill.generator import make_generator
from strategies.darkdistill.matching import make_matcher
from strategies.darkdistill.runtime import Optimizers, Runtime, evaluating, training_without_statistics
from strategies.darkdistill.settings import DarkDistillSettings

CPU = torch.device("cpu")


def network() -> EarlyExitNetwork:
    return build(NetworkSpec("resnet_slim", num_classes=4, input_shape=(3, 8, 8), width=4), seed=0)


def test_mode_contexts_restore_the_modes() -> None:
    model = network().eval()
    model.exits.train()
    before = {name: module.training for name, module in model.named_modules()}
    with training_without_statistics([model]):
        for module in model.modules():
            assert module.training is not isinstance(module, nn.BatchNorm2d)
    with pytest.raises(ZeroDivisionError), evaluating([model]):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert before == {name: module.training for name, module in model.named_modules()}


def test_seeded_dropout_restores_the_global_random_state() -> None:
    def draw(seed: int) -> torch.Tensor:
        with Runtime(CPU, torch.Generator().manual_seed(seed)).seeded_dropout():
            return F.dropout(torch.ones(64))

    state = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(state, torch.get_rng_state())


def test_autocast_computes_in_bfloat16_and_returns_float32() -> None:
    model = network().eval()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    exact, rough = (
        Runtime(CPU, torch.Generator(), autocast=flag).forward(model, x, latent=False) for flag in (False, True)
    )
    assert all(z.dtype == torch.float32 for z in (*rough.logits, *rough.features))
    assert not torch.equal(exact.logits[-1], rough.logits[-1])
    torch.testing.assert_close(exact.logits[-1], rough.logits[-1], rtol=0.1, atol=0.1)


def test_rescale_divides_gradients_where_exits_branch_off() -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def gradient(rescale: Rescale) -> torch.Tensor:
        model = network().eval()
        outputs = Runtime(CPU, torch.Generator(), rescale=rescale).forward(model, x, latent=False)
        outputs.features[0].sum().backward()
        weight = model.get_parameter("units.1.conv1.weight").grad
        assert weight is not None
        return weight

    plain = gradient("none")
    torch.testing.assert_close(gradient("boost"), plain / 4)  # the first of four exits
    torch.testing.assert_close(gradient("legacy"), plain / 4)


def test_decay_scales_the_initial_learning_rates() -> None:
    settings = DarkDistillSettings(matcher="learned", generator_channels=4)
    model = network()
    generators = {2: make_generator(model, settings, seed=0)}
    optimizers = Optimizers.create([model], generators, settings, make_matcher(settings, seed=0))
    for server_round in (3, 1):
        optimizers.decay(server_round, 0.5)
        rates = [o.param_groups[0]["lr"] for o in (optimizers.generators[2], *optimizers.distillation)]
        assert rates == pytest.approx([rate * 0.5**server_round for rate in (1e-2, 0.05, 1e-3)])


def test_optimizers_leave_frozen_parameters_out() -> None:
    model = network()
    model.units["0"].requires_grad_(False)
    optimizers = Optimizers.create([model], {}, DarkDistillSettings())
    held = {id(p) for p in optimizers.distillation[0].param_groups[0]["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_optimizers_state_round_trips_as_flat_tensors() -> None:
    settings = DarkDistillSettings(generator_channels=4)
    model = network()

    def step(generator: nn.Module, optimizers: Optimizers) -> None:
        loss = torch.stack([p.square().sum() for p in generator.parameters()]).sum()
        optimizers.generators[1].zero_grad()
        loss.backward()
        optimizers.generators[1].step()

    one, two = (make_generator(model, settings, seed=0) for _ in range(2))
    first, second = (Optimizers.create([model], {1: generator}, settings) for generator in (one, two))
    step(one, first)
    two.load_state_dict(one.state_dict())
    saved = first.state_dict()
    assert saved["optimizer.generator-1.0.step"].item() == 1
    second.load_state_dict({**saved, "meter.weight": torch.zeros(1)})
    step(one, first)
    step(two, second)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    fresh = Optimizers.create([model], {1: make_generator(model, settings, seed=0)}, settings)
    assert fresh.state_dict() == {}
