"""Metrics of a run for Prometheus, over HTTP while the ServerApp runs.

    earlybloom_run_info{run, strategy}        1
    earlybloom_round, earlybloom_rounds       the last complete round, and the last one of the run
    earlybloom_clients_total{outcome}         folded, failed, rejected or late (folded in a later round)
    earlybloom_bytes_total{direction}         of messages, down to clients and up
    earlybloom_phase_seconds{phase}           a summary: _sum and _count of discover, pack, clients, server, ..., round
    earlybloom_accuracy{exit, measured}       in [0, 1], measured by the server or on clients
    earlybloom_gpu_memory_bytes{kind}         allocated, peak or reserved, when scraped; absent without a GPU

Counters start at 0 with each start of the ServerApp, also when it continues a run.
"""

import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from common.errors import UserError
from strategies.callbacks.accuracy import exit_accuracies
from strategies.callbacks.base import Callback
from strategies.engine.rounds import Record

if TYPE_CHECKING:
    from strategies.engine.strategy import EarlyExitStrategy

PREFIX = "earlybloom_"
MEMORY: Mapping[str, Callable[[torch.device], int]] = {
    "allocated": torch.cuda.memory_allocated,
    "peak": torch.cuda.max_memory_allocated,
    "reserved": torch.cuda.memory_reserved,
}


class Prometheus(Callback):
    """Serves the run's numbers."""

    def __init__(self, host: str, port: int) -> None:
        """`port` 0 takes any free one. Raises `UserError` when the package is missing or the address is not free."""
        try:
            import prometheus_client  # noqa: F401
        except ImportError as error:
            raise UserError(
                "run.metrics-port needs prometheus-client: pip install -e '.[metrics]', or set the port to 0"
            ) from error
        _check_address(host, port)
        self.host, self.port = host, port
        self._stop: Callable[[], None] = lambda: None

    def on_start(self, strategy: "EarlyExitStrategy") -> None:
        """Create the metrics and start to serve them."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, start_http_server

        registry = CollectorRegistry()  # this run only
        info = Gauge(f"{PREFIX}run_info", "Name and method of the run", ["run", "strategy"], registry=registry)
        info.labels(strategy.config.run.name, strategy.name).set(1)
        self._round = Gauge(f"{PREFIX}round", "Last complete round", registry=registry)
        self._round.set(strategy.round)
        Gauge(f"{PREFIX}rounds", "Round after which the run ends", registry=registry).set(strategy.rounds)
        self._clients = Counter(f"{PREFIX}clients", "Clients by outcome", ["outcome"], registry=registry)
        self._bytes = Counter(f"{PREFIX}bytes", "Bytes of messages", ["direction"], registry=registry)
        self._seconds = Summary(f"{PREFIX}phase_seconds", "Seconds of a round by phase", ["phase"], registry=registry)
        self._accuracy = Gauge(f"{PREFIX}accuracy", "Accuracy of an exit", ["exit", "measured"], registry=registry)
        memory = Gauge(f"{PREFIX}gpu_memory_bytes", "The server's GPU memory", ["kind"], registry=registry)
        for outcome in outcomes(Record(0, 0)):
            self._clients.labels(outcome)
        if strategy.device.type == "cuda":
            for kind, measure in MEMORY.items():
                memory.labels(kind).set_function(partial(measure, strategy.device))
        server, thread = start_http_server(self.port, self.host, registry)
        self.port = server.server_port

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop

    def on_round(self, strategy: "EarlyExitStrategy", record: Record) -> None:
        """Add the round's numbers."""
        self._round.set(record.round)
        for outcome, number in outcomes(record).items():
            self._clients.labels(outcome).inc(number)
        for direction, number in record.traffic.items():
            self._bytes.labels(direction).inc(number)
        for phase, seconds in record.seconds.items():
            self._seconds.labels(phase).observe(seconds)
        for measured, accuracy in (("server", record.accuracy), ("clients", record.client_accuracy)):
            for number, value in enumerate(exit_accuracies(accuracy, {}), start=1):
                self._accuracy.labels(str(number), measured).set(value)

    def on_end(self, strategy: "EarlyExitStrategy", failure: str) -> None:
        """Stop serving; the run's status says whether it completed or failed."""
        self._stop()
        self._stop = lambda: None


def outcomes(record: Record) -> dict[str, int]:
    """Return how many clients a round folded, lost, rejected and folded late."""
    rejected = len(record.rejected)
    return {
        "folded": sum(record.clients.values()),
        "failed": len(record.failures) - rejected,
        "rejected": rejected,
        "late": len(record.late),
    }


def _check_address(host: str, port: int) -> None:
    """Raise `UserError` before the run starts if the server cannot listen at the address."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen at {host}:{port}: {error}; set run.metrics-host and run.metrics-port to a free address"
        ) from error
