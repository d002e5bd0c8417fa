"""A trained teacher, and the configuration of federated runs of its students."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from client.app import app
from common import paths
from common.config import Value
from common.flower.local_grid import LocalGrid
from server.execution import prepare
from strategies.callbacks.run_folder import RunFolder

CPU: dict[str, Value] = {"clients.device": "cpu", "server.device": "cpu", "server.evaluate-every": 0}


@pytest.fixture(scope="session")
def teacher(flower_home: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished federated run of LeNet on digits."""
    root = tmp_path_factory.mktemp("teacher")
    return teach(root, {"network.name": "lenet", "clients.mix": "0,0,1", "run.rounds": 4, "train.lr": 0.1})


def teach(root: Path, changes: Mapping[str, Value]) -> Path:
    """Run EEFL to its end and return its run folder."""
    flat: dict[str, Value] = {
        **CPU, "run.name": "teacher", "run.strategy": "eefl", "run.root": str(root), "train.epochs": 2,
        "clients.count": 2, "clients.per-round": 2, "clients.store": str(root / "clients"), **changes,
    }  # fmt: skip
    strategy = prepare(flat)
    strategy.callbacks = [callback for callback in strategy.callbacks if isinstance(callback, RunFolder)]
    strategy.start(LocalGrid(app, [{"partition-id": 0}]))
    return paths.runs_root(str(root)) / "teacher"


@pytest.fixture
def students(flat: dict[str, Value], teacher: Path) -> dict[str, Value]:
    """Return a configuration of two students of the teacher, with three clients each."""
    flat |= {
        "run.strategy": "distree", "distree.teacher": str(teacher), "distree.kept-edges": 0.3, "clients.mix": "equal",
        "train.lr": 0.05,
    }  # fmt: skip
    return flat
