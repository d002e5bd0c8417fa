"""The run folder; a run that was killed (SIGKILL) and continued gives the same bits as a whole one."""

import json
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from client.app import app
from common.config import Value
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.storage.client_store import ClientStore
from common.storage.files import read_tensors
from common.storage.model_file import load_model
from common.storage.run_files import LOCK, read_events
from server.execution import prepare
from strategies.callbacks import run_folder
from strategies.callbacks.run_folder import RunFolder
from strategies.configuration import read_config
from strategies.engine.strategy import EarlyExitStrategy
from tests.support.killing import NODES, rounds, run_and_kill
from tests.support.served import read_line

DARKDISTILL = {
    "run.strategy": "darkdistill", "run.rounds": 4, "clients.per-round": 4, "server.evaluate-every": 2,
    "darkdistill.batch": 8, "darkdistill.generator-channels": 4, "darkdistill.distill-steps": 2,
}  # fmt: skip
LEARNED_WEIGHTS = {"objective.name": "l2w", "objective.l2w-hidden": 4, "objective.l2w-interval": 1}
KEPT_OPTIMIZERS = {"darkdistill.keep-optimizers": True, "darkdistill.matcher": "learned"}
PARALLEL = {"darkdistill.variant": "parallel", "darkdistill.server-lr-decay": 0.9}


@pytest.fixture
def settings(flat: dict[str, Value], tmp_path: Path) -> dict[str, Value]:
    return {**flat, "run.root": str(tmp_path / "runs")}


def run(settings: Mapping[str, Value]) -> EarlyExitStrategy:
    strategy = prepare(settings)
    strategy.start(LocalGrid(app, NODES))
    return strategy


def same(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return every line as JSON; raises for a line that is not JSON."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def round_events(folder: Path) -> list[dict[str, Any]]:
    """Return the rounds' events without what is measured: seconds, and bytes of messages that hold them."""
    events = [line for line in lines(folder) if line["event"] == "round"]
    measured = ("seconds", "traffic", *(["device"] if events[0]["device"]["clock"] == "measured" else []))
    return [{k: v for k, v in event.items() if k not in measured} for event in events]


@pytest.mark.parametrize(
    ("changes", "kills"),
    [
        ({}, [("running", 1), ("checkpoint", 2), ("deliver", 4)]),
        (LEARNED_WEIGHTS, [("store", 3)]),
        pytest.param(KEPT_OPTIMIZERS, [("line", 2)], marks=pytest.mark.slow),
        (PARALLEL, [("half-line", 3)]),
    ],
    ids=["progressive", "l2w", "kept-optimizers-learned-matcher", "parallel"],
)
def test_killed_and_resumed_run_has_the_same_bits(settings, changes, kills):
    settings |= {**DARKDISTILL, **changes}
    root = Path(settings["run.root"])
    whole = run({**settings, "run.name": "whole"})
    reached = {**settings, "run.name": "killed"}
    for moment, round_ in kills:
        run_and_kill(reached, moment, round_)
        reached = {"run.resume": str(root / "killed")}
    resumed = run(reached)
    assert same(resumed.model, whole.model)
    one, two = whole.state_dict(), resumed.state_dict()
    assert any(key.startswith("generator-") for key in one[0])
    assert same(one[0], two[0])
    assert one[1] == two[1]
    assert resumed.committed == whole.committed
    checkpoints = {p.name for p in (root / "killed" / "checkpoints").iterdir()}
    assert checkpoints == {f"round-{r:06d}.safetensors" for r in (3, 4)}
    assert [event["round"] for event in round_events(root / "killed")] == [1, 2, 3, 4]
    assert round_events(root / "killed") == round_events(root / "whole")
    assert [line["event"] for line in lines(root / "killed")].count("start") <= 1 + len(kills)
    finals = [read_tensors(root / name / "final" / "model.safetensors") for name in ("whole", "killed")]
    assert same(finals[0][0], finals[1][0])
    assert (finals[0][1].pop("run"), finals[1][1].pop("run")) == ("whole", "killed")
    assert finals[0][1] == finals[1][1]  # calibrated thresholds among them
    stores = [ClientStore(Path(settings["clients.store"]), name) for name in ("whole", "killed")]
    for client, round_ in whole.committed.items():
        kept = [store.load(client, round_).tensors for store in stores]
        assert kept[0]
        assert same(*kept)
    assert bool(whole.committed) == (changes is LEARNED_WEIGHTS)


def test_run_killed_while_simulated_clients_are_at_work_has_the_same_bits_and_times(settings, tmp_path):
    """The slow third takes 3.5 s: asked in round 1, which ends at 2 s, it answers in round 3."""
    file = tmp_path / "own.toml"
    quick = 'compute = "1000TFLOPS"\nbandwidth = "1000Tbps"\n'
    file.write_text(f"[fast]\n{quick}latency = 1.0\n[slow]\n{quick}latency = 3.5\n")
    settings |= {
        "run.strategy": "fedper", "run.rounds": 4, "clients.clock": "simulated", "clients.devices": "fast:2,slow:1",
        "clients.profiles": str(file), "round.deadline": 2.0, "round.staleness": 0.5,
    }  # fmt: skip
    root = Path(settings["run.root"])
    whole = run({**settings, "run.name": "whole"})
    run_and_kill({**settings, "run.name": "killed"}, "line", 2)
    resumed = run({"run.resume": str(root / "killed")})
    assert same(resumed.model, whole.model)
    assert resumed.committed == whole.committed
    events = round_events(root / "killed")
    assert events == round_events(root / "whole")
    assert [event["late"] for event in events] == [[], [], [4, 5], []]
    assert [event["device"]["total"] for event in events] == [2.0, 3.0, 4.0, 6.0]


def test_events_of_a_resumed_run_are_replaced_with_its_new_start(settings):
    run(settings)
    folder = Path(settings["run.root"]) / "test"
    before = (folder / "metrics.jsonl").read_text()
    resumed = prepare({"run.resume": str(folder)})
    assert (folder / "metrics.jsonl").read_text() == before
    resumed.callbacks[1].on_start(resumed)
    events = [event["event"] for event in read_events(folder / "metrics.jsonl")]
    assert events == ["start", "round", "round", "end", "start"]


def test_run_resumed_after_its_last_round_still_delivers(settings, flower_home):
    settings |= {"server.evaluate-every": 1}
    first = run(settings)
    folder, delivered = Path(settings["run.root"]) / "test", Path(settings["clients.store"]) / "test"
    files = [folder / "final" / "model.safetensors", *sorted(delivered.glob("depth-*/model.safetensors"))]
    assert len(files) == 4
    before = [read_tensors(file) for file in files]
    assert before[0][1]["policy"]
    for file in files:
        file.unlink()
    again = run({"run.resume": str(folder)})
    assert again.round == 2
    assert same(again.model, first.model)
    for file, (tensors, values) in zip(files, before, strict=True):
        found = read_tensors(file)
        assert same(found[0], tensors)
        assert found[1] == values


def test_configuration_is_stored_and_read_back(settings):
    settings |= {
        "run.commit": 'v1 "quoted"',
        "clients.mix": "0.5,0.25,0.25",
        "data.alpha": 0.3,
        "network.exits": "1,2,3",
    }
    config = read_config(settings)
    strategy = prepare(settings)
    strategy.callbacks[1].on_start(strategy)
    folder = Path(settings["run.root"]) / "test"
    _, flat = RunFolder.reopen(folder)
    assert flat == config.flat()
    assert read_config(flat) == config
    about = tomllib.loads((folder / "config.toml").read_text())["about"]
    assert about["torch"] == version("torch")
    assert about["commit"] == 'v1 "quoted"'
    assert about["device"]


def test_run_name_is_free_until_the_run_starts(settings):
    settings |= {"run.name": "n" * 80}
    folder = prepare(settings).callbacks[1].folder  # killed here, before `on_start`
    strategy = prepare(settings)
    strategy.callbacks[1].on_start(strategy)
    with pytest.raises(UserError, match=f"{folder} already holds a run"):
        prepare(settings)
    (folder.parent / "mine").mkdir()
    (folder.parent / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match="already"):
        prepare({**settings, "run.name": "mine"})
    with pytest.raises(UserError, match="80 at most"):
        prepare({**settings, "run.name": "n" * 81})


@contextmanager
def writer(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start another process that holds a run folder's lock until its stdin ends."""
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(folder / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        read_line(process)
        yield process
        process.kill()


def test_resume_is_refused_while_another_process_writes(settings, monkeypatch):
    run(settings)
    folder = Path(settings["run.root"]) / "test"
    before = (folder / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(run_folder, "PATIENCE", 0.0)
    with writer(folder), pytest.raises(UserError, match="has not ended: another process writes to it"):
        prepare({"run.resume": str(folder)})
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_resume_waits_until_the_writing_process_ends(settings, monkeypatch):
    run(settings)
    folder, pauses = Path(settings["run.root"]) / "test", list[float]()
    with writer(folder) as process:

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            process.kill()
            process.wait()

        monkeypatch.setattr(run_folder.time, "sleep", pause)
        assert prepare({"run.resume": str(folder)}).round == 2
    assert len(pauses) == 1


def test_run_name_that_another_process_takes_meanwhile_is_refused(settings, monkeypatch):
    config, root = read_config(settings), Path(settings["run.root"])
    folder = RunFolder.create(root, config).folder
    with writer(folder) as process:

        def pause(_: float) -> None:
            (folder / "config.toml").touch()
            process.kill()
            process.wait()

        monkeypatch.setattr(run_folder.time, "sleep", pause)
        with pytest.raises(UserError, match=r"choose another run\.name, or continue that run with --resume"):
            RunFolder.create(root, config)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", ".hidden", "a b", "a" * 81])
def test_invalid_run_name_is_refused(settings, name):
    with pytest.raises(UserError, match="must be letters, digits"):
        read_config({**settings, "run.name": name})
    assert not Path(settings["run.root"]).exists()


def test_run_of_an_older_format_is_refused_in_one_line(settings):
    strategy = run({**settings, "run.rounds": 1})
    folder = Path(str(settings["run.root"])) / strategy.config.run.name
    text = (folder / "config.toml").read_text()
    assert "format = 2\n" in text
    (folder / "config.toml").write_text(text.replace("format = 2\n", ""))
    with pytest.raises(
        UserError, match=r"has format 1, but this version of EarlyBloom reads format 2: start a new run"
    ):
        prepare({**settings, "run.resume": str(folder)})


def test_resume_needs_a_run_folder(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.toml"):
        RunFolder.reopen(tmp_path)
    (tmp_path / "config.toml").write_text("[run\n")
    with pytest.raises(UserError, match="cannot be read"):
        RunFolder.reopen(tmp_path)


def test_two_checkpoints_are_kept(settings):
    strategy = run({**settings, "run.rounds": 4})
    checkpoints = Path(settings["run.root"]) / "test" / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == [f"round-{r:06d}.safetensors" for r in (3, 4)]
    tensors, values = read_tensors(checkpoints / "round-000004.safetensors")
    assert same(tensors, strategy.model)
    assert values["round"] == 4
    assert sorted(report["client"] for report in values["reports"]) == list(range(6))


def test_run_with_a_damaged_checkpoint_continues_after_the_one_before(settings):
    whole = run({**settings, "run.rounds": 3})
    folder = Path(settings["run.root"]) / "test"
    before, last = sorted((folder / "checkpoints").iterdir())
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(
        UserError, match=rf"run\.resume: {last} cannot be read: .*; .* delete it to continue after round 2"
    ):
        prepare({"run.resume": str(folder)})
    last.unlink()
    assert same(run({"run.resume": str(folder)}).model, whole.model)
    assert rounds(folder / "metrics.jsonl") == [1, 2, 3]
    before.unlink()
    last.write_bytes(b"half")
    with pytest.raises(UserError, match="restore it, or start a new run"):
        prepare({"run.resume": str(folder)})


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit files to `size` bytes: the kernel then fails a write half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_keeps_the_last_checkpoint_for_a_resume(settings):
    whole = run({**settings, "run.rounds": 3, "run.name": "whole"})
    strategy = prepare({**settings, "run.rounds": 3})
    folder = Path(settings["run.root"]) / "test"
    checkpoints = folder / "checkpoints"
    write = strategy.callbacks[1].on_round

    def fill_up(strategy: EarlyExitStrategy, record: Any) -> None:
        size = (checkpoints / "round-000001.safetensors").stat().st_size if record.round == 2 else 2**40
        with full_disk(size - 100):
            write(strategy, record)

    strategy.callbacks[1].on_round = fill_up  # type: ignore[method-assign]
    with pytest.raises(Exception, match=r"(?i)file too large|27"):
        strategy.start(LocalGrid(app, NODES))
    assert [p.name for p in checkpoints.iterdir()] == ["round-000001.safetensors"]  # nothing half-written
    assert read_tensors(checkpoints / "round-000001.safetensors")[1]["round"] == 1
    assert "failure" in lines(folder)[-1]
    assert lines(folder)[-1]["failure"]
    resumed = run({"run.resume": str(folder)})
    assert same(resumed.model, whole.model)
    assert rounds(folder / "metrics.jsonl") == [1, 2, 3]


def test_final_model_can_be_loaded_alone(settings):
    strategy = run({**settings, "server.evaluate-every": 2})
    bundle = load_model(Path(settings["run.root"]) / "test")
    assert same(bundle.network.state_dict(), strategy.model)
    assert bundle.classes == strategy.classes == tuple("0123456789")
    assert bundle.normalizer.mean == strategy.normalizer.mean
    assert bundle.policy == strategy.evaluator.policy
    x = torch.rand((5, *strategy.spec.input_shape), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = strategy.global_network().eval()(x)
        assert all(torch.equal(a, b) for a, b in zip(bundle.network(x), ours, strict=True))


def test_incomplete_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_events(path) == []
    path.write_text('{"event": "start"}\n{"event": "round", "ro')
    assert read_events(path) == [{"event": "start"}]


def test_resume_on_other_data_is_refused(flat, tmp_path, cases_root):
    root, copy = tmp_path / "set", tmp_path / "moved"
    shutil.copytree(cases_root / "plain", root)
    strategy = run({
        **flat, "data.name": "folder", "data.root": str(root), "data.limit": 0, "clients.count": 2, "run.rounds": 1,
        "clients.per-round": 2, "clients.mix": "1,0,0", "run.root": str(tmp_path / "runs"),
    })  # fmt: skip
    folder = tmp_path / "runs" / "test"
    assert json.loads((folder / "data.json").read_text())["classes"] == ["box", "cross"]
    assert strategy.data.counts["train"] == (16, 16)

    # a copy with other times is the same data
    root.rename(copy)
    shutil.copytree(copy, root, copy_function=shutil.copyfile)
    assert prepare({"run.resume": str(folder)}).round == 1

    images = sorted((root / "box").iterdir())
    shutil.copyfile(images[0], images[1])
    with pytest.raises(UserError, match="the same number of samples, but other samples"):
        prepare({"run.resume": str(folder)})
    shutil.copytree(cases_root / "resume_set", root, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"is not the one .*classes added: aring; 48 train samples in place of 32"):
        prepare({"run.resume": str(folder)})
    (folder / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.json cannot be read"):
        prepare({"run.resume": str(folder)})
    (folder / "data.json").unlink()
    assert prepare({"run.resume": str(folder)}).round == 1, "a run of an older version is not checked"
