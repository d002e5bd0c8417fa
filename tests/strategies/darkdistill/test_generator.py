import math

import pytest
import torch
import torch.nn.functional as F

from common.networks import NetworkSpec, build
from strategies.darkdistill.difficulty import DifficultyPairs
from strategies.darkdistill.generator import (
    ConvGenerator,
    TokenGenerator,
    diversity_loss,
    follow_stem,
    label_loss,
    latent_rms,
    make_generator,
)
from strategies.darkdistill.runtime import Runtime
from strategies.darkdistill.server_step import make_meter, train_generator
from strategies.darkdistill.settings import DarkDistillSettings

LABELS = torch.tensor([0, 1, 2])
DIFFICULTY = torch.tensor([0.1, 1.0, 4.0])
NOISE = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))


def test_token_generator_has_the_published_size() -> None:
    # CIFAR-100 on DeiT-tiny: about 38.2 million parameters.
    generator = TokenGenerator((197, 192), num_classes=100, noise_dim=100, hidden=1000)
    layers = (100 * 100) + (100 + 100) + (300 * 1000 + 1000) + 2 * 1000 + (1000 + 1) * 197 * 192
    assert generator.parameter_count == layers == 38_175_024


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("vit_small32", (3, 32, 32), TokenGenerator),
        ("resnet_slim", (3, 17, 9), ConvGenerator),
        ("wrn16", (3, 16, 16), ConvGenerator),
        ("lenet", (1, 6, 6), ConvGenerator),
        ("convnet", (3, 22, 22), ConvGenerator),
    ],
)
@pytest.mark.parametrize("output", ["latent", "pixels"])
def test_networks_accept_the_samples_of_their_generator(
    name: str, shape: tuple[int, int, int], kind: type, output: str
) -> None:
    network = build(NetworkSpec(name, num_classes=5, input_shape=shape), seed=0).eval()
    settings = DarkDistillSettings(generator_output=output, generator_hidden=16, generator_channels=4)
    state = torch.get_rng_state()
    generator, again = make_generator(network, settings, seed=1), make_generator(network, settings, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(generator, kind if output == "latent" else ConvGenerator)
    samples = generator(NOISE, LABELS, DIFFICULTY)
    assert torch.equal(samples, again(NOISE, LABELS, DIFFICULTY))
    outputs = network.forward_exits(samples, latent=output == "latent")
    assert [z.shape for z in outputs.logits] == [(3, 5)] * len(network.exit_positions)


def test_samples_have_the_range_of_the_values_they_replace() -> None:
    settings = DarkDistillSettings(generator_channels=4)
    lowest = {}
    for name in ("resnet_slim", "wrn16"):
        network = build(NetworkSpec(name, num_classes=5, input_shape=(3, 8, 8)), seed=0)
        lowest[name] = make_generator(network, settings, seed=0)(NOISE, LABELS, DIFFICULTY).min().item()
    assert lowest["resnet_slim"] == 0  # its stem ends in ReLU
    assert lowest["wrn16"] < 0  # its stem is a bare convolution
    pixels = ConvGenerator((3, 8, 8), 5, 5, 4, head="pixels", pixel_range=2.0)
    with torch.no_grad():
        pixels.layers[-1].weight.mul_(1000)
    assert pixels(NOISE, LABELS, DIFFICULTY).abs().max().item() == pytest.approx(2.0)


@pytest.mark.parametrize("bounded", [True, False])
def test_only_bounded_tokens_keep_the_stems_size_while_they_are_trained(bounded: bool) -> None:
    network = build(NetworkSpec("vit_small32", num_classes=5, input_shape=(3, 32, 32), width=16), seed=0)
    settings = DarkDistillSettings(generator_bounded=bounded)
    generator, run = make_generator(network, settings, seed=1), Runtime(torch.device("cpu"), torch.Generator())
    optimizer = torch.optim.Adam(generator.parameters(), settings.generator_lr)
    conditions = DifficultyPairs(torch.rand(32, generator=run.rng), torch.randint(5, (32,), generator=run.rng))
    meter = make_meter(network)
    for _ in range(20):
        train_generator(
            generator, optimizer, network, meter, conditions=conditions, settings=settings, runtime=run
        )  # fmt: skip
    with torch.no_grad():
        _, tokens = run.generate(generator.eval(), conditions)
    ratio = (tokens.square().mean().sqrt() / latent_rms(network).square().mean().sqrt()).item()
    assert 0.5 < ratio < 2 if bounded else ratio > 10, ratio


def test_bounded_tokens_follow_the_stem() -> None:
    network = build(NetworkSpec("vit_small32", num_classes=5, input_shape=(3, 32, 32), width=16), seed=0)
    generator = make_generator(network, DarkDistillSettings(generator_hidden=16), seed=1)
    expected = latent_rms(network)
    assert expected.shape == (network.latent_shape[0], 1)
    tokens = generator(NOISE, LABELS, DIFFICULTY)
    rms = expected.expand(3, -1, 1).squeeze(2)
    torch.testing.assert_close(tokens.square().mean(dim=2).sqrt(), rms, rtol=0.01, atol=0)
    with torch.no_grad():
        for parameter in network.units["0"].parameters():
            parameter.mul_(3)
    follow_stem([generator], network)
    torch.testing.assert_close(generator.rms, 3 * expected)
    assert "rms" not in generator.state_dict()  # every round it follows from the network


def test_only_a_conditional_generator_takes_a_difficulty() -> None:
    conditional = TokenGenerator((4, 6), 5, 5, 16).eval()
    assert not torch.equal(conditional(NOISE, LABELS, DIFFICULTY), conditional(NOISE, LABELS, DIFFICULTY + 1))
    unconditional = TokenGenerator((4, 6), 5, 5, 16, conditional=False).eval()
    assert unconditional(NOISE, LABELS).shape == (3, 4, 6)
    for generator, difficulty in ((conditional, None), (unconditional, DIFFICULTY)):
        with pytest.raises(ValueError, match="difficulty"):
            generator(NOISE, LABELS, difficulty)
    network = build(NetworkSpec("lenet", num_classes=5, input_shape=(1, 6, 6)), seed=0)
    assert make_generator(network, DarkDistillSettings(), 0).conditional
    assert not make_generator(network, DarkDistillSettings(difficulty_condition=False), 0).conditional
    assert not make_generator(network, DarkDistillSettings(variant="parallel"), 0).conditional


def test_label_loss_scores_each_sample_at_its_own_exit() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 3, generator=rng) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 0])
    sets = [torch.tensor([2]), torch.tensor([], dtype=torch.int64), torch.tensor([0, 1, 3])]
    first, last = (F.cross_entropy(logits[e][sets[e]], labels[sets[e]]) for e in (0, 2))
    expected = (1 * first + 3 * last) / 4
    torch.testing.assert_close(label_loss(logits, labels, sets), expected)


def test_diversity_loss_equals_a_value_by_hand() -> None:
    # Mean |difference| 3 times mean squared noise difference 0.5, for two of four pairs.
    generated = torch.tensor([[[0.0, 0.0]], [[2.0, 4.0]]], requires_grad=True)
    noise = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    loss = diversity_loss(generated, noise)
    assert loss.item() == pytest.approx(math.exp(-0.75))
    loss.backward()
    assert generated.grad is not None
    assert (generated.grad[0] > 0).all()  # apart from the other sample lowers the loss
    assert (generated.grad[1] < 0).all()
    assert diversity_loss(torch.ones(2, 3), noise).item() == 1
