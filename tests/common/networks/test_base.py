from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.networks.base import Architecture, Rescale
from common.networks.heads import PooledLinear

SLIM = NetworkSpec("resnet_slim", 3, (1, 8, 8), ensemble=0.2)


def images(spec: NetworkSpec, count: int = 3, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    if not spec.vocabulary:
        return torch.randn(count, *spec.input_shape, generator=source)
    texts = torch.randint(1, spec.vocabulary, (count, *spec.input_shape), generator=source)
    texts[0, 2:] = 0  # a short text
    return texts


def warmed(spec: NetworkSpec) -> EarlyExitNetwork:
    """Return a network in eval mode whose BatchNorm statistics are not the trivial ones."""
    network = build(spec, seed=1)
    with torch.no_grad():
        network(images(spec, 8, seed=9))
    return network.eval()


@torch.no_grad()
def test_suffix_after_prefix_equals_the_whole_bit_for_bit(tiny: NetworkSpec) -> None:
    spec = replace(tiny, ensemble=0.2)
    whole, x = warmed(spec), images(spec)
    expected = whole(x)
    for cut in range(1, len(whole.units)):
        device, server = whole.prefix_units(cut), whole.suffix(cut)
        outputs = device.forward_exits(x)
        earlier = sum(position <= cut for position in whole.exit_positions)
        for got, want in zip(outputs.logits, expected[:earlier], strict=False):
            assert torch.equal(got, want)
        assert torch.equal(outputs.trunk, device.features_at(x, cut))
        assert torch.equal(outputs.trunk, whole.features_at(x, cut))
        rest = server(outputs.trunk, carried=expected[earlier - 1] if earlier else None)
        assert len(rest) == len(expected) - earlier
        for got, want in zip(rest, expected[earlier:], strict=True):
            assert torch.equal(got, want)


def test_a_part_has_the_heads_of_its_exits() -> None:
    whole = build(SLIM, seed=1)
    part = whole.suffix(2)
    assert all(whole.head(position) is whole.exits[str(position)] for position in whole.exit_positions)
    assert [isinstance(part.head(position), PooledLinear) for position in part.exit_positions] == [True] * 3
    with pytest.raises(KeyError):
        part.head(whole.exit_positions[0])


def test_parts_keep_the_names_of_the_whole(tiny: NetworkSpec) -> None:
    whole = build(tiny, seed=1)
    keys = set(whole.state_dict())
    for cut in range(1, len(whole.units)):
        device = whole.prefix_units(cut, exit_head=False)
        server = whole.suffix(cut)
        assert set(device.state_dict()) | set(server.state_dict()) == keys
        assert not set(device.state_dict()) & set(server.state_dict())
        assert (len(device.units), len(server.units)) == (cut, len(whole.units) - cut)


def test_tier_has_copies_of_its_units_and_exits() -> None:
    whole = build(replace(SLIM, tiers=(1, 3, 4)), seed=1)
    assert whole.tier_positions == (2, 4, 5)
    part = whole.prefix(2)
    assert (len(part.units), part.exit_positions, part.tier_positions) == (4, (2, 3, 4), (2, 4, 5))
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
        assert tensor.data_ptr() != whole.state_dict()[name].data_ptr()
    with pytest.raises(UserError, match=r"depth is 4.*1\.\.3"):
        whole.prefix(4)
    with pytest.raises(UserError, match=r"cut is 5.*1\.\.4"):
        whole.suffix(5)


def test_head_on_demand_equals_the_head_of_the_whole() -> None:
    part = build(SLIM, seed=1).prefix_units(1)
    everywhere = build(replace(SLIM, exits=(1, 2, 3, 4, 5)), seed=1)
    assert part.exit_positions == (1,)
    key = "exits.1.linear.weight"
    assert torch.equal(part.state_dict()[key], everywhere.state_dict()[key])


def test_part_keeps_its_mode_and_frozen_parameters() -> None:
    whole = build(NetworkSpec("vit_small32", 3, (3, 8, 8), lora_rank=2), seed=1).eval()
    part = whole.prefix_units(3)
    assert not any(module.training for module in part.modules())
    frozen = {name for name, p in whole.named_parameters() if not p.requires_grad}
    assert {n for n, p in part.named_parameters() if not p.requires_grad} == frozen & set(part.state_dict())


def test_network_trains_on_a_batch_of_two(tiny: NetworkSpec) -> None:
    network = build(tiny, seed=1)
    outputs = network.forward_exits(images(tiny, 2), rescale="boost")
    sum(logits.square().sum() for logits in outputs.logits).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_outputs_have_the_documented_shapes(tiny: NetworkSpec) -> None:
    network = warmed(tiny)
    outputs = network.forward_exits(images(tiny))
    assert [tuple(z.shape) for z in outputs.logits] == [(3, 3)] * len(network.exit_positions)
    widths = [network.architecture.widths[position - 1] for position in network.exit_positions]
    assert [tuple(feature.shape) for feature in outputs.features] == [(3, width) for width in widths]


@torch.no_grad()
def test_latent_enters_at_the_latent_unit(tiny: NetworkSpec) -> None:
    network, x = warmed(tiny), images(tiny)
    latent = network.features_at(x, network.latent_unit) if network.latent_unit else x
    assert tuple(latent.shape[1:]) == network.latent_shape
    got = network.forward_exits(latent, latent=True).logits
    for a, b in zip(got, network(x), strict=True):
        assert torch.equal(a, b)


def test_suffix_after_the_latent_unit_refuses_latents() -> None:
    with pytest.raises(ValueError, match="not in this part"):
        build(SLIM, seed=1).suffix(2).forward_exits(torch.zeros(2, 32, 4, 4), latent=True)


@torch.no_grad()
def test_ensemble_adds_a_share_of_earlier_logits() -> None:
    alone, boosted = warmed(replace(SLIM, ensemble=0.0)), warmed(SLIM)
    x = images(SLIM)
    z, f = alone(x), boosted(x)
    expected = z[0]
    for raw, ensembled in zip(z[1:], f[1:], strict=True):
        expected = raw + 0.2 * expected
        torch.testing.assert_close(ensembled, expected)


def test_later_exits_of_an_ensemble_do_not_train_earlier_heads() -> None:
    network = build(SLIM, seed=1)
    network(images(SLIM))[-1].sum().backward()
    trained = {name for name, p in network.exits.named_parameters() if p.grad is not None}
    assert trained == {"5.linear.weight", "5.linear.bias"}


def identity_network(exits: int) -> EarlyExitNetwork:
    """Return identity units with an exit after each: logits are the input itself."""
    heads = {position: PooledLinear(1, 1) for position in range(1, exits + 1)}
    for head in heads.values():
        nn.init.ones_(head.linear.weight)
    architecture = Architecture(1, (1, 1, 1), tuple(heads), (1,) * exits, PooledLinear, (1, 1, 1))
    return EarlyExitNetwork({index: nn.Identity() for index in range(exits)}, heads, architecture)


@pytest.mark.parametrize(
    ("rescale", "shares"),
    [
        ("none", [1, 1, 1, 1]),
        ("boost", [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        ("legacy", [1 / 4, 1 / 12, 1 / 24, 1 / 24]),
    ],
)
def test_first_block_group_gets_each_exits_share(rescale: Rescale, shares: list[float]) -> None:
    network = identity_network(exits=4)
    for exit_index, share in enumerate(shares):
        x = torch.ones(1, 1, 1, 1, requires_grad=True)
        (gradient,) = torch.autograd.grad(network.forward_exits(x, rescale=rescale).logits[exit_index].sum(), x)
        assert gradient.item() == pytest.approx(share, rel=1e-6)


def test_rescaling_changes_trunk_gradients_and_not_heads(tiny: NetworkSpec) -> None:
    network, x = warmed(tiny), images(tiny)
    count = len(network.exit_positions)
    boost = [1 / count] * count
    legacy = [1 / count]
    for exit_index in range(1, count):
        legacy.append(legacy[-1] / (count - exit_index))
    latent = (network.features_at(x, 1) if network.latent_unit else x).detach().requires_grad_()
    for exit_index in range(count):
        head = network.exits[str(network.exit_positions[exit_index])].linear.weight

        def gradients(rescale: Rescale, exit_index: int = exit_index, head: Tensor = head) -> tuple[Tensor, ...]:
            logits = network.forward_exits(latent, latent=True, rescale=rescale).logits[exit_index]
            return torch.autograd.grad(logits.square().sum(), (latent, head))

        plain, plain_head = gradients("none")
        scale = plain.abs().max().item()
        for rescale, share in (("boost", boost[exit_index]), ("legacy", legacy[exit_index])):
            trunk_gradient, head_gradient = gradients(rescale)
            assert torch.equal(head_gradient, plain_head)
            torch.testing.assert_close(trunk_gradient, share * plain, rtol=1e-4, atol=1e-6 * scale)
        assert scale > 0


def test_rescaling_counts_the_exits_of_its_part() -> None:
    part = warmed(SLIM).prefix(2)
    latent = torch.randn(2, *part.latent_shape, requires_grad=True)

    def gradient(rescale: Rescale) -> Tensor:
        logits = part.forward_exits(latent, latent=True, rescale=rescale).logits[1]
        return torch.autograd.grad(logits.sum(), latent)[0]

    torch.testing.assert_close(gradient("boost"), gradient("none") / 2)


def counted(network: EarlyExitNetwork) -> Counter[str]:
    rows: Counter[str] = Counter()

    def watch(name: str) -> None:
        network.units[name].register_forward_pre_hook(lambda _, args: rows.update({name: len(args[0])}))

    for name in network.units:
        watch(name)
    return rows


def test_inference_computes_only_for_remaining_samples() -> None:
    network, x = warmed(SLIM), images(SLIM, 6)
    expected = torch.stack(network(x))
    rows = counted(network)
    still_here = [6, 3, 2]  # 3 leave at exit 0, 1 at exit 1, none at exit 2
    leavers = [torch.tensor([1, 0, 1, 0, 1, 0]), torch.tensor([0, 1, 0]), torch.tensor([0, 0])]

    def leaves(exit_index: int, logits: Tensor) -> Tensor:
        assert len(logits) == still_here[exit_index]
        return leavers[exit_index].bool()

    result = network.infer(x, leaves)
    assert result.exits.tolist() == [0, 3, 0, 1, 0, 3]
    assert result.exits.dtype == torch.int64
    assert dict(rows) == {"0": 6, "1": 6, "2": 3, "3": 2, "4": 2}
    torch.testing.assert_close(result.logits, expected[result.exits, torch.arange(6)])


def test_inference_stops_when_no_sample_is_left() -> None:
    network = warmed(SLIM)
    rows = counted(network)
    result = network.infer(images(SLIM, 4), lambda _, logits: torch.ones(len(logits), dtype=torch.bool))
    assert result.exits.tolist() == [0, 0, 0, 0]
    assert set(rows) == {"0", "1"}


def test_leaving_samples_come_before_the_next_unit_runs() -> None:
    network, x = warmed(SLIM), images(SLIM, 6)
    expected = torch.stack(network(x))
    rows = counted(network)
    leavers = [torch.tensor([1, 0, 1, 0, 1, 0]), torch.tensor([0, 0, 0]), torch.tensor([0, 1, 0])]
    found = network.leave(x, lambda exit_index, _: leavers[exit_index].bool())
    for units, exit_index, gone in ((2, 0, [0, 2, 4]), (3, 1, []), (4, 2, [3]), (5, 3, [1, 5])):
        left = next(found)
        assert len(rows) == units
        assert (left.exit, left.rows.tolist()) == (exit_index, gone)
        torch.testing.assert_close(left.logits, expected[exit_index, gone])
        assert not left.logits.requires_grad
    assert next(found, None) is None


@torch.no_grad()
def test_inference_equals_the_forward_pass_if_all_samples_stay(tiny: NetworkSpec) -> None:
    network, x = warmed(replace(tiny, ensemble=0.2)), images(tiny)
    result = network.infer(x, lambda _, logits: torch.zeros(len(logits), dtype=torch.bool))
    assert torch.equal(result.logits, network(x)[-1])
    assert result.exits.tolist() == [len(network.exit_positions) - 1] * 3


@torch.no_grad()
def test_server_continues_an_ensemble() -> None:
    network, x = warmed(SLIM), images(SLIM)
    expected = network(x)
    server = network.suffix(3)
    stays = server.infer(
        network.features_at(x, 3), lambda _, f: torch.zeros(len(f), dtype=torch.bool), carried=expected[1]
    )
    assert torch.equal(stays.logits, expected[-1])
