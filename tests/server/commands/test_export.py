"""`python -m server export` of a real run, a device's part and students."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from client.app import app
from client.runtimes.with_onnx import OnnxNetwork, OnnxStudent
from common.config import Value
from common.data.clients import Population
from common.data.images import SampleSet
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.networks import NetworkSpec, build
from common.onnx.export import make_graphs
from common.onnx.folder import FILE, read_exported
from common.storage.model_file import load_model
from server.__main__ import main
from server.execution import prepare
from strategies.configuration import read_config
from strategies.distree.exits.policies import policy_from_json
from tests.conftest import small_configuration
from tests.strategies.distree.devices import EXITS, Tiny


def finished(folder: Path, **changes: Value) -> Path:
    settings = {
        **small_configuration(folder), "run.root": str(folder / "runs"), "server.evaluate-every": 2,
        "network.exits": "1,3", "clients.mix": "equal", **changes,
    }  # fmt: skip
    prepare(settings).start(LocalGrid(app, [{"partition-id": 0}]))
    return folder / "runs" / "test"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("export"))


def test_a_run_is_exported_beside_its_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", str(run)]) == 0
    printed = capsys.readouterr().out
    assert f"python -m client infer --model {run / 'onnx'} --images FOLDER" in printed
    folder, exported = read_exported(run / "onnx", ("network",))
    model = load_model(run)
    assert (exported.run, exported.network, exported.classes) == ("test", "lenet", tuple("0123456789"))
    assert exported.exit_policy() == model.policy
    assert (exported.exits, exported.quantization) == ((1, 3), None)
    assert exported.largest_difference < 1e-4
    assert sorted(file.name for file in folder.iterdir()) == [FILE, "segment-1.onnx", "segment-2.onnx"]
    other = folder / "notes.txt"
    other.write_text("mine")
    assert main(["export", "--model", str(run)]) == 0  # an older export is replaced, other files stay
    assert other.read_text() == "mine"


def test_int8_is_fitted_on_validation_samples_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used: list[SampleSet] = []
    validation = Population.server_validation

    def watched(self: Population) -> SampleSet:
        used.append(validation(self))
        return used[-1]

    monkeypatch.setattr(Population, "server_validation", watched)
    out = tmp_path / "small"
    assert main(["export", "--model", str(run), "--quantize", "int8", "--out", str(out)]) == 0
    _, exported = read_exported(out, ("network",))
    found = exported.quantization
    assert found is not None
    config = read_config({**small_configuration(tmp_path), "clients.mix": "equal"})
    indices = Population(config.data, 6, config.run.seed).validation()
    assert found.samples == len(used[0]) == len(indices)
    model = load_model(run)
    with torch.no_grad():
        logits = torch.stack(model.network(model.normalizer(used[0].inputs)))
    accuracy = (logits.argmax(-1) == used[0].labels).double().mean(-1)
    assert found.accuracy_fp32 == pytest.approx(accuracy.tolist())
    network = OnnxNetwork.open(out, 1, split=False)
    inference = network.infer(used[0].inputs.numpy(), network.policy)
    right = (torch.from_numpy(inference.logits.argmax(-1)) == used[0].labels).double().mean().item()
    assert found.policy_accuracy == pytest.approx(right, abs=0.03)  # ranges round by the batch's last bits
    printed = capsys.readouterr().out
    assert f"int8 on {found.samples} validation samples, accuracy exit 1: " in printed


def test_a_devices_half_in_int8_takes_its_runs_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(
        tmp_path, **{"run.strategy": "hetero_splitee", "network.exits": "", "splitee.cuts": "2", "run.rounds": 1}
    )
    part = tmp_path / "clients" / "test" / "client-000001"
    assert main(["export", "--model", str(run)]) == 2
    assert "is the server's half of a split network: export the folder client-..." in capsys.readouterr().err
    assert main(["export", "--model", str(part), "--quantize", "int8"]) == 2
    assert "give --run-folder" in capsys.readouterr().err
    assert main(["export", "--model", str(part), "--quantize", "int8", "--run-folder", str(run)]) == 0
    folder, exported = read_exported(part / "onnx", ("split",))
    assert (exported.kind, exported.cut, exported.run) == ("split", 2, "test")
    assert exported.exit_policy().measure == "entropy"
    assert exported.quantization is not None
    assert "--mode split --server HOST:PORT" in capsys.readouterr().out
    assert OnnxNetwork.open(folder, 1, split=True).feature_shape == exported.feature_shape != ()


def test_an_export_that_fails_leaves_the_older_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "--model", str(run), "--out", str(tmp_path)]
    (tmp_path / "segment-9.onnx").write_bytes(b"of an export that was not finished")
    assert main(arguments) == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(before) == [FILE, "segment-1.onnx", "segment-2.onnx"]
    monkeypatch.setattr("common.onnx.export.MADE_BY", ("no_such_package",))
    assert main(arguments) == 2
    assert "needs the package 'no_such_package'" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_run_folder_without_quantize_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", str(run), "--run-folder", str(run)]) == 2
    assert f"--run-folder {run} is for --quantize" in capsys.readouterr().err


class Conditional(nn.Sequential):
    """A unit with a condition on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


def test_a_unit_that_cannot_be_exported_is_named() -> None:
    network = build(NetworkSpec("lenet", 10, (1, 8, 8)), 0).eval()
    network.units["1"] = Conditional(network.units["1"])
    with pytest.raises(UserError, match=r"unit 1 cannot be exported \(Could not guard on data-dependent[^\n]*$"):
        make_graphs(network, features=False)


@pytest.mark.slow
def test_students_are_exported_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = Tiny(tmp_path)
    assert main(["export", "--model", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert f"python -m client serve-student --model {tmp_path / 'out' / 'student-2'}" in capsys.readouterr().out
    for number in (1, 2):
        one, other = tiny.student(number), OnnxStudent.open(tmp_path / "out" / f"student-{number}", 1)
        assert (other.run, other.number, other.num_exits) == ("tiny", number, EXITS)
        assert other.policies == one.policies
        features = torch.rand(4, one.network.num_classes)
        expected = one.classify(3, features).numpy()
        assert other.classify(3, features.numpy()) == pytest.approx(expected, abs=1e-5)
        expected = one.classify(3, features, own=True).numpy()
        assert expected.any()
        assert other.classify(3, features.numpy(), own=True) == pytest.approx(expected, abs=1e-5)
    _, exported = read_exported(tmp_path / "out" / "student-1", ("student",))
    assert exported.student is not None
    assert {name: policy_from_json(json.dumps(v)) for name, v in exported.student.policies.items()} == one.policies
    assert main(["export", "--model", str(tmp_path), "--quantize", "int8"]) == 2
    assert "export students without it" in capsys.readouterr().err


def test_a_folder_with_other_files_is_left_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter").write_text("mine")
    for out, message in ((tmp_path, "holds other files"), (tmp_path / "letter", "is a file")):
        assert main(["export", "--model", str(run), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "letter").read_text() == "mine"
    assert main(["export", "--model", str(tmp_path / "absent")]) == 2
    assert "no model in" in capsys.readouterr().err
