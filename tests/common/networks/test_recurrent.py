from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from common.errors import UserError
from common.exits import ThresholdPolicy
from common.networks import EarlyExitNetwork, NetworkSpec, build, cost_table
from common.networks.recurrent import RecurrentExit
from common.storage.model_file import ModelInfo, load_model, save_model

SLIM = NetworkSpec("resnet_slim", 3, (1, 8, 8), recurrent=8)
NETWORKS = {
    "resnet_slim": SLIM,
    "transformer4": NetworkSpec("transformer4", 3, (6,), width=8, vocabulary=20, recurrent=4),
    "vit_lora": NetworkSpec("vit_small32", 3, (3, 8, 8), width=16, lora_rank=2, recurrent=8),
    "wrn16": NetworkSpec("wrn16", 3, (3, 8, 8), recurrent=8),
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def spec(request: pytest.FixtureRequest) -> NetworkSpec:
    chosen: NetworkSpec = request.param
    return chosen


def samples(spec: NetworkSpec, count: int = 3) -> Tensor:
    source = torch.Generator().manual_seed(0)
    if spec.vocabulary:
        return torch.randint(1, spec.vocabulary, (count, *spec.input_shape), generator=source)
    return torch.randn(count, *spec.input_shape, generator=source)


def warmed(spec: NetworkSpec) -> EarlyExitNetwork:
    network = build(spec, seed=1)
    with torch.no_grad():
        network(samples(spec, 8))
    return network.eval()


def test_logits_are_of_the_meta_token_and_the_last_exits_token() -> None:
    shared = RecurrentExit(4, 3, 2)
    with torch.no_grad():
        for parameter in shared.block.parameters():  # the block then adds nothing: it returns what it gets
            parameter.zero_()
        shared.linear.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
        shared.linear.bias.zero_()
        shared.meta.fill_(0.5)
        shared.positions.fill_(0.25)
    tokens = torch.tensor([[[9.0, 9.0, 9.0, 9.0], [1.0, 2.0, 3.0, 6.0]]])
    normed = functional.layer_norm(tokens[:, -1] + 0.75, (4,), eps=1e-6)
    torch.testing.assert_close(shared(tokens), normed[:, :2])


def test_an_exit_sees_the_exits_before_it_and_none_after_it() -> None:
    network, x = warmed(SLIM), samples(SLIM)
    before = network(x)
    with torch.no_grad():
        network.exits["3"].linear.bias.add_(torch.randn(8))
    after = network(x)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, False, False]


@torch.no_grad()
def test_suffix_after_prefix_equals_the_whole_bit_for_bit(spec: NetworkSpec) -> None:
    whole, x = warmed(spec), samples(spec)
    expected = whole(x)
    for cut in range(1, len(whole.units)):
        device, server = whole.prefix_units(cut, exit_head=False), whole.suffix(cut)
        outputs = device.forward_exits(x)
        assert torch.equal(outputs.trunk, whole.features_at(x, cut))
        logits = [*outputs.logits, *server(outputs.trunk, carried=outputs.carried)]
        assert all(torch.equal(a, b) for a, b in zip(logits, expected, strict=True))


def test_every_part_with_an_exit_holds_the_shared_classifier(spec: NetworkSpec) -> None:
    whole = build(spec, seed=1)
    state = whole.state_dict()
    shared = {key for key in state if key.startswith("recurrent.")}
    assert shared
    for cut in range(1, len(whole.units)):
        device, server = whole.prefix_units(cut, exit_head=False).state_dict(), whole.suffix(cut).state_dict()
        assert set(device) | set(server) == set(state)
        has_exit = cut >= whole.exit_positions[0]
        assert set(device) & set(server) == (shared if has_exit else set())
        assert all(torch.equal(value, state[key]) for key, value in {**device, **server}.items())
    tier = whole.prefix(1)
    assert tier.recurrent is not whole.recurrent  # a copy


def test_fresh_exit_at_a_cut_makes_tokens() -> None:
    part = build(SLIM, seed=1).prefix_units(1)
    assert part.exit_positions == (1,)
    assert part.exits["1"].linear.out_features == 8
    assert part(samples(SLIM))[0].shape == (3, 3)


@torch.no_grad()
def test_samples_leave_with_the_logits_of_their_exit(spec: NetworkSpec) -> None:
    network, x = warmed(spec), samples(spec, 6)
    expected = torch.stack(network(x))
    leavers = [torch.tensor([1, 0, 1, 0, 1, 0]), torch.tensor([0, 1, 0]), torch.tensor([0, 0])]

    def leaves(exit_index: int, logits: Tensor) -> Tensor:
        return leavers[exit_index].bool() if exit_index < 3 else torch.zeros(len(logits), dtype=torch.bool)

    found = network.infer(x, leaves)
    last = len(network.exit_positions) - 1
    assert found.exits.tolist() == [0, last, 0, 1, 0, last]
    torch.testing.assert_close(found.logits, expected[found.exits, torch.arange(6)])


def test_training_reaches_every_parameter(spec: NetworkSpec) -> None:
    network = build(spec, seed=1)
    sum(logits.square().sum() for logits in network(samples(spec, 4))).backward()
    missing = [
        name for name, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # attention over keys that a bias shifts alike does not change, and LoRA's `down` is silent until `up` is trained
    assert [name for name in missing if "adapter" not in name and "in_proj_bias" not in name] == []
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {name for name, _ in network.named_parameters() if name.startswith("recurrent.")} <= trained


def test_trunk_is_that_of_the_network_without_recurrent_exits(spec: NetworkSpec) -> None:
    plain, recurrent = (build(s, seed=1).state_dict() for s in (replace(spec, recurrent=0), spec))
    for key, value in plain.items():
        if key.startswith("units."):
            assert torch.equal(recurrent[key], value)
    again = build(spec, seed=1).state_dict()
    assert all(torch.equal(again[key], value) for key, value in recurrent.items())


def test_cost_of_an_exit_has_the_tokens_before_it() -> None:
    plain, table = cost_table(build(replace(SLIM, recurrent=0), 0)), cost_table(build(SLIM, 0))
    assert table.units == plain.units
    shared = sum(p.numel() for p in RecurrentExit(8, 4, 3).parameters())
    widths = (16, 32, 64, 128)
    heads = [width * 8 + 8 for width in widths]
    assert [table.exits[p].parameters for p in (2, 3, 4, 5)] == [heads[0] + shared, *heads[1:]]
    for index, position in enumerate((2, 3, 4, 5)):
        length = 2 + index  # the meta token and one per exit so far
        block = (
            length * (4 + 4) * 8**2 + 2 * length**2 * 8
        )  # q, k, v, out, a hidden layer of twice the width; attention
        assert table.exits[position].macs == widths[index] * 8 + block + 8 * 3
    for depth in (1, 2, 3, 4):
        assert table.tier_parameters(depth) == sum(p.numel() for p in build(SLIM, 0).prefix(depth).parameters())


def test_stored_model_comes_back(tmp_path: Path) -> None:
    network = warmed(SLIM)
    policy = ThresholdPolicy((0.5, 0.5))
    info = ModelInfo(SLIM.to_json(), 3, ("a", "b", "c"), (0.5,), (0.5,), policy.to_json())
    save_model(tmp_path / "model.safetensors", network.state_dict(), info)
    stored, x = load_model(tmp_path), samples(SLIM)
    assert stored.spec == SLIM
    assert not stored.others
    with torch.no_grad():
        expected = network.prefix(3)(x)
        assert all(torch.equal(a, b) for a, b in zip(stored.network(x), expected, strict=True))


def test_older_installations_read_the_specs_of_networks_without_recurrent_exits() -> None:
    assert NetworkSpec.from_json(SLIM.to_json()) == SLIM
    plain = replace(SLIM, recurrent=0)
    assert "recurrent" not in plain.to_json()
    assert NetworkSpec.from_json(plain.to_json()) == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recurrent": 6}, "recurrent exits of width 6: give a multiple of 4"),
        ({"ensemble": 0.2}, "no ensemble weight beside it"),
        ({"recurrent": -4}, "width of recurrent exits is -4, must be at least 0"),
    ],
)
def test_impossible_recurrent_exits_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(replace(SLIM, **changes), 0)
