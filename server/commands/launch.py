"""Run the app, in a local simulation or on a running SuperLink, and return how the run really ended.

`flwr run --stream` exits 0 even when a run failed, and a local SuperLink that is started from a project's folder hands
that folder's live files to its clients. So this launcher starts its own SuperLink from a neutral folder, submits the
run, follows its metrics and asks Flower for its real status.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.errors import UserError
from common.flower.processes import PROJECT, end, environment, free_port, interrupted_by_signals, tied, wait_for_port
from common.paths import check_writable
from server.commands import cluster, gpus, left_out
from server.commands.bundle import app_files
from server.commands.ray_head import ray_head
from server.commands.tail import Tail

ASK_EVERY, SELDOM = 3.0, 30.0  # seconds between status queries, each of which is a process that computes for a second
STARTING, ENDING = 10.0, 2.0  # the same before a run's first event, and after its last one
SHARE = 0.25  # of the time that a run has taken, for which its status need not be known
LOST = 20.0  # seconds without an answer, after which the SuperLink counts as gone
ERROR = re.compile(r"^[\w.]*(?:Error|Exception): (?P<text>.+)$", re.MULTILINE)  # a traceback's last line
REFUSED = "403 Forbidden"  # what the proxy answers to all that is not a device's
WRAPPERS = ("An error was encountered", "Simulation Runtime crashed")  # hide the error that ended a simulation


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    status: str  # Flower's, such as "finished:completed"
    details: str  # Flower's reason
    error: str = ""  # the last error in the run's log, where it says more

    @property
    def completed(self) -> bool:
        """Whether the run reached its last round."""
        return self.status == "finished:completed"

    @property
    def failure(self) -> str:
        """The message for a run that did not complete."""
        more = f" The log's last error: {self.error}" if self.error else ""
        return f"run {self.folder.name} ended as {self.status}: {self.details}{more}"


@contextmanager
def local_superlink(home: Path, head: int = 0) -> Iterator[dict[str, str]]:
    """Start a SuperLink for simulations on a free port; yields the environment in which Flower's commands find it.

    With `head` its runs join one Ray with so many workers, see `ray_head`. SIGTERM and SIGHUP raise KeyboardInterrupt
    inside, so that the run, the SuperLink and Ray end with this process.
    """
    check_writable(home, "set FLWR_HOME to a folder that this user can write")
    port, control = free_port(), free_port()
    env = environment(home) | {
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
    }
    command = [
        "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port),  # its database is in memory: the runs end with it
    ]  # fmt: skip
    with interrupted_by_signals(), ray_head(home, head) as ray:
        with (home / "superlink.log").open("ab") as log:
            process = subprocess.Popen(
                tied(command), cwd=home, env=env | ray, stdout=log, stderr=log, start_new_session=True
            )
        try:
            if not wait_for_port("127.0.0.1", port, process):
                raise UserError(f"the local SuperLink did not start: see {home / 'superlink.log'}")
            yield env
        finally:
            end(process)


def simulate(
    overrides: Mapping[str, Any],
    root: Path,
    env: Mapping[str, str],
    *,
    workers: int = 0,
    share: float | None = None,
    head: bool = False,
    show: bool = True,
) -> Outcome:
    """Run the project in a simulation and wait for its end.

    It has `workers` worker processes, by default one per core; on the Ray cluster of `RAY_ADDRESS`, as many as fit.
    Each has `share` of a GPU, by default an even one. With `head` the run joins the Ray of `local_superlink`, which has
    as many workers, instead of one of its own. `overrides` are configuration keys, with `run.name` unless a run is
    resumed. Raises `UserError` if there are not such GPUs.
    """
    settings = {"run.root": str(root), "run.commit": commit(), **overrides}
    federation = "client-resources-num-cpus=1 init-args-log-to-driver=false"
    if (address := env.get("RAY_ADDRESS", cluster.LOCAL)) == cluster.LOCAL:
        device = str(overrides.get("clients.device", "auto"))
        share, workers = gpus.local_share(share, workers or os.cpu_count() or 1, device)
        if not head:
            federation += f" init-args-num-cpus={workers}"  # Ray refuses it for a cluster that runs already
    else:
        nodes = cluster.resources(address, env)
        share = cluster.even_share(nodes) if share is None else share
        workers = cluster.workers_on(nodes, share, workers)
        settings.setdefault("clients.state", "shared" if overrides.get("clients.store") else "server")
    federation += f" client-resources-num-gpus={share} num-supernodes={workers}"
    return _run(settings, run_folder(overrides, root), "local", env, show, "--federation-config", federation)


def deploy(
    overrides: Mapping[str, Any], root: Path, env: Mapping[str, str], connection: str, *, show: bool = True
) -> Outcome:
    """Run the project on a connection of Flower's configuration and wait for its end.

    `overrides` are configuration keys, with `run.name` unless a run is resumed. `root` is the folder of runs on the
    SuperLink's machine: if that is this machine, the run's progress is shown.
    """
    settings = {"run.commit": commit(), **overrides}
    return _run(settings, run_folder(overrides, root), connection, env, show)


def flwr(command: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON that a `flwr` command prints, refusals included; raises `UserError` if it prints none."""
    return _flwr(["flwr", *command, "--format", "json"], env)


def run_folder(overrides: Mapping[str, Any], root: Path) -> Path:
    """Return the folder of the resumed run, or of a new one below `run.root`, else below `root`."""
    if overrides.get("run.resume"):
        return Path(str(overrides["run.resume"]))
    return Path(str(overrides.get("run.root") or root)) / str(overrides["run.name"])


@interrupted_by_signals()
def _run(
    settings: Mapping[str, Any], folder: Path, connection: str, env: Mapping[str, str], show: bool, *options: str
) -> Outcome:
    # all keys in one file: of several -c, Flower 1.42 keeps only the last one's keys of a section
    home = Path(env["FLWR_HOME"])
    with app_files(home) as app, tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".toml", dir=home) as file:
        # JSON escapes an emoji as two halves, which TOML refuses
        rows = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items())
        file.write("".join(rows))
        file.flush()
        answer = _flwr(["flwr", "run", str(app), connection, "--format", "json", *options, "-c", file.name], env)
    if not answer.get("success"):
        problem = str(answer.get("error-message", answer))
        if REFUSED in problem:
            problem = f"the address answers {REFUSED}: a proxy passes only what devices use; give the SuperLink's own"
        if "unavailable" in problem and connection != "local":
            problem = f"is `python -m server start` running, and --superlink its address? Flower says: {problem}"
        raise UserError(f"Flower did not accept the run: {problem}")
    run_id = str(answer["run-id"])
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("ETA"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, disable=not show) as progress:
        try:
            return _follow(run_id, folder, connection, env, progress)
        except KeyboardInterrupt:
            # before the progress bar is stopped, which fails on a closed terminal
            _flwr(["flwr", "stop", run_id, connection, "--format", "json"], env)
            raise


def _follow(run_id: str, folder: Path, connection: str, env: Mapping[str, str], progress: Progress) -> Outcome:
    began = asked = time.monotonic()
    unanswered: float | None = None  # since when the SuperLink has not answered
    started = ended = False
    metrics = Tail(folder / "metrics.jsonl")
    bar = progress.add_task(f"{folder.name}: starting", total=None)
    while True:
        time.sleep(0.5)
        events = metrics.read()
        starts = any(event["event"] == "start" for event in events)
        started = started or starts
        for line in [*(_data_lines(folder) if starts else ()), *left_out.lines(events)]:
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        rounds = [event for event in events if event["event"] == "round"]
        if rounds:
            last = rounds[-1]
            text = f"{folder.name}: round {last['round']}/{last['rounds']}"
            if last["accuracy"]:
                text += f", mean exit accuracy {100 * last['accuracy']['mean']:.1f} %"
            progress.update(bar, description=text, completed=last["round"], total=last["rounds"])
        now = time.monotonic()
        ended = ended or any(event["event"] == "end" for event in events)
        if events and not ended:  # they say as well that the run goes on
            asked = now
        if now - asked < _pause(now - began, started, ended, unanswered is not None):
            continue
        asked = now
        try:
            answer = _flwr(["flwr", "list", connection, "--run-id", run_id, "--format", "json"], env)
        except UserError as error:  # no JSON
            answer = {"error-message": error}
        if not answer.get("runs"):
            unanswered = asked if unanswered is None else unanswered
            if asked - unanswered > LOST:
                problem = " ".join(str(answer.get("error-message", answer)).split())
                raise UserError(
                    f"the SuperLink has gone: {problem}; its run has ended with it, so start the SuperLink again, then "
                    f"continue with --resume {folder}"
                )
            continue
        unanswered, run = None, answer["runs"][0]
        if str(run["status"]).startswith("finished"):
            outcome = Outcome(folder, str(run["status"]), str(run.get("status-details") or ""))
            if outcome.status != "finished:failed":
                return outcome
            log = _output(["flwr", "log", run_id, connection, "--show"], env)
            return replace(outcome, error=last_error(log.stdout, outcome.details))


def _pause(passed: float, started: bool, ended: bool, silent: bool) -> float:
    """Return the seconds between two status queries of a run that was submitted `passed` seconds ago."""
    if ended:
        return ENDING
    if silent:
        return ASK_EVERY
    return min(SELDOM, max(ASK_EVERY if started else STARTING, SHARE * passed))


def _data_lines(folder: Path) -> list[str]:
    """Return what a run that has started says of its data; nothing if it began with an older version."""
    with suppress(OSError, ValueError, KeyError):
        return [str(line) for line in json.loads((folder / "data.json").read_text())["lines"]]
    return []


def last_error(log: str, details: str) -> str:
    """Return the last error of a run's log that is not part of Flower's reason and not Flower's own last word."""
    errors = [found["text"].strip() for found in ERROR.finditer(log)]
    return next((e for e in reversed(errors) if e not in details and not e.startswith(WRAPPERS)), "")


def _output(command: Sequence[str], env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=env["FLWR_HOME"],
        env=dict(env),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _flwr(command: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    done = _output(command, env)
    start = done.stdout.find("{")
    try:
        found: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
    except json.JSONDecodeError:
        found = {}
    if not found:
        raise UserError(f"{' '.join(command[:2])} failed: {(done.stderr or done.stdout).strip()[-800:]}")
    return found


def commit() -> str:
    """Return the project's git commit; empty where git or its history is missing, as in an image."""
    if not (git := shutil.which("git")):
        return ""
    done = subprocess.run(
        [git, "-C", str(PROJECT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
