"""A server process that pauses at a named moment of a round, so that a test can kill it there."""

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from flwr.app import Context, RecordDict

from client.app import app as client_app
from common.config import Value
from common.flower.local_grid import LocalGrid
from common.storage.client_store import ClientStore
from common.storage.run_files import read_events
from server.app import app as server_app
from strategies.callbacks.run_folder import RunFolder
from strategies.engine.strategy import EarlyExitStrategy

Pause = Callable[[], None]
NODES = ({"partition-id": 0}, {"partition-id": 1})
# Each run is a process, forked from one that has already imported everything: imports take seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.support.killing"])


def run_and_kill(
    settings: Mapping[str, Value], moment: str, round_: int, nodes: Sequence[Mapping[str, Any]] = NODES
) -> None:
    """Run the ServerApp in its own process and kill it (SIGKILL) at this moment of a round."""
    paused = PROCESSES.Event()
    process = PROCESSES.Process(target=main, args=(dict(settings), moment, round_, paused, nodes))
    process.start()
    if moment == "running":
        folder = Path(str(settings.get("run.resume") or f"{settings['run.root']}/{settings['run.name']}"))
        end = time.monotonic() + 120
        while not (reached := round_ in rounds(folder / "metrics.jsonl")) and time.monotonic() < end:
            time.sleep(0.01)
    else:
        reached = paused.wait(120)
    process.kill()
    process.join(30)
    assert reached, f"the run ended before {moment} of round {round_}"
    assert process.exitcode == -signal.SIGKILL


def rounds(metrics: Path) -> list[int]:
    """Return the rounds that have a metrics line."""
    return [event["round"] for event in read_events(metrics) if event["event"] == "round"]


def main(
    settings: Mapping[str, Value], moment: str, round_: int, paused: Any, nodes: Sequence[Mapping[str, Any]]
) -> None:
    """Run the ServerApp on the in-process grid and pause at this moment of a round."""

    def pause() -> None:
        paused.set()
        time.sleep(600)

    HOOKS[moment](round_, pause)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=dict(settings))
    server_app(LocalGrid(client_app, nodes), context)


def _after_line(round_: int, pause: Pause) -> None:
    """Pause between a round's metrics line and its checkpoint."""
    append = RunFolder._append

    def slow(self: RunFolder, event: dict[str, Any]) -> None:
        append(self, event)
        if event.get("round") == round_:
            pause()

    RunFolder._append = slow  # type: ignore[method-assign]


def _half_line(round_: int, pause: Pause) -> None:
    """Pause with half of a round's metrics line written."""
    append = RunFolder._append

    def slow(self: RunFolder, event: dict[str, Any]) -> None:
        if event.get("round") != round_:
            return append(self, event)
        text = json.dumps(event)
        with self.metrics.open("a") as file:
            file.write(text[: len(text) // 2])
        pause()

    RunFolder._append = slow  # type: ignore[method-assign]


def _half_checkpoint(round_: int, pause: Pause) -> None:
    """Pause with half of a round's checkpoint written."""
    save_file = safetensors.torch.save_file

    def slow(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata=metadata)
        if f"round-{round_:06d}" in path.name and path.parent.name == "checkpoints":
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)
            pause()

    safetensors.torch.save_file = slow


def _client_stored(round_: int, pause: Pause) -> None:
    """Pause in the middle of a round, after its first client has stored its state."""
    save = ClientStore.save

    def slow(self: ClientStore, client: int, number: int, state: Any) -> None:
        save(self, client, number, state)
        if number == round_:
            pause()

    ClientStore.save = slow  # type: ignore[method-assign]


def _before_delivery(round_: int, pause: Pause) -> None:
    """Pause after the last round, before clients get their models."""
    EarlyExitStrategy._deliver = lambda self, grid: pause()  # type: ignore[method-assign]


HOOKS = {
    "running": lambda round_, pause: None,
    "line": _after_line,
    "half-line": _half_line,
    "checkpoint": _half_checkpoint,
    "store": _client_stored,
    "deliver": _before_delivery,
}
