"""`python -m server study` and `compare`: real runs of a second, killed, continued, summed up."""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from common.data import support
from common.flower.processes import PROJECT
from common.storage.run_files import read_events
from server.__main__ import main
from server.commands import compare
from server.study.plan import Study
from tests.support.deployment import wait_until

SMALL = """
methods = ["eefl", "joint"]
seeds = [1, 2]
[settings]
network.name = "lenet"
data.limit = 200
clients.count = 4
clients.per-round = 4
run.rounds = {rounds}
[variants.joint]
run.strategy = "fedprox"
fedprox.mu = 0.5
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the study's file; its runs lie beside it."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    path = tmp_path / "small.toml"
    path.write_text(SMALL.format(rounds=2))
    return path


def test_study_shows_means_over_seeds_and_keeps_what_is_finished(study: Path, tmp_path: Path, capfd) -> None:
    saved = tmp_path / "saved.json"
    assert main(["study", str(study), "--in-process", "--parallel", "2", "--save", str(saved)]) == 0
    shown = capfd.readouterr().out
    assert "caution: 2 seeds" in shown
    assert shown.splitlines()[-1].startswith("Early exits save ")
    folder = tmp_path / "runs" / "small"
    content = json.loads(saved.read_text())
    assert content == json.loads((folder / "study.json").read_text())
    assert [(row["variant"], row["seeds"]) for row in content["summary"]] == [("eefl", [1, 2]), ("joint", [1, 2])]
    gain = content["summary"][1]["gain"]
    values = [row["measures"]["mean of exits"]["values"] for row in content["summary"]]
    paired = [values[1][seed] - values[0][seed] for seed in ("1", "2")]
    assert gain["mean"] == pytest.approx(sum(paired) / 2)
    assert gain["seeds"] == 2
    rows = list(csv.DictReader((folder / "cells.csv").open()))
    assert [row["run"] for row in rows] == ["eefl-s1", "joint-s1", "eefl-s2", "joint-s2"]
    assert float(rows[0]["mean of exits"]) == values[0]["1"]
    assert len(list(csv.DictReader((folder / "summary.csv").open()))) == 2
    assert "<svg" in (folder / "study.html").read_text()

    before = (folder / "eefl-s1" / "metrics.jsonl").read_text()
    assert main(["study", str(study), "--in-process"]) == 0
    assert "4 of 4 runs are finished and kept" in capfd.readouterr().out
    assert (folder / "eefl-s1" / "metrics.jsonl").read_text() == before

    assert main(["study", str(study), "--in-process", "-c", "train.lr=0.2"]) == 2
    assert "holds a run with train.lr = 0.05, but this study has 0.2" in capfd.readouterr().err


def test_study_keeps_its_runs_whatever_the_form_of_a_list(study: Path, capfd) -> None:
    arguments = ["study", str(study), "--in-process", "--methods", "eefl", "--seeds", "1", "-c", "run.rounds=1",
                 "-c", "objective.exit-weights=[1, 1, 2]", "-c", "run.trackers=csv, tensorboard"]  # fmt: skip
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert "1 of 1 runs are finished and kept" in capfd.readouterr().out


def test_killed_study_gives_the_same_numbers_when_it_is_started_again(study: Path, tmp_path: Path, capfd) -> None:
    study.write_text(SMALL.format(rounds=12))
    command = [sys.executable, "-m", "server", "study", str(study), "--in-process", "--methods", "eefl", "--seeds", "1"]
    folder = tmp_path / "runs" / "small" / "eefl-s1"

    def rounds() -> int:
        return sum(event["event"] == "round" for event in read_events(folder / "metrics.jsonl"))

    with subprocess.Popen(command, cwd=PROJECT, env=os.environ, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: rounds() >= 2, 120, "no round ended")
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(worker.is_running() for worker in workers), 60, "the run goes on without the study")
    killed_after = rounds()
    assert killed_after < 12
    arguments = ["study", str(study), "--in-process", "--methods", "eefl", "--seeds", "1"]
    assert main(arguments) == 0
    starts = [event["after"] for event in read_events(folder / "metrics.jsonl") if event["event"] == "start"]
    assert len(starts) == 2
    assert starts[1] >= killed_after - 1
    assert main([*arguments, "--name", "whole"]) == 0
    numbers = [
        json.loads((tmp_path / "runs" / name / "study.json").read_text())["cells"] for name in ("small", "whole")
    ]
    assert numbers[0][0]["means"] == numbers[1][0]["means"]


def test_a_variant_with_a_comma_in_its_name_can_be_chosen(study: Path, capfd) -> None:
    study.write_text(study.read_text() + '\n[variants."a, b"]\nrun.strategy = "nothing"\n')
    assert main(["study", str(study), "--in-process", "--methods", 'eefl,"a, b"']) == 2
    assert "run.strategy is 'nothing'" in capfd.readouterr().err


def test_study_goes_on_when_a_run_fails(study: Path, tmp_path: Path, capfd) -> None:
    arguments = ["study", "--methods", "eefl,exclusivefl", "--name", "f", "--in-process", "--seeds", "1", "--grid",
                 "clients.mix=1:0:0,0:0:1".replace(":", "/"), "-c", "network.name=lenet", "-c", "data.limit=200",
                 "-c", "run.rounds=1"]  # fmt: skip
    assert main(arguments) == 1  # without a client of the whole depth, exclusivefl has none
    captured = capfd.readouterr().out
    assert "exclusivefl, clients.mix 1/0/0, seed 1: run exclusivefl-mix-1_0_0-s1 ended as finished:failed" in captured
    found = json.loads((tmp_path / "runs" / "f" / "study.json").read_text())
    assert [(row["variant"], row["point"]) for row in found["summary"]] == [
        ("eefl", {"clients.mix": "1/0/0"}), ("eefl", {"clients.mix": "0/0/1"}),
        ("exclusivefl", {"clients.mix": "0/0/1"}),
    ]  # fmt: skip


def test_compare_is_a_study_of_one_seed(study: Path, tmp_path: Path, capfd) -> None:
    small = ["-c", "network.name=lenet", "-c", "data.limit=200", "-c", "run.rounds=1", "-c", "run.seed=5"]
    assert main(["compare", "--methods", "eefl,median", "--in-process", *small]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"eefl-s5", "median-s5", "logs", ".cache"}
    shown = capfd.readouterr().out
    assert "points over eefl" in shown
    assert "caution" not in shown


@pytest.mark.parametrize("package", ["matplotlib", "scipy"])
def test_study_without_the_packages_of_its_results_does_not_start(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.setattr(support, "find_spec", lambda name: None if name == package else find_spec(name))
    assert main(["study", str(study), "--in-process"]) == 2
    shown = capsys.readouterr().err
    assert f"needs the package {package!r}, which is not installed: pip install -e '.[report]'" in shown
    assert not (tmp_path / "runs").exists()


def test_one_missing_run_has_all_cores(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    @contextmanager
    def simulator(_: argparse.Namespace, at_once: int) -> Iterator[None]:
        asked.append(at_once)
        yield

    monkeypatch.setattr("server.commands.study.simulator", simulator)
    monkeypatch.setattr("server.study.cells.run_cells", lambda cells, parallel, *_: asked.append(parallel) or ())
    assert main(["study", str(study), "--methods", "eefl", "--seeds", "1", "--parallel", "4"]) == 0
    assert asked == [1, 1]


WITHOUT_RUNS = """
import sys
from server.__main__ import main
from server.study import cells
cells.run_cells = lambda *_: ()
sys.exit(main(sys.argv[1:]))
"""


def test_numbers_are_saved_in_any_locale_even_onto_themselves(study: Path, tmp_path: Path) -> None:
    study.write_text(
        SMALL.format(rounds=1).replace("joint", "größer").replace("variants.größer", 'variants."größer"'),
        encoding="utf-8",
    )
    file = tmp_path / "runs" / "small" / "study.json"
    command = [sys.executable, "-c", WITHOUT_RUNS, "study", str(study), "--in-process", "--save", str(file)]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    subprocess.run(command, cwd=PROJECT, env=os.environ | ascii_only, check=True)
    assert "größer" in json.loads(file.read_text(encoding="utf-8"))["variants"]


def test_compare_takes_what_a_preset_says_of_its_method(monkeypatch: pytest.MonkeyPatch) -> None:
    studies: list[Study] = []
    monkeypatch.setattr(compare, "run_study", lambda study, _: studies.append(study) or 0)
    assert main(["compare", "--preset", "cafedistill-published", "--methods", "fedper,cafedistill"]) == 0
    assert studies[0].strategies == ["fedper", "cafedistill"]
    assert studies[0].settings["cafedistill.alpha"] == 0.6


@pytest.mark.slow
@pytest.mark.deployment
def test_study_runs_on_ray(study: Path, tmp_path: Path, capfd) -> None:
    assert main(["study", str(study), "--parallel", "2", "--name", "ray"]) == 0
    assert main(["study", str(study), "--in-process", "--name", "here"]) == 0
    ray, here = (json.loads((tmp_path / "runs" / name / "study.json").read_text()) for name in ("ray", "here"))
    assert [cell["means"] for cell in ray["cells"]] == [cell["means"] for cell in here["cells"]]
