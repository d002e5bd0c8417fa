"""Split training with real processes: streams from Ray's workers, and from SuperNodes over TLS."""

import tomllib
from pathlib import Path

import pytest
import torch

from client.app import app
from common.config import Value
from common.flower.local_grid import LocalGrid
from common.storage.files import read_tensors
from common.storage.run_files import read_events
from server.execution import prepare
from strategies.callbacks.run_folder import METHOD
from strategies.engine.strategy import EarlyExitStrategy
from tests.support.deployment import Deployment, run_launcher

SETTINGS: dict[str, Value] = {
    "run.strategy": "hetero_splitee", "run.rounds": 2, "clients.count": 24, "clients.per-round": 12,
    "data.limit": 960, "data.client-test": 0.25, "network.name": "resnet_slim", "network.width": 2,
    "splitee.cuts": "1,2,4", "train.batch-size": 8, "stream.patience": 120.0,
}  # fmt: skip
pytestmark = [pytest.mark.deployment, pytest.mark.timeout(600)]


def in_this_process(settings: dict[str, Value], folder: Path, nodes: list[dict[str, object]]) -> EarlyExitStrategy:
    """Run the same settings here, on nodes that stream at the same time."""
    local = {"run.name": "local", "run.root": str(folder / "runs"), "clients.store": str(folder / "store")}
    strategy = prepare({**settings, **local})
    strategy.start(LocalGrid(app, nodes, concurrent=True))
    return strategy


def assert_same_run(folder: Path, strategy: EarlyExitStrategy) -> None:
    """Compare a run's last checkpoint and the metrics of its rounds with a run in this process."""
    tensors, values = read_tensors(folder / "checkpoints" / f"round-{strategy.round:06d}.safetensors")
    state, plain = strategy.state_dict()
    expected = strategy.model | {METHOD + key: value for key, value in state.items()}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert values["method"] == plain
    assert values["committed"] == {str(client): round_ for client, round_ in strategy.committed.items()}
    runs = [folder, Path(strategy.config.run.root) / "local"]
    ours, theirs = ([e for e in read_events(f / "metrics.jsonl") if e["event"] == "round"] for f in runs)
    assert [line["failures"] for line in ours] == [{}] * strategy.round
    for one, two in zip(ours, theirs, strict=True):
        assert one["client_accuracy"] == two["client_accuracy"]
        assert all(one["terms"][key] == two["terms"][key] for key in ("batches", "missing", "server_loss"))


@pytest.mark.slow
def test_ray_streams_give_the_bits_of_one_process(tmp_path):
    done = run_launcher(tmp_path, {**SETTINGS, "run.name": "ray"})
    assert done.returncode == 0, done.stderr
    strategy = in_this_process(SETTINGS, tmp_path, [{"partition-id": 0}])
    assert len(set(strategy.committed.values())) == 2  # some clients did not take part in the last round
    assert_same_run(tmp_path / "runs" / "ray", strategy)


@pytest.mark.slow
def test_supernodes_over_tls_give_the_bits_of_one_process(tmp_path):
    devices = [{"client-id": 0, "cut": 1}, {"client-id": 1, "cut": 4}]
    settings: dict[str, Value] = {
        **SETTINGS, "splitee.mode": "averaging", "splitee.client-sync": "prefix", "clients.count": 2,
        "clients.per-round": 2, "data.limit": 120, "round.min-nodes": 2, "stream.tls": True,
    }  # fmt: skip
    deployment = Deployment(tmp_path / "deployment")
    try:
        for device in devices:
            deployment.node(f"node-{device['client-id']}", f"client-id={device['client-id']} cut={device['cut']}")
        status, details = deployment.wait(deployment.run({**settings, "run.name": "deployed"}), 400)
        assert status == "finished:completed", details
        folder = deployment.folder / "runs" / "deployed"
    finally:
        deployment.close()
    assert_same_run(folder, in_this_process({**settings, "stream.tls": False}, tmp_path, devices))
    assert tomllib.loads((folder / "config.toml").read_text())["stream"]["tls"] is True
