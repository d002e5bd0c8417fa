"""`start`, `submit`, `register` and `certificates`: what they check, print and pass on to Flower."""

import argparse
import shlex
import socket
import time
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from client.commands import start as device_start
from common.errors import UserError
from common.flower.processes import child, environment, free_port, wait_for_port
from common.rpc.channels import split_address
from common.rpc.credentials import make_credentials, public_keys, server_files
from server import __main__ as command
from server.commands import connections, deploy, start, submit
from server.commands.connections import connection, register_keys
from server.commands.deploy import flwr
from server.commands.launch import Outcome


def started(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    start.add_parser(parser.add_subparsers())
    return parser.parse_args(["start", *words])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_credentials(folder, ["a"], ["one", "two"])
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--address", "0.0.0.0:8000"], "--address 0.0.0.0:8000 is not loopback: add --tls"),
        (["--address", "ml.example.org:8000"], "not loopback"),
        (["--address", "8000"], "is not an address"),
        (["--require-node-keys"], "needs --tls"),
        (["--certificates", "nowhere"], "nowhere/ca.pem is missing"),
        (["--certificates", "nowhere", "--insecure"], "--insecure contradicts"),
    ],
)
def test_start_refuses_unsafe_options(tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(start, "child", lambda *_: pytest.fail("started"))
    with pytest.raises(UserError, match=message):
        start.run(started(*words, "--state", str(tmp_path)))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_start_refuses_a_taken_port(tmp_path, monkeypatch, host):
    monkeypatch.setattr(start, "child", lambda *_: pytest.fail("started"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"{host}:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=f"cannot listen at {address}: Address already in use"):
            start.run(started("--address", address, "--state", str(tmp_path)))


def test_start_runs_flowers_command(tmp_path, certificates):
    plain = started()
    assert start._command(plain, "127.0.0.1", 8000, tmp_path, None) == [
        "flower-superlink", "--host", "127.0.0.1", "--port", "8000", "--database", str(tmp_path / "superlink.db"),
        "--insecure",
    ]  # fmt: skip
    secure = started("--address", "[::]:1", "--certificates", str(certificates), "--require-node-keys")
    words = start._command(secure, "[::]", 1, tmp_path, start._security(secure, "[::]"))
    assert words[words.index("--host") + 1] == "::"
    assert words[words.index("--ssl-keyfile") + 1] == str(certificates / "server.key")
    assert words[-1] == "--enable-supernode-auth"
    assert "--insecure" not in words


def test_start_prints_a_submit_command_for_this_server(tmp_path, certificates):
    secure = started("--address", "0.0.0.0:8000", "--certificates", str(certificates))
    text = start._next_commands(secure, "0.0.0.0", 8000, tmp_path, start._security(secure, "0.0.0.0"))
    assert "any machine that reaches this address can submit code" in text
    assert f"--superlink 127.0.0.1:8000 --root-certificates {certificates / 'ca.pem'}" in text
    assert "warning" not in start._next_commands(started(), "127.0.0.1", 8000, tmp_path, None)


@pytest.mark.parametrize(
    ("address", "security"), [("127.0.0.1:8000", []), ("10.0.0.5:8000", ["--insecure"]), ("0.0.0.0:8000", ["--tls"])]
)
def test_start_prints_commands_that_work(tmp_path, monkeypatch, certificates, address, security):
    host, port = address.split(":")
    if security == ["--tls"]:
        security = ["--certificates", str(certificates)]
    options = started("--address", address, *security, "--state", str(tmp_path))
    text = start._next_commands(options, host, int(port), tmp_path, start._security(options, host))
    lines = [shlex.split(line.partition("python -m ")[2]) for line in text.splitlines() if "python -m" in line]
    (one, two, run), parser = lines, argparse.ArgumentParser()
    device_start.add_parser(parser.add_subparsers())
    devices = [parser.parse_args(words[1:]) for words in (one, two)]
    assert [device.client for device in devices] == [0, 1]  # two nodes with one number would be one client
    for device in devices:
        device.certificates = device.certificates and certificates / "devices" / "one"
        device_start._security(device, split_address(device.superlink)[0])

    submitted: dict[str, Any] = {}

    def deploy(overrides: Mapping[str, Any], root: Path, env: Mapping[str, str], name: str) -> Outcome:
        submitted.update(overrides)
        return Outcome(root / "a", "finished:completed", "")

    monkeypatch.setattr(submit, "deploy", deploy)
    monkeypatch.setattr(submit, "connection", lambda *_: "there")
    assert command.main(run[1:]) == 0
    assert {key: value for key, value in submitted.items() if key != "run.name"} == {
        "clients.count": 2, "clients.per-round": 2, "round.min-nodes": 2,
    }  # fmt: skip


class Flower:
    """Replaces `flwr`: makes a configuration."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.commands: list[list[str]] = []

    def __call__(self, words: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
        self.commands.append(list(words))
        (self.home / "config.toml").write_text(
            '[superlink]\ndefault = "local"\n[superlink.local]\naddress = ":local:"\n'
        )
        return {"success": True}


def test_connection_adds_a_superlink_once(tmp_path, monkeypatch):
    flower, authority = Flower(tmp_path), tmp_path / "🌱.pem"
    monkeypatch.setattr(connections, "flwr", flower)
    for _ in range(2):
        assert connection(tmp_path, "127.0.0.1:8000", None, {}) == "127-0-0-1-8000"
        assert connection(tmp_path, "ml.example.org:8000", authority, {}) == "ml-example-org-8000-tls"
    assert flower.commands == [["config", "list"]]
    assert tomllib.loads((tmp_path / "config.toml").read_text())["superlink"] == {
        "default": "local", "local": {"address": ":local:"},
        "127-0-0-1-8000": {"address": "127.0.0.1:8000", "insecure": True},
        "ml-example-org-8000-tls": {"address": "ml.example.org:8000", "root-certificates": str(authority)},
    }  # fmt: skip
    (tmp_path / "config.toml").write_text("[oops")
    with pytest.raises(UserError, match="is not valid TOML"):
        connection(tmp_path, "127.0.0.1:8000", None, {})


def test_connection_replaces_the_authority_of_its_own_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "flwr", Flower(tmp_path))
    file, there = tmp_path / "config.toml", "ml.example.org:8000"
    name = connection(tmp_path, there, tmp_path / "ca.pem", {})
    connection(tmp_path, "127.0.0.1:8000", None, {})
    before = file.read_text()
    assert connection(tmp_path, there, tmp_path / "other.pem", {}) == name
    assert file.read_text() == before.replace("ca.pem", "other.pem")
    file.write_text(file.read_text().replace("root-certificates =", "federation = 'mine'\nroot-certificates ="))
    mine = file.read_text()
    with pytest.raises(UserError, match=r"another \[superlink.ml-example-org-8000-tls\] entry: delete it"):
        connection(tmp_path, there, tmp_path / "ca.pem", {})
    assert file.read_text() == mine


def test_concurrent_commands_add_a_superlink_once(tmp_path, monkeypatch):
    read = tomllib.loads

    def slowly(text: str) -> dict[str, Any]:
        time.sleep(0.05)  # time for another command to read the same file
        return read(text)

    monkeypatch.setattr(connections, "flwr", Flower(tmp_path))
    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(connections.tomllib, "loads", slowly)
        names = list(pool.map(lambda _: connection(tmp_path, "127.0.0.1:8000", None, {}), range(4)))
    assert names == ["127-0-0-1-8000"] * 4
    assert len(read((tmp_path / "config.toml").read_text())["superlink"]) == 3


@pytest.mark.deployment
def test_keys_are_registered_once_and_never_again(tmp_path, certificates, capsys):
    home, port, files, keys = tmp_path / ".flwr", free_port(), server_files(certificates), public_keys(certificates)
    home.mkdir()
    env = environment(home)
    options = started("--require-node-keys")
    with child(start._command(options, "127.0.0.1", port, home, files), env, home) as superlink:
        assert wait_for_port("127.0.0.1", port, superlink.process)
        name = connection(home, f"127.0.0.1:{port}", files.authority, env)
        assert register_keys({"one": keys["one"]}, name, env) == ["one"]
        (node,) = flwr(["supernode", "list", name], env)["nodes"]
        assert register_keys(keys, name, env) == ["two"]
        assert register_keys(keys, name, env) == []
        assert capsys.readouterr().err == ""
        assert flwr(["supernode", "unregister", node["node-id"], name], env)["success"]
        assert register_keys(keys, name, env) == []
    assert "the keys of one were unregistered, and Flower never takes such a key again" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"not all device keys were registered: .*unavailable"):
        register_keys(keys, name, env)


@pytest.mark.parametrize(("status", "code"), [("finished:completed", 0), ("finished:failed", 1)])
def test_submit_exits_as_the_run_ended(tmp_path, monkeypatch, capsys, status, code):
    submitted: dict[str, Any] = {}

    def deploy(overrides: Mapping[str, Any], root: Path, env: Mapping[str, str], name: str) -> Outcome:
        submitted.update(overrides, root=root, name=name)
        return Outcome(root / str(overrides["run.name"]), status, "quorum")

    monkeypatch.setattr(submit, "deploy", deploy)
    monkeypatch.setattr(submit, "connection", lambda *_: "there")
    words = ["submit", "--state", str(tmp_path), "-c", "run.strategy=eefl", "-c", "run.name=a"]
    assert command.main(words) == code
    assert submitted == {"run.strategy": "eefl", "run.name": "a", "root": tmp_path / "runs", "name": "there"}
    printed = capsys.readouterr()
    assert "completed: runs/a on the SuperLink's machine" in printed.out if code == 0 else "quorum" in printed.err
    assert command.main(["submit", "--superlink", "ml.example.org:8000"]) == 2
    assert "not loopback" in capsys.readouterr().err


def test_submit_resumes_a_run_from_its_folder(tmp_path, monkeypatch, capsys):
    flwr = {"success": True, "run-id": 5, "runs": [{"status": "finished:completed"}]}
    monkeypatch.setattr(deploy, "_flwr", lambda *_: flwr)
    monkeypatch.setattr(deploy, "STARTING", 0.0)
    monkeypatch.setattr(submit, "connection", lambda *_: "there")
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / ".flwr").mkdir()
    monkeypatch.chdir(tmp_path)
    assert command.main(["submit", "--state", str(tmp_path), "--resume", "runs/old"]) == 0
    assert f"completed: {tmp_path / 'runs' / 'old'}" in capsys.readouterr().out
    assert command.main(["submit", "--state", str(tmp_path), "--resume", "runs/old", "-c", "run.rounds=9"]) == 2


def test_deploy_passes_the_connections_name_to_flower(tmp_path, monkeypatch):
    commands: list[Sequence[str]] = []

    def flwr(words: Sequence[str], env: Mapping[str, str], noted: Sequence[int] = ()) -> dict[str, Any]:
        commands.append(words)
        if words[1] == "run":
            return {"success": True, "run-id": 7}
        return {"runs": [{"status": "finished:completed"}]}

    monkeypatch.setattr(deploy, "_flwr", flwr)
    monkeypatch.setattr(deploy, "STARTING", 0.0)
    outcome = deploy.deploy({"run.name": "a"}, tmp_path, {"FLWR_HOME": str(tmp_path)}, "there", show=False)
    assert outcome.completed
    assert [(words[1], words[3 if words[1] == "run" else 2]) for words in commands] == [
        ("run", "there"),
        ("list", "there"),
    ]
    assert "--federation-config" not in commands[0]


def test_certificates_print_the_next_commands(tmp_path, capsys):
    folder = tmp_path / "c"
    assert command.main(["certificates", "--folder", str(folder), "--host", "ml.example.org", "--devices", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"python -m server start --certificates {folder} --require-node-keys" in printed
    assert f"copy {folder / 'devices' / 'device-0'}" in printed
    assert "--client-id N\n" in printed
    assert command.main(["certificates", "--folder", str(folder), "--add-device", "cam"]) == 0
    assert sorted(public_keys(folder)) == ["cam", "device-0", "device-1"]
    assert command.main(["certificates", "--folder", str(folder), "--devices", "-1"]) == 2
    assert command.main(["register", "--certificates", str(tmp_path / "none")]) == 2
    assert f"--folder {tmp_path / 'none'} --add-device NAME" in capsys.readouterr().err
