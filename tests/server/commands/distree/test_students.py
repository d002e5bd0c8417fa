"""`python -m server teacher`, `students` and `infer`: from images to the answers of several real devices."""

import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.data import DataConfig, load
from server.__main__ import main
from server.commands.computing import PEAK_LR
from server.commands.distree.students import OPTIONS, READ, own_split
from strategies.distree.exits.policies import RULES
from strategies.distree.model.stored import load_student, load_students, student_file
from strategies.distree.training.central import Schedule
from strategies.registry import all_settings
from tests.support.served import Served, served

IMAGES = ["-c", "data.name=digits", "-c", "network.name=wrn16", "--no-augmentation"]
TEST = 40


@dataclass(frozen=True)
class Trained:
    """Folders of a teacher and of its two students."""

    teacher: Path
    students: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("distree")
    found = Trained(folder / "teacher", folder / "students")
    assert main(["teacher", "--out", str(found.teacher), "--epochs", "8", *IMAGES]) == 0
    arguments = ["--teacher", str(found.teacher), "--out", str(found.students), "--epochs", "6"]
    assert main(["students", *arguments, *IMAGES]) == 0
    return found


@pytest.fixture(scope="module")
def devices(trained: Trained) -> Iterator[Served]:
    with served(trained.students) as found:
        yield replace(
            found,
            arguments=[*found.arguments, "--model", str(trained.students), "--dataset", "digits", "--limit", str(TEST)],
        )


def test_default_rate_is_that_of_the_schedule():
    assert Schedule().lr == PEAK_LR


def test_own_split_is_the_sets_or_a_tenth_of_its_training_images() -> None:
    source = load(DataConfig(limit=100), None)
    train, validation = own_split(source, seed=1)
    assert (len(train), len(validation)) == (90, 10)
    assert own_split(replace(source, validation=source.test), seed=1) == (source.train, source.test)


def test_students_learn_from_the_teacher_and_write_a_report(trained: Trained) -> None:
    teacher = json.loads((trained.teacher / "report.json").read_text())
    report = json.loads((trained.students / "report.json").read_text())
    assert teacher["exits"]["test"][0] > 0.9
    for decided, epochs in ((teacher, 8), (report, 6)):
        assert (decided["seed"], decided["read"]["run.seed"], decided["read"]["data.name"]) == (1, 1, "digits")
        assert decided["schedule"]["epochs"] == epochs
    exits = report["exits"]["test"]
    assert len(exits) == 7
    assert exits[0] > 0.9  # which the mean over the map does not reach
    assert exits[-1] > exits[0]
    stored = load_students(trained.students)
    parts = stored.students.spec.partition
    assert [list(part) for part in parts] == report["partition"]
    assert not set(parts[0]) & set(parts[1])
    assert report["calibrated"]["accuracy"] >= report["last"]["accuracy"] - 0.01
    assert report["calibrated"]["cost"] <= report["last"]["cost"]
    assert set(stored.policies) == {"calibrated", *RULES, "random", "last", "published"}
    for number in (1, 2):
        own = load_student(student_file(trained.students, number))
        assert own.policies["calibrated"] == stored.policies["calibrated"][number]


def test_devices_give_the_answers_of_one_process(trained: Trained, devices: Served, tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    assert main(["infer", *devices.arguments, "--policy", "last", "--deadline", "20", "--json", str(file)]) == 0
    images = json.loads(file.read_text())["images"]
    stored, test = load_students(trained.students), load(DataConfig(), None).test
    rows = [int(image["file"]) for image in images]
    with torch.no_grad():
        expected = stored.students(stored.normalizer(test.inputs[rows]))[-1].argmax(1).tolist()
    assert [int(image["label"]) for image in images] == expected
    assert len(rows) == TEST
    for image in images:
        assert image["exits"] == {"1": 7, "2": 7}
        assert image["missing"] == {}
        assert image["sent"] > 2 * 64
        assert image["received"] > 4 * sum(map(len, stored.students.spec.partition))


def test_infer_compares_policies(trained: Trained, devices: Served, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert (
        main(["infer", *devices.arguments, "--compare", "--deadline", "20", "--batch", "8", "--json", str(file)]) == 0
    )
    rows = {row["policy"]: row for row in json.loads(file.read_text())["policies"]}
    assert set(rows) == {"calibrated", *RULES, "random", "last", "published", "oracle"}
    assert rows["last"]["share_of_full_macs"] == 1
    assert all(0 < row["share_of_full_macs"] <= 1 for row in rows.values())
    assert rows["oracle"]["accuracy"] >= max(row["accuracy"] for row in rows.values())
    assert rows["random"]["share_of_full_macs"] < 1
    for row in rows.values():
        assert all(sum(counts.values()) == TEST for counts in row["histogram"].values())


def test_latency_target_moves_devices_to_cheaper_exits(
    trained: Trained, devices: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.json"
    assert main(["infer", *devices.arguments, "--target-ms", "0.01", "--deadline", "20", "--json", str(file)]) == 0
    images = json.loads(file.read_text())["images"]
    exits = [image["exits"][k] for image in images for k in ("1", "2")]
    assert exits[:2] == [7, 7]  # the ladder begins at the last exits
    assert sum(exits[-20:]) / 20 < 5  # the features of some samples never differ enough to leave
    assert "rungs of the ladder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--policy", "best"],
            "choose one of calibrated, difference, entropy, gate, last, own-head, published, random",
        ),
        (["--deadline", "0"], "give seconds above 0"),
        (["--student", "3=127.0.0.1:1"], "with a student's NUMBER (1, 2)"),
        (["--student", "127.0.0.1:1"], "write NUMBER=VALUE"),
        (["--target-ms", "0"], "latency target must be above 0"),
    ],
)
def test_infer_refuses_a_mistake_with_2_and_one_line(
    arguments: list[str], message: str, trained: Trained, devices: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["infer", *devices.arguments, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_compare_refuses_images_of_unknown_class(
    trained: Trained, devices: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    given = devices.arguments[: devices.arguments.index("--dataset")]
    assert main(["infer", *given, "--images", str(tmp_path), "--compare"]) == 2
    assert "needs the class of every image" in capsys.readouterr().err


def test_infer_reports_a_killed_device(
    trained: Trained, devices: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    devices.processes[2].kill()
    devices.processes[2].wait()
    file = tmp_path / "answers.json"
    assert main(["infer", *devices.arguments, "--policy", "last", "--deadline", "5", "--json", str(file)]) == 0
    images = json.loads(file.read_text())["images"]
    assert all(image["exits"] == {"1": 7, "2": None} and image["missing"]["2"] for image in images)
    assert "student 2 is missing in 40 answers" in capsys.readouterr().out


def test_students_are_as_wide_as_the_declared_devices_allow(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--teacher", str(trained.teacher), "--out", str(tmp_path / "new"), "--epochs", "1", *IMAGES]
    # a student twice as wide costs 3.8 times as much, one of three times the width 8.4 times
    devices = ["-c", "distree.devices=memory=64MB,compute=5GFLOPS;low", "-c", "data.limit=300"]
    assert main(["students", *arguments, *devices]) == 0
    spec = load_students(tmp_path / "new").students.spec
    assert [backbone.width for backbone in spec.backbones] == [2, 1]
    assert spec.devices == ("memory=64MB,compute=5GFLOPS", "low")
    assert len(spec.partition[0]) > len(spec.partition[1])
    shown = capsys.readouterr().out
    assert "student 1, for memory=64MB,compute=5GFLOPS: width 2, since width 3 would take" in shown
    assert "student 2, for low: width 1, since width 2 would take 12.86 ms an image, more than the slowest" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["students", "--teacher", "absent", "--out", "new", "-c", "distree.devices=auto;low"], "measure the server"),
        (["students", "--teacher", "absent", "--out", "new"], "no model in absent"),
        (["teacher", "--out", "new", "--epochs", "0"], "epochs"),
        (
            ["teacher", "--out", "new", "-c", "train.epochs=7", "-c", "train.momentum=0", "-c", "run.seed=2"],
            "`server teacher` does not read train.epochs (use --epochs), train.momentum: remove",
        ),
        (["teacher", "--out", "new", "-c", "distree.beta=7"], "`server teacher` does not read distree.beta: remove"),
        (
            ["students", "--teacher", "absent", "--out", "new", "-c", "distree.beta=7", "-c", "distree.public=digits"],
            "`server students` does not read distree.public: remove",
        ),
        (["teacher", "--out", "new", "-c", "data.limit=4"], "data.name 'digits' has 4 training images here, too few"),
        (["teacher", "--out", ".", "-c", "data.name=digits"], "is not empty"),
        (["teacher", "--out", "something"], "--out something cannot be used as a folder: File exists"),
        (["teacher", "--out", "something/new"], "--out something/new cannot be used as a folder: Not a directory"),
        (["teacher", "--out", "/proc/new"], "--out /proc/new cannot be used as a folder"),
        (["teacher", "--out", "new", "-c", "data.name=bbc_news", "-c", "network.name=transformer4"], "images"),
    ],
)
def test_training_refuses_a_mistake_before_it_starts(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "something").touch()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_read_keys_and_replaced_keys_exist() -> None:
    known = load_config({}, all_settings()).flat()
    assert set().union(*READ.values(), OPTIONS) <= set(known)
    assert not set().union(*READ.values()) & set(OPTIONS)


def test_preset_may_have_keys_that_training_does_not_read(tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text("[train]\nepochs = 7\n[data]\nlimit = 100\n[network]\nname = 'wrn16'\n")
    assert main(["teacher", "--out", str(tmp_path / "new"), "--epochs", "1", "--preset", str(preset)]) == 0


def test_training_refuses_an_unwritable_folder_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("server.commands.distree.students.TemporaryFile", refuse)  # an administrator may write anywhere
    monkeypatch.setattr("server.commands.distree.students.train_teacher", lambda *_: pytest.fail("training started"))
    assert main(["teacher", "--out", str(tmp_path)]) == 2
    assert "cannot be used as a folder: Permission denied" in capsys.readouterr().err


def test_students_refuse_a_teacher_of_other_images(trained: Trained, tmp_path: Path, data_root: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["--teacher", str(trained.teacher), "--out", str(tmp_path / "new"), "-c", "network.name=wrn16"]
    tiny = ["-c", "data.name=cifar10", "-c", f"data.root={data_root / 'cifar10_tiny'}"]
    assert main(["students", *arguments, *tiny]) == 2
    assert "was trained on images (1, 8, 8) of 10 classes" in capsys.readouterr().err
