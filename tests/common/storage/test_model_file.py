"""A finished model in a file: a tier's prefix, or a device's units before its cut."""

from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.exits import entropy_gate
from common.networks import NetworkSpec, build, without_early_exits
from common.storage.files import read_tensors, write_tensors
from common.storage.model_file import FILE, ModelInfo, load_model, save_model

TIERED = NetworkSpec("resnet_slim", 3, (1, 8, 8), width=2)
CUT = without_early_exits(TIERED)
CLASSES = ("a", "b", "c")


def test_units_before_a_cut_come_back_with_the_exit_at_the_cut(tmp_path: Path) -> None:
    part = build(CUT, seed=5).prefix_units(3).eval()
    policy = entropy_gate(0.25)
    info = ModelInfo(CUT.to_json(), 0, CLASSES, (0.5,), (0.25,), policy.to_json(), cut=3, run="first")
    save_model(tmp_path / "client-000000" / FILE, part.state_dict(), info)
    bundle = load_model(tmp_path / "client-000000")
    assert (bundle.cut, bundle.run, bundle.classes, bundle.policy) == (3, "first", CLASSES, policy)
    assert bundle.network.exit_positions == (3,)
    assert len(bundle.network.units) == 3
    assert not bundle.network.training
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one, other = part.forward_exits(x), bundle.network.forward_exits(x)
    assert torch.equal(one.logits[0], other.logits[0])
    assert torch.equal(one.trunk, other.trunk)


def test_what_was_stored_before_there_were_cuts_is_read(tmp_path: Path) -> None:
    network = build(TIERED, seed=5)
    info = ModelInfo(TIERED.to_json(), 2, CLASSES, (0.5,), (0.25,), "")
    save_model(tmp_path / FILE, network.state_dict(), info)
    tensors, values = read_tensors(tmp_path / FILE)
    old = {key: value for key, value in values.items() if key != "format"}
    write_tensors(tmp_path / FILE, tensors, old)
    with pytest.raises(UserError, match=r"model\.safetensors has format 1, but this version .* reads format 2"):
        load_model(tmp_path)


def test_a_methods_own_tensors_and_values_come_back_beside_the_network(tmp_path: Path) -> None:
    state, own = build(CUT, seed=5).state_dict(), {"statistics.2.units.3.bn1.running_mean": torch.rand(4)}
    info = ModelInfo(CUT.to_json(), 1, CLASSES, (0.5,), (0.25,), "", values={"server_half": True})
    save_model(tmp_path / FILE, state | own, info)
    stored = load_model(tmp_path)
    assert stored.values == {"server_half": True}
    assert stored.others.keys() == own.keys()
    assert all(torch.equal(value, own[key]) for key, value in stored.others.items())
    assert all(torch.equal(value, state[key]) for key, value in stored.network.state_dict().items())


def test_a_part_that_lacks_the_exit_at_its_cut_is_no_whole_model(tmp_path: Path) -> None:
    state = build(CUT, seed=5).state_dict()
    save_model(tmp_path / FILE, state, ModelInfo(CUT.to_json(), 0, CLASSES, (0.5,), (0.25,), "", cut=2))
    with pytest.raises(UserError, match="does not hold a whole model"):
        load_model(tmp_path)
