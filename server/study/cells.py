"""Run a study's cells, several at once in processes of their own; finished ones are kept, killed ones go on."""

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from common.errors import UserError
from server.commands.launch import FAILED, Outcome
from server.commands.simulator import Simulator
from server.commands.tail import Tail
from server.study.plan import Cell

LOOK = 0.5  # seconds between two looks at the running cells
LOGS = "logs"  # folder of the cells' logs, beside their run folders
# keys that say where a run is, not what it does
WHERE = ("run.name", "run.commit", "run.root", "run.resume", "clients.store")
ENDED_BY_PARENT = 1  # Linux's PR_SET_PDEATHSIG

_Key: TypeAlias = tuple[Any, ...]  # of a cell: variant, point, seed


def finished(folder: Path) -> bool:
    """Return whether a run folder holds a run that completed."""
    ends = [event for event in Tail(folder / "metrics.jsonl").read() if event["event"] in ("start", "end")]
    return bool(ends) and ends[-1]["event"] == "end" and not ends[-1]["failure"]


def check_kept(cell: Cell, wanted: Mapping[str, Any]) -> None:
    """Raise `UserError` if a cell's folder holds a run of another configuration than the wanted, whole one.

    A key that the run does not have, since it is newer than the run, counts as its default, as when a run is resumed.
    """
    from common.storage.run_files import read_stored
    from strategies.configuration import read_config

    if not (cell.folder / "config.toml").is_file():
        return
    stored = read_config({}).flat() | read_stored(cell.folder)
    changed = {"clients.state"} - cell.values.keys()  # which a run on a cluster sets itself
    for key in sorted(wanted.keys() - set(WHERE) - changed):
        if stored[key] != wanted[key]:
            raise UserError(
                f"{cell.folder} holds a run with {key} = {stored[key]!r}, but this study has {wanted[key]!r}: give "
                "the study another --name, or remove that folder"
            )


def run_cells(
    cells: Sequence[Cell], parallel: int, simulator: Simulator, look: Callable[[Sequence[Cell]], None]
) -> Iterator[tuple[Cell, Outcome]]:
    """Run cells, at most `parallel` at once, and yield each with its end.

    A cell whose need failed does not run. `look` gets the running cells twice a second.
    """
    waiting, running, failed = list(cells), dict[Future[Outcome], tuple[Cell, ProcessPoolExecutor]](), set[_Key]()
    # a pool for each process: a pool that breaks ends all its processes
    free = [_worker() for _ in range(min(parallel, len(waiting)))]
    try:
        while waiting or running:
            unfinished = {_key(cell) for cell in (*waiting, *(cell for cell, _ in running.values()))}
            for cell in list(waiting):
                needs = {_key(cell, variant) for variant in cell.needs}
                if broken := needs & failed:
                    waiting.remove(cell)
                    failed.add(_key(cell))
                    yield cell, Outcome(cell.folder, "not started", f"it needs {sorted(broken)[0][0]}, which failed")
                elif free and not needs & unfinished:
                    waiting.remove(cell)
                    worker, values = free.pop(), dict(cell.values)
                    try:
                        future = worker.submit(_run, values, cell.folder, simulator)
                    except BrokenProcessPool:  # its process was killed while it had no work
                        worker = _worker()
                        future = worker.submit(_run, values, cell.folder, simulator)
                    running[future] = cell, worker
            done, _ = wait(running, timeout=LOOK, return_when=FIRST_COMPLETED)
            look([cell for cell, _ in running.values()])
            for future in done:
                cell, worker = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    reason = f"its process was killed (out of memory?); see {log_file(cell.folder)}"
                    outcome, worker = Outcome(cell.folder, "killed", reason), _worker()
                free.append(worker)
                if not outcome.completed:
                    failed.add(_key(cell))
                yield cell, outcome
    finally:
        for worker in (*free, *(worker for _, worker in running.values())):
            worker.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()  # a run ends on SIGTERM as on Ctrl-C, with its checkpoint


def log_file(folder: Path) -> Path:
    """Return the file that has a cell's log."""
    return folder.parent / LOGS / f"{folder.name}.log"


def _key(cell: Cell, variant: str = "") -> _Key:
    return (variant or cell.variant, *map(str, cell.point.values()), cell.seed)


def _worker() -> ProcessPoolExecutor:
    # spawn: torch and gRPC do not survive a fork
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_tie, initargs=(os.getpid(),))


def _tie(parent: int) -> None:
    """End this process when the study dies, so that no cell goes on unseen."""
    ctypes.CDLL(None).prctl(ENDED_BY_PARENT, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)


def _run(values: dict[str, Any], folder: Path, simulator: Simulator) -> Outcome:
    """Run one cell in this process; what it prints goes to its log."""
    log = log_file(folder)
    overrides = {"run.resume": str(folder)} if (folder / "config.toml").is_file() else values
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        return simulator.run(overrides, folder.parent, show=False)
    except UserError as error:
        return Outcome(folder, "not started", str(error))
    except Exception as error:  # such as a full disk: the study goes on
        with suppress(OSError):
            traceback.print_exc()
        return Outcome(folder, FAILED, f"{type(error).__name__}: {error}; see {log}")
    except KeyboardInterrupt:  # the study ends, or has ended: a pool's process that returns would wait for more work
        sys.stdout.flush()
        os._exit(130)
