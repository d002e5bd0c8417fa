"""The compose files' services with their exact commands, each as the image's user on its own host and root folder."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from strategies.callbacks.run_folder import read_events
from tests.docker.compose import read, words
from tests.docker.containers import Containers
from tests.docker.nginx import stream_module
from tests.support.deployment import wait_until
from tests.support.namespaces import namespaces_available, network

CLIENTS = [f"client-{number}" for number in range(4)]
SPLIT = [
    "-c", "run.strategy=hetero_splitee", "-c", "run.name=split", "-c", "run.rounds=2", "-c", "stream.host=proxy",
    "-c", "stream.bind=0.0.0.0", "-c", "stream.port=8009",
]  # fmt: skip
STRANGER = {"volume": {"subpath": "devices/stranger"}}
PATIENCE = 300.0  # seconds, also for a busy machine
pytestmark = [
    pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(namespaces_available()), reason=namespaces_available()),
]  # fmt: skip


def containers(folder: Path, stack: ExitStack, services: Mapping[str, Any]) -> Containers:
    hosts = stack.enter_context(network([name for name in services if name != "certificates"]))
    if "certificates" in services:  # it has no network, so any host fits
        hosts = {**hosts, "certificates": hosts["run"]}
    made = Containers(folder, services, hosts)
    stack.callback(made.close)
    return made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def join(made: Containers) -> None:
    for name in CLIENTS:
        made.start(name)
    for name in CLIENTS:
        wait_until(lambda name=name: made.healthy(name), PATIENCE, f"{name} is not healthy")


def serve(made: Containers) -> None:
    assert not made.healthy("server")
    made.start("server")
    wait_until(lambda: made.healthy("server"), PATIENCE, "the server is not healthy")


def runs(made: Containers) -> list[Path]:
    return list((made.volume("state") / "runs").iterdir())


def listed(made: Containers) -> str:
    """Return Flower's list of all runs, over the connection that the run's launcher uses."""
    line = ["/usr/bin/env", "FLWR_HOME=/state/.flwr", "flwr", "list", "server-8000", "--format", "json"]
    return made.execute("run", line, 60).stdout


def assert_complete(made: Containers, rounds: int) -> None:
    (folder,) = runs(made)
    events = read_events(folder / "metrics.jsonl")
    clients = [event["clients"] for event in events if event["event"] == "round"]
    assert clients == [{"1": 1, "2": 1, "3": 1, "4": 1}] * rounds


def assert_streamed(made: Containers) -> None:
    events = read_events(made.volume("state") / "runs" / "split" / "metrics.jsonl")
    rounds = [event for event in events if event["event"] == "round"]
    assert [(sum(event["clients"].values()), event["terms"]["missing"]) for event in rounds] == [(4, 0)] * 2
    assert all(event["terms"]["batches"] for event in rounds)


def assert_stops(made: Containers) -> None:
    for name in reversed(list(made.processes)):
        assert made.stop(name) == 0, made.log(name).read_text()


def test_demo_stack_completes_and_stops(tmp_path, stack):
    made = containers(tmp_path, stack, read("compose.yml", env={})["services"])
    serve(made)
    join(made)
    done = made.run("run", 900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_complete(made, rounds=5)

    made.start("run")
    wait_until(lambda: len(runs(made)) == 2, PATIENCE, "the second run does not start")
    assert made.stop("run") != 0
    wait_until(lambda: "finished:stopped" in listed(made), 30, "the stopped run does not finish")
    assert_stops(made)


@pytest.mark.skipif(stream_module() is None, reason="nginx or its stream module is not installed")
def test_demo_stack_with_tls_keys_and_proxy(tmp_path, stack):
    services = read("compose.yml", "compose.tls.yml", env={})["services"]
    services["proxy"]["entrypoint"][-1] = f"{stream_module()}{services['proxy']['entrypoint'][-1]}"
    stranger = deepcopy(services["client-0"])
    stranger["command"] += ["--patience", "0"]
    stranger["volumes"] = [volume | STRANGER if isinstance(volume, dict) else volume for volume in stranger["volumes"]]
    made = containers(tmp_path, stack, services | {"stranger": stranger})
    done = made.run("certificates", 120)
    assert done.returncode == 0, done.stdout + done.stderr
    serve(made)
    made.start("proxy")
    join(made)

    entry = words("server", "ENTRYPOINT")
    line = [*entry, "certificates", "--folder", "/certificates", "--add-device", "stranger"]
    done = made.execute("certificates", line, 120)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = made.run("stranger", PATIENCE)
    assert (refused.returncode, "proxy:8443 rejected this device" in refused.stderr) == (2, True), refused.stderr
    assert "SuperNode ID:" not in refused.stdout + refused.stderr

    done = made.run("run", 900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_complete(made, rounds=5)
    done = made.execute("run", [*made.line("run"), *SPLIT], 900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_streamed(made)
    for name in CLIENTS:
        assert made.execute(name, ["python", "-c", "open('/certificates/ca.key')"], 60).returncode == 1
        assert "server" not in (tmp_path / "etc" / name / "hosts").read_text()
    assert_stops(made)
