"""Real processes: a device that stops beyond the deadline and then answers, observed in metrics and logs."""

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.storage.run_files import read_events
from tests.support.deployment import Deployment, free_port, wait_until

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(600)]
pytest.importorskip("prometheus_client")
ROUNDS = 200  # by the stream a round without the device takes a tenth of a second, and it must come back before the end


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "deployment")
    try:
        for client in range(2):
            deployment.node(f"node-{client}", f"client-id={client} depth={client + 1}")
        yield deployment
    finally:
        deployment.close()


def rounds(metrics: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(metrics) if event["event"] == "round"]


@pytest.mark.slow  # tests/strategies/engine/test_late.py is quick
def test_stopped_device_counts_as_late(deployment: Deployment) -> None:
    port, metrics = free_port(), deployment.folder / "runs" / "late" / "metrics.jsonl"
    run_id = deployment.run({
        "run.name": "late", "run.strategy": "eefl", "run.rounds": ROUNDS, "run.metrics-port": port,
        "run.log-format": "json",
        "clients.count": 2, "clients.per-round": 2, "round.min-nodes": 2, "round.deadline": 20.0,
        "round.staleness": 0.5, "data.limit": 300, "network.name": "lenet", "server.evaluate-every": 0,
    })  # fmt: skip
    wait_until(lambda: len(rounds(metrics)) >= 1, 120, "no round ended")
    stopped = deployment.processes["node-1"].pid
    os.killpg(stopped, signal.SIGSTOP)
    try:
        wait_until(lambda: any(event["failures"] for event in rounds(metrics)), 120, "no round missed the device")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            exposed = answer.read().decode()
    finally:
        os.killpg(stopped, signal.SIGCONT)
    status, details = deployment.wait(run_id, 300)
    assert status == "finished:completed", details
    events = rounds(metrics)
    assert [event["round"] for event in events] == list(range(1, ROUNDS + 1))
    assert [event["failures"] for event in events if event["failures"]] == [{"1": "did not answer in time"}]
    assert [event["late"] for event in events if event["late"]] == [[1]]
    missed, late = (
        [event[kind] != type(event[kind])() for event in events].index(True) for kind in ("failures", "late")
    )
    assert all(event["clients"] == {"1": 1} for event in events[missed : late + 1])
    assert events[-1]["clients"] == {"1": 1, "2": 1}
    assert 'earlybloom_clients_total{outcome="failed"} 1.0' in exposed
    devices = json_lines("".join(path.read_text(errors="replace") for path in deployment.folder.glob("node-*.log")))
    assert len({line["node"] for line in devices}) == 2
    assert {line["run"] for line in devices} == {"late"}
    assert {line["round"] for line in devices} == set(range(ROUNDS + 1))  # 0 is the query
    shown = subprocess.run(
        ["flwr", "log", run_id, "dep", "--show"], env=deployment.env, cwd=deployment.home, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    server = [line for line in json_lines(shown.stdout) if "answered round" in line["message"]]
    assert [(line["run"], line["round"], line["node"]) for line in server] == [
        ("late", events[late]["round"], "server")
    ]


def json_lines(text: str) -> list[dict[str, Any]]:
    """Return the JSON lines; Flower's own processes also write text."""
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"time"')]
