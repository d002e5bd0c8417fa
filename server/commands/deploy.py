"""Run the app on the devices of a running SuperLink, and return how the run really ended.

`flwr run --stream` exits 0 even when a run failed, so the launcher submits the run, follows its metrics and asks Flower
for its real status.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.flower.processes import end, interrupt, interrupted_by_signals, noted_signals
from common.storage.toml import toml_lines
from server.commands.bundle import app_files
from server.commands.launch import FAILED, Outcome, Watch, commit, run_folder, watched

LOOK = 0.5  # seconds between two looks at the metrics, or for a signal
ASK_EVERY, SELDOM = 3.0, 30.0  # seconds between status queries, each of which is a process that computes for a second
STARTING, ENDING = 10.0, 2.0  # the same before a run's first event, and after its last one
SHARE = 0.25  # of the time that a run has taken, for which its status need not be known
ACCEPTED = 5.0  # seconds that Flower has, after a signal, to say which run to stop; Docker gives 10 for all
LOST = 20.0  # seconds without an answer, after which the SuperLink counts as gone
ERROR = re.compile(r"^[\w.]*(?:Error|Exception): (?P<text>.+)$", re.MULTILINE)  # a traceback's last line
REFUSED = "403 Forbidden"  # what the proxy answers to all that is not a device's


@interrupted_by_signals()
def deploy(
    overrides: Mapping[str, Any], root: Path, env: Mapping[str, str], connection: str, *, show: bool = True
) -> Outcome:
    """Run the project on a connection of Flower's configuration and wait for its end.

    `overrides` are configuration keys, with `run.name` unless a run is resumed. `root` is the folder of runs on the
    SuperLink's machine: if that is this machine, the run's progress is shown. Raises `UserError` if the run is not
    accepted, or the SuperLink goes.
    """
    folder = run_folder(overrides, root)
    with watched(folder, show) as watch:
        with noted_signals() as noted:
            run_id = _submit({"run.commit": commit(), **overrides}, connection, env, noted)
        try:
            if noted:
                interrupt()
            return _follow(run_id, folder, connection, env, watch)
        except KeyboardInterrupt:
            # before the progress bar is stopped, which fails on a closed terminal
            _stop(run_id, connection, env)
            raise


def _stop(run_id: str, connection: str, env: Mapping[str, str]) -> None:
    command = ["flwr", "stop", run_id, connection]
    try:
        answer = _flwr([*command, "--format", "json"], env)
        problem = "" if answer.get("success") else answer.get("error-message", answer)
    except UserError as error:
        problem = error
    if problem:
        print(f"run {run_id} was not stopped: {problem}; try `{' '.join(command)}`", file=sys.stderr)


def flwr(command: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON that a `flwr` command prints, refusals included; raises `UserError` if it prints none."""
    return _flwr(["flwr", *command, "--format", "json"], env)


def flower_answer(script: Path, arguments: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON that a script prints which uses Flower's client; raises `UserError` if it prints none."""
    return _flwr([sys.executable, "-P", str(script), *arguments], env)


def _submit(settings: Mapping[str, Any], connection: str, env: Mapping[str, str], noted: Sequence[int]) -> str:
    """Return Flower's id of the run; raises `KeyboardInterrupt` if there is none long after a signal was noted."""
    # all keys in one file: of several -c, Flower 1.42 keeps only the last one's keys of a section
    home = Path(env["FLWR_HOME"])
    with app_files(home) as app, tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".toml", dir=home) as file:
        file.write(toml_lines(settings))
        file.flush()
        answer = _flwr(["flwr", "run", str(app), connection, "--format", "json", "-c", file.name], env, noted)
    if answer.get("success"):
        return str(answer["run-id"])
    problem = str(answer.get("error-message", answer))
    if REFUSED in problem:
        problem = f"the address answers {REFUSED}: a proxy passes only what devices use; give the SuperLink's own"
    if "unavailable" in problem:
        problem = f"is `python -m server start` running, and --superlink its address? Flower says: {problem}"
    raise UserError(f"Flower did not accept the run: {problem}")


def _follow(run_id: str, folder: Path, connection: str, env: Mapping[str, str], watch: Watch) -> Outcome:
    began = asked = time.monotonic()
    unanswered: float | None = None  # since when the SuperLink has not answered
    started = ended = False
    while True:
        time.sleep(LOOK)
        events = watch.look()
        for event in events:
            if event["event"] in ("start", "end"):
                started, ended = True, event["event"] == "end"  # a resumed run keeps its earlier end
        now = time.monotonic()
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
                    f"no answer from the SuperLink for {LOST:.0f} s: {problem}; if it has ended, so has its run: start "
                    f"it again and continue with --resume {folder}; else the run goes on, see `flwr list {connection}`"
                )
            continue
        unanswered, run = None, answer["runs"][0]
        if (status := str(run["status"])).startswith("finished"):
            details = str(run.get("status-details") or "")
            if status == FAILED:
                log = _output(["flwr", "log", run_id, connection, "--show"], env).stdout
                if last := last_error(log, details):
                    details += f" The log's last error: {last}"
            return Outcome(folder, status, details)


def _pause(passed: float, started: bool, ended: bool, silent: bool) -> float:
    """Return the seconds between two status queries of a run that was submitted `passed` seconds ago."""
    if ended:
        return ENDING
    if silent:
        return ASK_EVERY
    return min(SELDOM, max(ASK_EVERY if started else STARTING, SHARE * passed))


def last_error(log: str, details: str) -> str:
    """Return the last error of a run's log that is not part of Flower's reason."""
    errors = [found["text"].strip() for found in ERROR.finditer(log)]
    return next((error for error in reversed(errors) if error not in details), "")


def _flwr(command: Sequence[str], env: Mapping[str, str], noted: Sequence[int] = ()) -> dict[str, Any]:
    done = _output(command, env, noted)
    start = done.stdout.find("{")
    try:
        found: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
    except json.JSONDecodeError:
        found = {}
    if not found:
        raise UserError(f"{' '.join(command[:2])} failed: {(done.stderr or done.stdout).strip()[-800:]}")
    return found


def _output(
    command: Sequence[str], env: Mapping[str, str], noted: Sequence[int] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; raises `KeyboardInterrupt` if that does not come soon after a signal was noted.

    The command has a session of its own: a terminal would send Ctrl-C to it, too, and its answer would be lost.
    """
    with subprocess.Popen(
        command, cwd=env["FLWR_HOME"], env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        patience = ACCEPTED
        try:
            while patience > 0:
                with suppress(subprocess.TimeoutExpired):
                    output, errors = process.communicate(timeout=LOOK)
                    return subprocess.CompletedProcess(command, process.returncode, output, errors)
                patience -= LOOK if noted else 0
            print("Flower did not answer; `flwr list` shows whether it has accepted the run", file=sys.stderr)
            raise KeyboardInterrupt
        finally:
            end(process)
