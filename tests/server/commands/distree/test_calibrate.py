"""`python -m server calibrate`: students get operating points that meet their targets on validation images."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.app import app
from common.data import DataConfig, client_split, load
from common.data.clients import Population
from common.data.images import SampleSet
from common.flower.local_grid import LocalGrid
from server.__main__ import main
from server.commands.distree import calibrate
from server.commands.distree.students import VALIDATION
from server.execution import prepare
from strategies.callbacks.run_folder import RunFolder
from strategies.distree.exits.calibration import Answers, operate
from strategies.distree.exits.policies import FeatureDifference, Gate, LastExit, OwnHead, ScorePolicy
from strategies.distree.model.stored import StoredStudents, load_student, load_students, save_students, student_file
from strategies.distree.serving.timing import time_exits
from strategies.distree.training.finish import measure
from tests.support.served import Served, served

IMAGES = ["-c", "data.name=digits", "-c", "server.device=cpu"]
LAST = {1: LastExit(7), 2: LastExit(7)}
DEADLINE = ["--deadline", "20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    training = [*IMAGES, "-c", "network.name=wrn16", "--no-augmentation"]
    assert main(["teacher", "--out", str(folder / "teacher"), "--epochs", "4", *training]) == 0
    arguments = ["--teacher", str(folder / "teacher"), "--out", str(folder / "students"), "--epochs", "6"]
    assert main(["students", *arguments, *training]) == 0
    return folder / "students"


@pytest.fixture
def students(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "students")


@pytest.fixture(scope="module")
def validation() -> SampleSet:
    train = load(DataConfig(), None).train
    return train.subset(client_split(range(len(train)), VALIDATION, 1, 0).validation)


@pytest.fixture(scope="module")
def answers(trained: Path, validation: SampleSet) -> Answers:
    """The students' answers to the validation images, with MACs as costs."""
    stored = load_students(trained)
    return measure(stored.students, validation, stored.normalizer, torch.device("cpu"))


@pytest.fixture(scope="module")
def devices(trained: Path) -> Iterator[Served]:
    with served(trained, ["--slowdown", "3"]) as found:
        yield found


def full(answers: Answers) -> float:
    return sum(costs[-1] for costs in answers.costs.values())


def same_but_for_policies(one: StoredStudents, other: StoredStudents) -> bool:
    weights, others = one.students.state_dict(), other.students.state_dict()
    return (
        all(torch.equal(weights[key], others[key]) for key in weights | others)
        and all(torch.equal(one.means[k], other.means[k]) for k in one.means)
        and (one.students.spec, one.classes, one.ladder, one.ladder_costs, one.run)
        == (other.students.spec, other.classes, other.ladder, other.ladder_costs, other.run)
    )


def test_calibrate_keeps_an_accuracy_loss_at_fewer_macs(students: Path, answers: Answers, capsys) -> None:
    before = load_students(students)
    assert main(["calibrate", "--model", str(students), *IMAGES, "--accuracy-loss", "0.05"]) == 0
    stored = load_students(students)
    point, last = operate(stored.policies["loss-0.05"], answers), operate(LAST, answers)
    assert point.loss + point.loss_error <= 0.05
    assert point.cost < last.cost
    shown = capsys.readouterr().out
    for found in (f"{100 * last.accuracy:.1f} %", f"{100 * point.accuracy:.1f} %", f"{point.cost / 1e6:.2f}"):
        assert found in shown
    assert "on 144 validation images" in shown
    assert "p99" not in shown
    assert "--student 1=HOST:PORT --student 2=HOST:PORT --token-file FILE --dataset digits" in shown
    assert "--policy loss-0.05" in shown
    # everything else is unchanged, in the devices' files too
    assert same_but_for_policies(before, stored)
    assert {**before.policies, "loss-0.05": stored.policies["loss-0.05"]} == stored.policies
    for number in (1, 2):
        own = load_student(student_file(students, number)).policies
        assert own == {name: chosen[number] for name, chosen in stored.policies.items()}


def test_looser_targets_cost_less_and_tighter_ones_lose_accuracy(students: Path, answers: Answers) -> None:
    for target in (["--accuracy-loss", "0"], ["--accuracy-loss", "0.2"], ["--macs", "0.9"], ["--macs", "0.25"]):
        assert main(["calibrate", "--model", str(students), *IMAGES, *target]) == 0
    points = {name: operate(chosen, answers) for name, chosen in load_students(students).policies.items()}
    assert points["loss-0.2"].cost < points["loss-0"].cost
    assert points["macs-0.9"].cost <= 0.9 * full(answers)
    assert points["macs-0.25"].cost <= 0.25 * full(answers)
    assert points["macs-0.25"].accuracy < points["macs-0.9"].accuracy


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ([], OwnHead), (["-c", "distree.exit-rule=difference"], FeatureDifference),
        (["-c", "distree.exit-rule=gate"], Gate),
    ],
)  # fmt: skip
def test_calibrate_fits_the_rule(students: Path, given: list[str], kind: type[ScorePolicy]) -> None:
    assert main(["calibrate", "--model", str(students), *IMAGES, "--macs", "0.6", *given]) == 0
    assert {type(policy) for policy in load_students(students).policies["macs-0.6"].values()} == {kind}


def test_students_without_a_gate_get_one(students: Path, devices: Served, capsys) -> None:
    """As students that were stored before there were gates."""
    stored = load_students(students)
    save_students(students, replace(stored, policies={k: v for k, v in stored.policies.items() if k != "gate"}))
    infer = ["infer", "--model", str(students), *devices.arguments, *DEADLINE, "--dataset", "digits", "--limit", "10"]
    assert main([*infer, "--policy", "gate"]) == 2
    error = capsys.readouterr().err
    assert "--policy gate: choose one of calibrated, difference, entropy, last" in error
    assert "fit one by `python -m server calibrate ... -c distree.exit-rule=gate`" in error
    by_gate = [*IMAGES, "--macs", "0.6", "-c", "distree.exit-rule=gate", "--name", "gated"]
    assert main(["calibrate", "--model", str(students), *by_gate]) == 0
    again = load_students(students).policies
    for one, other in zip(again["gated"].values(), stored.policies["gate"].values(), strict=True):
        assert isinstance(one, Gate)
        assert isinstance(other, Gate)
        torch.testing.assert_close(torch.tensor(one.weights), torch.tensor(other.weights), rtol=1e-3, atol=1e-3)
    assert main([*infer, "--compare"]) == 0
    assert "gated" in capsys.readouterr().out


def test_calibrate_names_the_closest_value_to_an_impossible_share(students: Path, capsys) -> None:
    files = {path: path.read_bytes() for path in students.iterdir()}
    assert main(["calibrate", "--model", str(students), *IMAGES, "--macs", "0.001"]) == 2
    error = capsys.readouterr().err
    assert "--macs 0.001 cannot be met, so nothing is stored: the closest is 0." in error
    assert {path: path.read_bytes() for path in students.iterdir()} == files
    closest = error.split("the closest is ")[1].split(",")[0]
    assert main(["calibrate", "--model", str(students), *IMAGES, "--macs", closest]) == 0
    assert f"macs-{float(closest):g}" in load_students(students).policies


def test_calibrate_does_not_overwrite_other_students(students: Path, capsys) -> None:
    (students / "students.safetensors").rename(students / "old.safetensors")
    (students / "students.safetensors").write_bytes(b"others")
    files = {path: path.read_bytes() for path in students.iterdir()}
    assert main(["calibrate", "--model", str(students / "old.safetensors"), *IMAGES, "--macs", "0.5"]) == 2
    assert "old.safetensors: calibrate would write another students.safetensors beside it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in students.iterdir()} == files


def test_calibrate_replaces_calibrated_by_name(students: Path, answers: Answers) -> None:
    before = load_students(students).policies
    assert main(["calibrate", "--model", str(students), *IMAGES, "--macs", "0.5", "--name", "calibrated"]) == 0
    after = load_students(students).policies
    assert operate(after["calibrated"], answers).cost <= 0.5 * full(answers) < operate(LAST, answers).cost
    assert after.keys() == before.keys()
    assert {k: v for k, v in after.items() if k != "calibrated"} == {
        k: v for k, v in before.items() if k != "calibrated"
    }
    assert load_student(student_file(students, 2)).policies["calibrated"] == after["calibrated"][2]


def test_calibrate_refuses_reserved_names(students: Path, capsys) -> None:
    for name in {*load_students(students).policies, "entropy", "oracle"} - {"calibrated"}:
        assert main(["calibrate", "--model", str(students), *IMAGES, "--macs", "0.5", "--name", name]) == 2
        assert f"--name {name} is reserved for comparisons" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--latency-ms", pytest.param("--p99-ms", marks=pytest.mark.slow)])
def test_calibrate_keeps_latencies_of_real_devices(
    option: str, students: Path, answers: Answers, devices: Served, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    times: list[dict[int, torch.Tensor]] = []

    def timed(*arguments) -> dict[int, torch.Tensor]:  # type: ignore[no-untyped-def]
        times.append(times[0] if times else time_exits(*arguments))  # on a loaded machine times differ between calls
        return times[-1]

    monkeypatch.setattr(calibrate, "time_exits", timed)
    common = ["calibrate", "--model", str(students), *IMAGES, *devices.arguments, *DEADLINE, option]
    assert main([*common, "0.0001"]) == 2
    error = capsys.readouterr().err
    assert f"{option} 0.0001 cannot be met" in error
    closest = float(error.split("the closest is ")[1].split(",")[0])
    assert all(taken[-1].mean() > taken[0].mean() > 0 for taken in times[0].values())

    seconds = replace(answers, seconds=times[0])
    measure = "slowest_mean" if option == "--latency-ms" else "slowest_p99"
    last = getattr(operate(LAST, seconds), measure)
    slowest = torch.stack([times[0][k][-1] for k in (1, 2)]).amax(0).sort().values
    assert last == pytest.approx(float(slowest.mean() if option == "--latency-ms" else slowest[-2]))
    target = (closest + 1000 * last) / 2
    assert main([*common, str(target), "--name", "quick"]) == 0
    point = operate(load_students(students).policies["quick"], seconds)
    assert getattr(point, measure) <= target / 1000 < last
    shown = capsys.readouterr().out
    for found in (f"{1000 * last:.2f}", f"{1000 * point.slowest_mean:.2f}", f"{1000 * point.slowest_p99:.2f}"):
        assert found in shown
    assert " ".join(devices.arguments) in shown


def test_devices_follow_stored_policies_and_are_timed(
    students: Path, answers: Answers, devices: Served, tmp_path: Path, capsys
) -> None:
    model = ["--model", str(students), *devices.arguments, *DEADLINE]
    assert main(["calibrate", *model, *IMAGES, "--macs", "0.5", "--name", "half"]) == 0
    assert "p99 ms" in capsys.readouterr().out
    infer = ["infer", *model, "--dataset", "digits", "--limit", "10"]
    assert main([*infer, "--policy", "half"]) == 0
    assert main([*infer, "--compare"]) == 0
    assert "half" in capsys.readouterr().out


def test_calibrate_takes_validation_images_from_a_runs_configuration(
    flat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path, capsys
) -> None:
    changes = {
        "run.strategy": "distree", "distree.teacher": str(trained.parent / "teacher"), "network.name": "wrn16",
        "network.width": 1, "clients.mix": "equal", "run.root": str(tmp_path / "runs"), "run.seed": 3,
        "data.limit": 300, "data.validation": 0.25, "run.rounds": 1,
    }  # fmt: skip
    strategy = prepare({**flat, **changes})
    strategy.callbacks = [callback for callback in strategy.callbacks if isinstance(callback, RunFolder)]
    strategy.start(LocalGrid(app, [{"partition-id": 0}]))
    folder = tmp_path / "runs" / "test"
    used: list[SampleSet] = []
    fits: Callable[..., Answers] = calibrate.measure
    monkeypatch.setattr(calibrate, "measure", lambda *given: used.append(given[1]) or fits(*given))
    for path, name in ((folder, "a"), (folder / "final", "b"), (folder / "final" / "students.safetensors", "c")):
        assert main(["calibrate", "--model", str(path), "--macs", "0.6", "--name", name]) == 0
        assert name in load_students(folder).policies
    data = DataConfig(limit=300, validation=0.25)
    expected = load(data, None).train.subset(Population(data, 6, 3).validation())
    assert all(torch.equal(images.inputs, expected.inputs) for images in used)
    # other images are refused
    assert main(["calibrate", "--model", str(folder), "--macs", "0.6", "-c", "run.seed=4"]) == 2
    assert "these are not the validation images of the students' training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accuracy-loss", "-0.1"], "--accuracy-loss -0.1: give 0 or more"),
        (["--accuracy-loss", "nan"], "give 0 or more"),
        (["--macs", "0"], "--macs 0: give a share above 0"),
        (["--macs", "1.1"], "--macs 1.1: give a share above 0"),
        (["--latency-ms", "0"], "--latency-ms 0: give milliseconds above 0"),
        (["--p99-ms", "inf"], "--p99-ms inf: give milliseconds above 0"),
        (["--macs", "0.5", "--name", "../x"], "use letters, digits"),
        (["--latency-ms", "5"], "give --student NUMBER=HOST:PORT for each student"),
        (["--p99-ms", "5", "--student", "1=127.0.0.1:1"], "give --student NUMBER=HOST:PORT for each student"),
        (["--latency-ms", "5", "--student", "3=127.0.0.1:1"], "with a student's NUMBER (1, 2)"),
        (["--macs", "0.5", "--student", "1=127.0.0.1:1"], "--student needs --token-file"),
        (["--macs", "0.5", "-c", "run.seed=2"], "these are not the validation images of the students' training"),
        (["--macs", "0.5", "-c", "data.limit=1400"], "these are not the validation images of the students' training"),
        (
            ["--macs", "0.5", "-c", "distree.max-accuracy-loss=0.02"],
            "`server calibrate` does not read distree.max-accuracy-loss (use --accuracy-loss): remove",
        ),
        (["--macs", "0.5", "-c", "data.limit=4"], "no validation images to calibrate on"),
        (
            ["--macs", "0.5", "-c", "data.image-size=16"],
            "the students take images (1, 8, 8) of 10 classes, but data.name 'digits' has (1, 16, 16)",
        ),
        (["--macs", "0.5", "--model", "absent"], "no students in absent"),
    ],
)
def test_calibrate_refuses_a_mistake_with_2_and_one_line(
    arguments: list[str], message: str, trained: Path, capsys
) -> None:
    files = {path: path.read_bytes() for path in trained.iterdir()}
    assert main(["calibrate", "--model", str(trained), *IMAGES, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in trained.iterdir()} == files


@pytest.mark.parametrize("targets", [[], ["--macs", "0.5", "--accuracy-loss", "0.01"]])
def test_calibrate_needs_exactly_one_target(targets: list[str], trained: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", "--model", str(trained), *targets])
    assert ended.value.code == 2
