"""The same app against a real SuperLink with real SuperNodes of different capacity, on loopback."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from client.app import app
from common.flower.local_grid import LocalGrid
from common.storage.run_files import read_events
from strategies.configuration import read_config
from strategies.factory import make_strategy
from tests.support.deployment import Deployment, wait_until

SETTINGS = {
    "run.strategy": "darkdistill", "run.rounds": 2, "clients.count": 4, "clients.per-round": 4, "data.limit": 400,
    "round.min-nodes": 4, "darkdistill.server-epochs": 1, "darkdistill.distill-steps": 1,
}  # fmt: skip
pytestmark = [pytest.mark.deployment, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        for client in range(4):
            deployment.node(f"node-{client}", f"client-id={client} depth={client + 1}")
        yield deployment
    finally:
        deployment.close()


@pytest.fixture(scope="module")
def whole(deployment: Deployment) -> Deployment:
    """The deployment after a complete run."""
    run_id = deployment.run({**SETTINGS, "run.name": "whole"})
    status, details = deployment.wait(run_id, 300)
    assert status == "finished:completed", details
    return deployment


def test_deployment_gives_the_weights_of_one_process(whole: Deployment) -> None:
    deployed = load_file(whole.folder / "runs" / "whole" / "final" / "model.safetensors")

    strategy = make_strategy(read_config({**SETTINGS, "run.name": "local", "round.min-nodes": 1}))
    strategy.start(LocalGrid(app, [{"client-id": client, "depth": client + 1} for client in range(4)]))
    assert deployed.keys() == strategy.model.keys()
    assert all(torch.equal(deployed[key], strategy.model[key]) for key in deployed)


def test_rounds_go_by_streams(whole: Deployment) -> None:
    for client in range(4):
        log = (whole.folder / f"node-{client}.log").read_text()
        assert log.count("Receiving: query message") == 1
        assert "Receiving: train message" not in log
        assert log.count("working on a train message") == SETTINGS["run.rounds"]


@pytest.mark.slow
def test_refused_devices_learn_why(whole: Deployment) -> None:
    whole.node("twin", "client-id=0 depth=1")
    whole.node("stranger", "client-id=9 depth=1")
    try:
        run_id = whole.run({**SETTINGS, "run.name": "refused", "run.rounds": 1, "round.min-nodes": 4})
        status, details = whole.wait(run_id, 300)
        assert status == "finished:completed", details
        events = read_events(whole.folder / "runs" / "refused" / "metrics.jsonl")
        (stranger,) = [e for e in events if e["event"] == "left_out" and e["name"] == "client 9"]
        assert "client 9 does not exist" in stranger["reason"]
        assert "client 9 cannot take part: client 9 does not exist" in (whole.folder / "stranger.log").read_text()
        twin = whole.folder / "twin.log"
        wait_until(lambda: "the server leaves out client 0: node" in twin.read_text(), 60, "the twin got no reason")
    finally:
        whole.kill("twin")
        whole.kill("stranger")


@pytest.mark.slow
def test_client_of_a_killed_worker_misses_one_round(deployment: Deployment) -> None:
    run_id = deployment.run({**SETTINGS, "run.name": "worker", "run.rounds": 3, "train.epochs": 150})
    metrics = deployment.folder / "runs" / "worker" / "metrics.jsonl"
    wait_until(lambda: any(e["event"] == "round" for e in read_events(metrics)), 200, "no round ended")
    session = deployment.processes["node-0"].pid
    workers = [p for p in psutil.process_iter(["cmdline"]) if "client.warm.worker" in (p.info["cmdline"] or [])]
    (worker,) = [p for p in workers if os.getsid(p.pid) == session]
    worker.kill()
    status, details = deployment.wait(run_id, 400)
    assert status == "finished:completed", details
    failures = [event["failures"] for event in read_events(metrics) if event["event"] == "round"]
    assert [set(failure) for failure in failures] == [set(), {"0"}, set()]
    assert "worker process ended" in failures[1]["0"]


def test_every_device_keeps_its_final_model(whole: Deployment) -> None:
    stored = whole.folder / ".cache" / "clients" / "whole"
    assert sorted(p.parent.name for p in stored.glob("depth-*/model.safetensors")) == [
        f"depth-{d}" for d in range(1, 5)
    ]


@pytest.mark.slow  # Flower gives a node up after a minute
def test_run_completes_without_a_killed_node(deployment: Deployment) -> None:
    run_id = deployment.run(
        {**SETTINGS, "run.name": "killed", "run.rounds": 3, "round.deadline": 25.0, "round.quorum": 0.5}
    )
    metrics = deployment.folder / "runs" / "killed" / "metrics.jsonl"
    wait_until(lambda: any(e["event"] == "round" for e in read_events(metrics)), 200, "no round ended")
    deployment.kill("node-0")
    status, details = deployment.wait(run_id, 400)
    assert status == "finished:completed", details
    rounds = [event for event in read_events(metrics) if event["event"] == "round"]
    assert [event["round"] for event in rounds] == [1, 2, 3]
    assert Path(metrics).read_text().count('"event": "end"') == 1
    assert any("0" in event["failures"] or event["clients"].get("1", 0) == 0 for event in rounds[1:])
