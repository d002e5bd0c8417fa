"""An exported network answers as torch does, computes only the samples that have not left, and refuses damage."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.runtimes.base import warm_up
from client.runtimes.with_onnx import OnnxNetwork, OnnxStudent
from client.runtimes.with_torch import TorchNetwork
from common.errors import UserError
from common.networks import NetworkSpec
from common.onnx.folder import FILE, describe
from tests.support.exported import CPU, assert_same, both, samples, stored

SLIM = NetworkSpec("resnet_slim", 5, (1, 8, 8), width=4, ensemble=0.2)
SMALL = {
    "resnet_slim": SLIM,
    "resnet18": NetworkSpec("resnet18", 5, (3, 8, 8), width=4, exits=(5, 9)),
    "wrn16": NetworkSpec("wrn16", 5, (3, 8, 8), exits=(3, 7)),
    "convnet": NetworkSpec("convnet", 5, (3, 22, 22), width=4, exits=(1, 3)),
    "lenet": NetworkSpec("lenet", 5, (1, 28, 20), exits=(1, 3)),
    "transformer4": NetworkSpec("transformer4", 4, (12,), vocabulary=100, width=16, exits=(3, 5), lora_rank=2),
    "resnet_slim by groups": NetworkSpec("resnet_slim", 5, (1, 8, 8), exits=(3, 5), norm="group"),
    "wrn16 by groups": NetworkSpec("wrn16", 5, (3, 8, 8), exits=(3, 7), norm="group"),
    "recurrent exits": NetworkSpec("lenet", 5, (1, 12, 12), recurrent=8),
}
LARGE = {
    "vit_small32": NetworkSpec("vit_small32", 5, (3, 32, 32), ensemble=0.2),
    "deit_tiny with LoRA": NetworkSpec("deit_tiny", 5, (3, 32, 32), lora_rank=4),
    "wrn16 with all exits": NetworkSpec("wrn16", 10, (3, 32, 32), width=2),
    "resnet18 at full width": NetworkSpec("resnet18", 10, (3, 32, 32)),
    "transformer4 at full width": NetworkSpec("transformer4", 4, (32,), vocabulary=32_000),
}


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported ensemble of four exits."""
    out = tmp_path_factory.mktemp("slim")
    both(stored(SLIM), out)
    return out


@pytest.mark.parametrize("name", [name for name in SMALL if name != "resnet_slim"])
def test_every_backbone_answers_as_torch_does(name: str, tmp_path: Path) -> None:
    one, other = both(stored(SMALL[name]), tmp_path)
    inputs = samples(SMALL[name], 21, seed=2)
    assert_same(one, other, inputs)
    assert len(set(one.infer(inputs, one.policy).exits.tolist())) > 1
    assert (other.classes, other.takes, other.macs) == (one.classes, one.takes, one.macs)


def test_divided_maps_with_smaller_squares_at_their_edges_answer_as_torch_does(tmp_path: Path) -> None:
    spec = NetworkSpec("wrn16", 5, (3, 18, 13), exits=(1, 4, 7), pooling="squares")
    one, other = both(stored(spec), tmp_path)
    assert_same(one, other, samples(spec, 9, seed=2))


@pytest.mark.parametrize("name", ["vit_small32", "deit_tiny"])
def test_vision_transformers_first_blocks_answer_as_torch_does(name: str, tmp_path: Path) -> None:
    spec = NetworkSpec(name, 5, (3, 16, 16), exits=(2, 13), lora_rank=2 * (name == "deit_tiny"))
    one, other = both(stored(spec, depth=1), tmp_path)
    assert_same(one, other, samples(spec, 9, seed=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_whole_networks_answer_as_torch_does(name: str, tmp_path: Path) -> None:
    one, other = both(stored(LARGE[name]), tmp_path)
    inputs = samples(LARGE[name], 40, seed=2)
    assert_same(one, other, inputs)
    assert len(set(one.infer(inputs, one.policy).exits.tolist())) > 1


def test_in_an_ensemble_earlier_logits_travel(slim: Path) -> None:
    one, other = TorchNetwork(stored(SLIM), CPU), OnnxNetwork.open(slim, 1, split=False)
    assert_same(one, other, samples(SLIM, 30, seed=2), (1, 7, 30))
    inputs = [[each.name for each in session.get_inputs()] for session in other.graphs.sessions]
    assert inputs == [["input"], *[["input", "carried"]] * 3]


@pytest.mark.parametrize("size", [1, 8])
def test_a_segment_computes_only_what_has_not_left(slim: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = OnnxNetwork.open(slim, 1, split=False)
    computed: Counter[int] = Counter()  # segment -> samples
    for index, session in enumerate(network.graphs.sessions):

        def counted(names: Any, feed: dict[str, Any], *, run: Any = session.run, index: int = index) -> Any:
            computed[index] += len(feed["input"])
            return run(names, feed)

        monkeypatch.setattr(session, "run", counted)
    inputs = samples(SLIM, 32)
    exits = [
        e for start in range(0, 32, size) for e in network.infer(inputs[start : start + size], network.policy).exits
    ]
    assert computed == Counter(segment for exit_ in exits for segment in range(exit_ + 1))
    assert len(set(exits)) > 1
    computed.clear()
    warm_up(network)
    assert computed == dict.fromkeys(range(4), 1)


def test_a_prefix_leaves_by_the_whole_networks_thresholds(tmp_path: Path) -> None:
    spec = NetworkSpec("lenet", 5, (1, 12, 12))
    one, other = both(stored(spec, depth=2), tmp_path)
    assert_same(one, other, samples(spec, 20, seed=3))
    assert len(other.macs) == 2


def test_a_devices_half_gives_features_and_logits(tmp_path: Path) -> None:
    one, other = both(stored(SLIM, cut=3), tmp_path)
    other = OnnxNetwork.open(tmp_path, 2, split=True)
    assert (other.cut, other.run, other.policy) == (3, "a run", one.policy)
    assert other.feature_shape == one.feature_shape == (8, 4, 4)
    inputs = samples(SLIM, 6, seed=2)
    here, there = one.half(inputs), other.half(inputs)
    np.testing.assert_allclose(there.logits, here.logits, atol=1e-4, rtol=0)
    np.testing.assert_allclose(there.features, here.features, atol=1e-4, rtol=0)


def test_a_network_is_no_half_and_no_student(slim: Path) -> None:
    with pytest.raises(UserError, match="is a network that answers alone: give a device's half of a split network"):
        OnnxNetwork.open(slim, 1, split=True)
    with pytest.raises(UserError, match="is a network that answers alone: give a student"):
        OnnxStudent.open(slim, 1)


def missing(folder: Path) -> None:
    (folder / "segment-2.onnx").unlink()


def short(folder: Path) -> None:
    (folder / "segment-2.onnx").write_bytes((folder / "segment-2.onnx").read_bytes()[:-1])


def changed(folder: Path) -> None:
    content = bytearray((folder / "segment-2.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "segment-2.onnx").write_bytes(content)


def exchanged(folder: Path) -> None:
    """Segments that fit their digests, in another order."""
    values = json.loads((folder / FILE).read_text())
    values["segments"][1]["file"], values["segments"][2]["file"] = "segment-3.onnx", "segment-2.onnx"
    for segment in values["segments"]:
        segment.update(describe(segment["file"], (folder / segment["file"]).read_bytes()))
    (folder / FILE).write_text(json.dumps(values))


def no_graph(folder: Path) -> None:
    (folder / "segment-1.onnx").write_bytes(b"no graph")
    values = json.loads((folder / FILE).read_text())
    values["segments"][0] |= describe("segment-1.onnx", b"no graph")
    (folder / FILE).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (missing, "segment-2.onnx cannot be read .* copy the whole folder"),
        (short, "has .* bytes instead of"),
        (changed, "its digest differs"),
        (exchanged, "does not fit model.json"),
        (no_graph, "cannot be used by onnxruntime"),
    ],
)
def test_damage_is_refused(slim: Path, tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    for file in slim.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    OnnxNetwork.open(tmp_path, 1, split=False)
    harm(tmp_path)
    with pytest.raises(UserError, match=message):
        OnnxNetwork.open(tmp_path, 1, split=False)
