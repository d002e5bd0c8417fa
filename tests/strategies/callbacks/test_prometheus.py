import re
import socket
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from client.app import app
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.storage.run_files import read_events
from server.execution import prepare
from strategies.callbacks.base import Callback
from strategies.callbacks.prometheus import Prometheus
from tests.strategies.callbacks.samples import client_record, record
from tests.support.deployment import free_port

pytest.importorskip("prometheus_client")


def scrape(port: int) -> dict[str, float]:
    """Return the metrics that Prometheus reads, without creation times of counters."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = (re.fullmatch(r"(\w+(?:\{.*\})?) (\S+)", line) for line in lines)
    return {m[1]: float(m[2]) for m in found if m and "_created" not in m[1]}


@pytest.fixture
def strategy() -> Any:
    run = SimpleNamespace(name='a "run"')
    device = torch.device("cpu")
    return SimpleNamespace(name="eefl", config=SimpleNamespace(run=run), round=4, rounds=9, device=device)


def test_scrape_returns_every_metric(strategy: Any) -> None:
    exporter = Prometheus("127.0.0.1", 0)
    exporter.on_start(strategy)
    try:
        before = scrape(exporter.port)
        assert before["earlybloom_round"] == 4
        assert before['earlybloom_clients_total{outcome="rejected"}'] == 0
        exporter.on_round(strategy, record(5, 9, failures={3: "late", 4: "nan"}, rejected=[4], late=[7]))
        exporter.on_round(strategy, client_record(2, 9))
        assert scrape(exporter.port) == {
            'earlybloom_run_info{run="a \\"run\\"",strategy="eefl"}': 1,
            "earlybloom_round": 2,
            "earlybloom_rounds": 9,
            'earlybloom_clients_total{outcome="folded"}': 6,
            'earlybloom_clients_total{outcome="failed"}': 1,
            'earlybloom_clients_total{outcome="rejected"}': 1,
            'earlybloom_clients_total{outcome="late"}': 1,
            'earlybloom_bytes_total{direction="down"}': 6e6,
            'earlybloom_bytes_total{direction="up"}': 2e6,
            **{
                f'earlybloom_phase_seconds_{kind}{{phase="{phase}"}}': value
                for phase, seconds in (("clients", 2.0), ("server", 1.0), ("round", 4.0))
                for kind, value in (("sum", seconds), ("count", 2.0))
            },
            'earlybloom_accuracy{exit="1",measured="server"}': 0.5,
            'earlybloom_accuracy{exit="2",measured="server"}': 1.0,
            'earlybloom_accuracy{exit="1",measured="clients"}': pytest.approx(0.55),
            'earlybloom_accuracy{exit="2",measured="clients"}': pytest.approx(0.75),
        }
    finally:
        exporter.on_end(strategy, "")
    with pytest.raises(OSError, match=r"(?i)refused"):
        scrape(exporter.port)


def test_gpu_memory_is_read_at_each_scrape(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy.device, held = torch.device("cuda"), {torch.device("cuda"): 100}
    for kind, factor in (("allocated", 1), ("peak", 2), ("reserved", 3)):
        monkeypatch.setitem(
            sys.modules["strategies.callbacks.prometheus"].MEMORY,
            kind,
            lambda device, factor=factor: factor * held[device],
        )
    exporter = Prometheus("127.0.0.1", 0)
    exporter.on_start(strategy)
    try:
        held[strategy.device] = 7
        memory = {key: value for key, value in scrape(exporter.port).items() if "gpu" in key}
    finally:
        exporter.on_end(strategy, "")
    assert memory == {
        f'earlybloom_gpu_memory_bytes{{kind="{kind}"}}': value
        for kind, value in (("allocated", 7), ("peak", 14), ("reserved", 21))
    }


class Scraper(Callback):
    """Scrapes after every round, as Prometheus does."""

    def __init__(self, port: int) -> None:
        self.port, self.seen = port, list[dict[str, float]]()

    def on_round(self, strategy: Any, record: Any) -> None:
        self.seen.append(scrape(self.port))


def test_metrics_port_serves_a_run_and_is_released(flat: dict[str, Any], tmp_path: Path) -> None:
    port = free_port()
    settings = {**flat, "run.root": str(tmp_path / "runs"), "run.metrics-port": port, "server.evaluate-every": 1}
    strategy, scraper = prepare(settings), Scraper(port)
    strategy.callbacks.append(scraper)
    strategy.start(LocalGrid(app, [{"partition-id": 0}]))
    assert [seen["earlybloom_round"] for seen in scraper.seen] == [1, 2]
    assert scraper.seen[-1]['earlybloom_clients_total{outcome="folded"}'] == 12
    events = [event for event in read_events(tmp_path / "runs" / "test" / "metrics.jsonl") if event["event"] == "round"]
    assert scraper.seen[-1]['earlybloom_bytes_total{direction="up"}'] == sum(e["traffic"]["up"] for e in events)
    assert scraper.seen[-1]['earlybloom_accuracy{exit="3",measured="server"}'] == events[-1]["accuracy"]["exits"][2]
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_no_listener_without_metrics_port(flat: dict[str, Any], tmp_path: Path) -> None:
    strategy = prepare({**flat, "run.root": str(tmp_path / "runs")})
    assert not any(isinstance(callback, Prometheus) for callback in strategy.callbacks)


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid", "203.0.113.1"])
def test_unusable_address_fails_before_the_run_has_a_folder(flat: dict[str, Any], tmp_path: Path, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {**flat, "run.root": str(tmp_path / "runs"), "run.metrics-port": port, "run.metrics-host": host}
        with pytest.raises(
            UserError, match=rf"cannot listen at {host}:{port}: .*; set run.metrics-host and run.metrics-port"
        ):
            prepare(settings)
    assert not (tmp_path / "runs").exists()


def test_missing_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[metrics\]'"):
        Prometheus("127.0.0.1", 0)
