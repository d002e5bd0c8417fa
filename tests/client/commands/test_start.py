"""What a device decides before it joins, what Flower receives, and when the device gives up."""

import argparse
import json
import os
import shlex
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import parse_config_args

from client import __main__ as command
from client.commands import probe, start
from client.commands.capacity import read_capacity, shown
from client.commands.probe import fits
from common.capacity import CLASSES, Capacity, parse_capacity
from common.config import load_config
from common.errors import UserError
from common.networks import backbones
from common.rpc.credentials import make_credentials
from server.commands import submit
from server.commands.certificates import FOLDER
from server.commands.overrides import read_run
from strategies.registry import all_settings


def started(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    start.add_parser(parser.add_subparsers())
    return parser.parse_args(["start", "--client-id", "1", "--capacity", "depth=1", *words])


def probed(capacity: str) -> dict[str, Any]:
    """Return what `start.probe` returns, without a process of its own."""
    with redirect_stdout(StringIO()) as printed:
        assert command.main(["probe", "--json", "--network", "resnet_slim", "--capacity", capacity]) == 0
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


class Child:
    """A SuperNode that ends at once."""

    stopped = False

    def wait(self) -> int:
        return 1


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The started commands; SuperNodes end at once, without waiting in between."""
    begun: list[tuple[str, ...]] = []

    @contextmanager
    def child(words: Any, env: Any, folder: Path, signals: list[int]) -> Iterator[Child]:
        begun.append(tuple(words))
        yield Child()

    monkeypatch.setattr(start, "child", child)
    monkeypatch.setattr(start, "probe", probed)
    monkeypatch.setattr(start, "RETRY", 0.0)
    return begun


@pytest.mark.parametrize(
    ("text", "capacity"),
    [
        ("memory=512MB,compute=2GFLOPS", Capacity(memory=512e6, compute=2e9)),
        ("memory=512MB, bandwidth=10Mbps", Capacity(memory=512e6, bandwidth=10e6)),
        ("depth=2,cut=3", Capacity(depth=2, cut=3)),
        ("low", Capacity(memory=64e6, compute=1e9)),
    ],
)
def test_a_capacity_equals_its_node_configuration(text, capacity):
    found, node, _ = read_capacity(text)
    assert found == capacity == parse_capacity(node)


def test_a_measured_capacity_is_declared_as_measured():
    found, node, source = read_capacity("auto")
    assert found.memory
    assert found.compute
    assert parse_capacity(node) == Capacity(round(found.memory), round(found.compute))
    assert "matrix product" in source


@pytest.mark.parametrize("text", ["", "huge", "memory", "memory=", "disk=1GB", "memory=much"])
def test_an_unreadable_capacity_raises(text):
    with pytest.raises(UserError, match="memory"):
        read_capacity(text)


def test_classes_are_ordered_and_shown():
    memory, compute = ([getattr(parse_capacity(c), k) for c in CLASSES.values()] for k in ("memory", "compute"))
    assert memory == sorted(memory)
    assert compute == sorted(compute)
    assert shown(Capacity(memory=64e6, compute=1.5e9)) == "memory 64 MB, compute 1.5 GFLOPS"
    assert shown(Capacity(depth=2)) == "depth 2"
    assert shown(Capacity()) == "no limit"


def test_a_larger_capacity_takes_more_of_every_network():
    little, much = (list(fits(parse_capacity(CLASSES[name]), 1000, 32)) for name in ("low", "high"))
    assert [fit.network for fit in much] == list(backbones())
    assert all(one.depth.part <= two.depth.part and one.cut.part <= two.cut.part
               for one, two in zip(little, much, strict=True))  # fmt: skip
    slim = little[backbones().index("resnet_slim")]
    assert (slim.depth.part, slim.tiers) == (2, 4)
    assert slim.depth.reason == "tier 3 would take 75 s an epoch, more than 60 s"
    assert slim.cut.part <= slim.cuts == 4


def test_probe_prints_every_network(capsys):
    assert command.main(["probe", "--capacity", "low"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in backbones())
    assert command.main(["probe", "--samples", "0"]) == 2


def test_start_gets_its_capacity_from_a_process_of_its_own():
    assert start.probe("low") == probed("low")
    with pytest.raises(UserError, match=r"^--capacity 'huge': write low"):
        start.probe("huge")


def test_start_measures_in_the_process_that_probes(tmp_path, commands, capsys):
    options = started("--superlink", "127.0.0.1:1", "--patience", "0", "--state", str(tmp_path), "--capacity", "auto")
    with pytest.raises(UserError, match="rejected this device"):
        start.run(options)
    node = parse_config_args([commands[0][commands[0].index("--node-config") + 1]])
    assert parse_capacity(node).memory
    assert "depth " in capsys.readouterr().out


def test_an_interrupted_command_shows_no_traceback(monkeypatch, capsys):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "fits", interrupted)
    assert command.main(["probe", "--capacity", "low"]) == 130
    assert capsys.readouterr() == ("", "")


def test_flower_reads_back_the_node_configuration(tmp_path, commands):
    (tmp_path / "my images").mkdir()
    with pytest.raises(UserError, match="rejected this device"):
        start.run(started("--superlink", "127.0.0.1:1", "--data", str(tmp_path / "my images"), "--patience", "0",
                          "--state", str(tmp_path / "s"), "--port", "9094", "--worker", "2"))  # fmt: skip
    words = commands[0]
    assert words[:3] == ("flower-supernode", "--superlink", "127.0.0.1:1")
    assert words[-3:] == ("--insecure", "--port", "9094")
    assert parse_config_args([words[words.index("--node-config") + 1]]) == {
        "client-id": 1, "depth": "1", "data": str(tmp_path / "my images"), "state": str(tmp_path / "s"),
        "worker": 2.0,
    }  # fmt: skip
    with pytest.raises(UserError, match="without quotes"):
        start.node_config({"data": 'a"b'})


def test_a_folder_of_images_is_counted_and_never_decoded(tmp_path):
    (line,) = start.data_lines(tmp_path)
    assert line.startswith(f"warning: --data {tmp_path} holds no images yet: put them into")
    for name in ("train/cat/1.png", "train/cat/2.png", "test/dog/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()  # no image
    counts, warning, note = start.data_lines(tmp_path)
    assert counts == "data: 2 classes (test 1, train 2)"
    assert warning.startswith("warning: a run takes these folders as classes")
    assert note.startswith("note: folders inside class folders belong to the class")
    assert list(start.data_lines(tmp_path / "train")) == ["data: 1 class (cat 2)"]


def test_a_folder_with_two_spellings_of_a_class_starts_nothing(tmp_path, commands):
    for name in ("caf\u00e9", "cafe\u0301"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    with pytest.raises(UserError, match="two class folders named caf"):
        start.run(started("--superlink", "127.0.0.1:1", "--data", str(tmp_path)))
    assert commands == []


def test_keys_are_passed_to_flower(tmp_path, commands):
    make_credentials(tmp_path, ["a"], ["one"])
    device = tmp_path / "devices" / "one"
    with pytest.raises(UserError, match="rejected this device"):
        start.run(started("--superlink", "127.0.0.1:1", "--certificates", str(device), "--patience", "0"))
    assert commands[0][-6:-2] == (
        "--root-certificates", str(device / "ca.pem"), "--auth-supernode-private-key", str(device / "node.key"),
    )  # fmt: skip


@pytest.mark.parametrize("encrypted", [False, True])
def test_next_command_is_valid(encrypted):
    words = shlex.split(start._next_command(encrypted).partition("python -m server ")[2].replace("=N", "=3"))
    parser = argparse.ArgumentParser()
    submit.add_parser(parser.add_subparsers(dest="verb"))
    options = parser.parse_args(words)
    overrides = read_run(options)
    assert {key: value for key, value in overrides.items() if key != "run.name"} == {
        "clients.count": 3, "clients.per-round": 3, "round.min-nodes": 3,
    }  # fmt: skip
    load_config(overrides, all_settings())  # refuses an unknown key
    assert options.root_certificates == (FOLDER / "ca.pem" if encrypted else None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--superlink", "ml.example.org:8443"], "not loopback: give --certificates"),
        (["--superlink", "nowhere"], "has no host with a port"),
        (["--superlink", "127.0.0.1:1", "--data", "/no/such"], "--data /no/such is not a folder"),
        (["--superlink", "127.0.0.1:1", "--certificates", "/no/such"], "/no/such/ca.pem is missing"),
        (["--superlink", "127.0.0.1:1", "--client-id", "-3"], "clients are counted from 0"),
        (["--superlink", "127.0.0.1:1", "--capacity", "depth=0"], "--capacity depth=0: give 1 or more"),
        (["--superlink", "127.0.0.1:1", "--capacity", "depth=1,cut=-1"], "--capacity cut=-1: give 1 or more"),
        *(
            (["--superlink", "127.0.0.1:1", "--worker", minutes], f"--worker {minutes}: give minutes")
            for minutes in ("nan", "inf", "-1.0")
        ),
        (["--superlink", "127.0.0.1:1", "--patience", "nan"], "--patience nan: give seconds"),
        (["--superlink", "127.0.0.1:1", "--port", "65536"], "--port 65536: give 1 to 65535"),
    ],
)
def test_wrong_options_start_nothing(commands, words, message):
    with pytest.raises(UserError, match=message):
        start.run(started(*words))
    assert not commands


def test_a_server_without_tls_is_reported(commands):
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            connection, _ = plain.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="does not speak TLS"):
            start.run(started("--superlink", f"127.0.0.1:{plain.getsockname()[1]}", "--tls"))
        thread.join()
    assert not commands


def test_supernode_is_restarted_until_patience_ends(commands, monkeypatch, capsys):
    clock = iter([0.0, 500.0, 505.0, 506.0, 511.0, 599.0, 604.0, 605.0])  # begin and end of each
    monkeypatch.setattr(start.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(start.time, "sleep", lambda seconds: None)
    options = argparse.Namespace(superlink="x:1", patience=100.0, port=0)
    monkeypatch.setattr(start, "free_port", iter([5, 6, 7, 8]).__next__)
    with pytest.raises(UserError, match="rejected this device"):
        start._supervise(["node"], {}, Path(), options)
    # 500 s of work; then 100 s of failing starts are allowed
    assert commands == [("node", "--port", port) for port in "5678"]  # the last one's may be taken by now
    assert capsys.readouterr().out.count("starts again") == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_two_starts_ends_with_0(commands, monkeypatch, number):
    monkeypatch.setattr(start, "RETRY", 60.0)
    monkeypatch.setattr(start.time, "sleep", lambda seconds: os.kill(os.getpid(), number))
    assert start._supervise(["node"], {}, Path(), argparse.Namespace(superlink="x:1", patience=100.0, port=0)) == 0
    assert len(commands) == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_stopped_device_stays_stopped(commands, monkeypatch):
    monkeypatch.setattr(Child, "stopped", True)
    assert start._supervise(["node"], {}, Path(), argparse.Namespace(patience=100.0, port=0)) == 1
    assert len(commands) == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
