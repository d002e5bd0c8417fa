"""TLS, device keys and the proxy with real processes: which devices may join, and which requests pass."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from common.flower.processes import PROJECT, end, free_port, wait_for_port
from common.rpc.credentials import make_credentials
from common.storage.run_files import read_events
from tests.support.field import JOINED, READY
from tests.support.machines import Machines, settings

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A server that accepts only registered keys: those of device-0 and device-1."""
    machines = Machines(tmp_path_factory.mktemp("machines"))
    make_credentials(machines.folder / "certificates", ["127.0.0.1"], ["device-0", "device-1"])
    try:
        machines.start(
            "server", "server", "start", "--address", f"127.0.0.1:{machines.port}",
            "--certificates", str(machines.folder / "certificates"), "--require-node-keys",
            "--state", str(machines.folder / "server"),
        )  # fmt: skip
        machines.wait_for("server", READY)
        yield machines
    finally:
        machines.close()


@pytest.fixture(scope="module")
def proxy(machines: Machines) -> Iterator[int]:
    """Port of nginx in front of the server, with the shipped configuration."""
    if not shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"):
        pytest.skip("nginx is not installed")
    port, scratch = free_port(), machines.folder
    text = (PROJECT / "docker" / "nginx.conf").read_text()
    changes = {
        "/tmp/": f"{scratch}/", "/certificates/": f"{scratch}/certificates/",
        "listen 8443": f"listen 127.0.0.1:{port}", "server:8000": f"127.0.0.1:{machines.port}",
    }  # fmt: skip
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (scratch / "nginx.conf").write_text(text)
    with machines.log("nginx").open("ab") as log:
        process = subprocess.Popen(["nginx", "-c", str(scratch / "nginx.conf")], stdout=log, stderr=log)
    try:
        assert wait_for_port("127.0.0.1", port, process), machines.log("nginx").read_text()
        yield port
    finally:
        end(process)


def device(machines: Machines, name: str, folder: Path, port: int, *more: str) -> list[str]:
    return [
        "client", "start", "--superlink", f"127.0.0.1:{port}", "--certificates", str(folder), "--capacity", "depth=1",
        "--client-id", name[-1], "--state", str(machines.folder / name), *more,
    ]  # fmt: skip


def test_device_with_unregistered_key_is_refused(machines, tmp_path):
    make_credentials(machines.folder / "certificates", [], ["late-2"])
    folder = machines.folder / "certificates" / "devices" / "late-2"
    refused = machines.run(*device(machines, "late-2", folder, machines.port, "--patience", "0"))
    assert refused.returncode == 2
    assert "rejected this device" in refused.stderr
    assert JOINED not in refused.stdout + refused.stderr

    registered = machines.run(
        "server", "register", "--superlink", f"127.0.0.1:{machines.port}", "--state", str(machines.folder / "server"),
        "--certificates", str(machines.folder / "certificates"),
    )  # fmt: skip
    assert (registered.returncode, registered.stdout) == (0, "registered: late-2\n"), registered.stderr
    machines.start("late-2", *device(machines, "late-2", folder, machines.port))
    machines.wait_for("late-2", JOINED)
    assert machines.stop("late-2") == 0


def test_device_without_a_key_is_refused(machines, tmp_path):
    shutil.copy(machines.folder / "certificates" / "ca.pem", tmp_path)
    refused = machines.run(*device(machines, "none-3", tmp_path, machines.port, "--patience", "0"))
    assert refused.returncode == 2
    assert "rejected this device" in refused.stderr
    assert JOINED not in refused.stdout + refused.stderr


def test_device_refuses_a_server_of_another_authority(machines, tmp_path):
    make_credentials(tmp_path, ["127.0.0.1"], ["device-0"])
    refused = machines.run(*device(machines, "device-0", tmp_path / "devices" / "device-0", machines.port))
    assert refused.returncode == 2
    assert f"127.0.0.1:{machines.port}: its certificate does not verify against {tmp_path}" in refused.stderr


def test_proxy_passes_only_fleet_paths(machines, proxy):
    context = ssl.create_default_context(cafile=machines.folder / "certificates" / "ca.pem")

    def answer(path: str, port: int) -> int:
        try:
            request = Request(f"https://127.0.0.1:{port}{path}", data=b"")
            with urlopen(request, timeout=10, context=context) as found:
                return int(found.status)
        except HTTPError as error:
            return error.code

    outside = [
        "/v1/control/start-run", "/v1/control/list-runs", "/v1/runtime/acquire-task", "/health", "/docs", "/",
        "/v1/fleet/../control/list-runs", "/v1/fleet/..%2fcontrol/list-runs", "/v1/fleet/%2e%2e/control/list-runs",
        "//v1/control/list-runs", "/v1/fleet/",
    ]  # fmt: skip
    assert {path: answer(path, proxy) for path in outside} == dict.fromkeys(outside, 403)
    assert answer("/v1/control/list-runs", machines.port) != 403  # the server itself answers
    no_protobuf = {answer("/v1/fleet/pull-messages", port) for port in (proxy, machines.port)}
    assert no_protobuf == {415}


def test_proxy_refuses_a_submission(machines, proxy):
    refused = machines.run(
        "server", "submit", "--superlink", f"127.0.0.1:{proxy}", "--state", str(machines.folder / "stranger"),
        "--root-certificates", str(machines.folder / "certificates" / "ca.pem"), *settings("run.name=evil"),
    )  # fmt: skip
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "a proxy passes only what devices use" in refused.stderr


@pytest.mark.slow
def test_devices_behind_the_proxy_train(machines, proxy):
    for name in ("device-0", "device-1"):
        folder = machines.folder / "certificates" / "devices" / name
        machines.start(name, *device(machines, name, folder, proxy))
        machines.wait_for(name, JOINED)
    done = machines.run(
        "server", "submit", "--superlink", f"127.0.0.1:{machines.port}", "--state", str(machines.folder / "server"),
        "--root-certificates", str(machines.folder / "certificates" / "ca.pem"),
        *settings("run.strategy=eefl", "run.name=far", "run.rounds=1", "clients.count=2", "clients.per-round=2",
                  "round.min-nodes=2", "data.limit=200"),
        seconds=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    events = read_events(machines.folder / "server" / "runs" / "far" / "metrics.jsonl")
    assert [event["clients"] for event in events if event["event"] == "round"] == [{"1": 2}]
    for name in ("device-0", "device-1"):
        assert list((machines.folder / name / "far").glob("depth-1/model.safetensors"))
        assert machines.stop(name) == 0
