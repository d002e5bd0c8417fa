"""Runs with a network and a set from outside: in this process here, as a simulation and on real nodes with -m slow."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from client.__main__ import main as client_main
from common.errors import UserError
from common.flower.processes import PROJECT
from common.networks.cost import cost_table
from common.plugins import VARIABLE
from common.storage.model_file import load_model
from common.storage.run_files import read_events, read_stored
from server.__main__ import main
from strategies.engine.rounds import QuorumError
from tests.support.deployment import Deployment, run_launcher, wait_until

MODULE = """
import numpy as np
from sklearn.datasets import load_digits
from torch import nn
from common.data.raw import RawSet, RawSplit
from common.networks.wrap import trunk_of

def net(spec):
    width = spec.width or 6
    blocks = [
        nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in ((spec.input_shape[0], width), (width, 2 * width), (2 * width, 2 * width))
    ]
    return trunk_of(blocks, spec.input_shape)

def digits(config):
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return RawSet(RawSplit(pixels, bunch.target), None, tuple("0123456789"))
"""
NAMES = {"network.name": "mine_outside:net", "data.name": "mine_outside:digits"}
SETTINGS = {
    **NAMES, "run.strategy": "eefl", "run.rounds": 2, "clients.count": 4, "clients.per-round": 4,
    "data.limit": 200, "clients.mix": "1,1,1", "network.width": 4,
}  # fmt: skip


def test_network_from_outside_trains_and_its_model_comes_back(plugin, run_strategy, tmp_path):
    plugin("mine_outside", MODULE)
    run = run_strategy({**NAMES, "network.width": 4, "server.evaluate-every": 2, "run.rounds": 4, "data.limit": 800})
    strategy = run.strategy
    assert run.records[-1].accuracy["mean"] > 0.2  # chance is 0.1
    assert run.records[-1].clients == {1: 2, 2: 2, 3: 2}
    assert strategy.data.name == "mine_outside:digits"
    assert len(strategy.data.digest) == 64
    strategy.save_final(tmp_path / "final")
    stored = load_model(tmp_path)
    x = torch.randn(3, 1, 8, 8)
    expected = strategy.global_network().eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(stored.network(x), expected, strict=True))
    assert cost_table(stored.network).tiers == (1, 2, 3)


def test_set_from_outside_equals_the_embedded_one_bit_for_bit(plugin, run_strategy):
    plugin("mine_outside", MODULE)
    own = run_strategy({"data.name": "mine_outside:digits"}).strategy
    embedded = run_strategy({"data.name": "digits"}).strategy
    assert all(torch.equal(own.model[key], value) for key, value in embedded.model.items())
    assert own.data.digest == embedded.data.digest


def test_client_that_does_not_allow_the_module_stays_out(plugin, prepare_run, monkeypatch, flower_log):
    plugin("mine_outside", MODULE)
    run = prepare_run({"network.name": "mine_outside:net"}, [{"client-id": 0}])
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(QuorumError, match="no client can take part"):
        run.strategy.start(run.grid)
    (line,) = (line for line in flower_log if "is left out" in line)
    assert "a client may not import 'mine_outside' for network.name 'mine_outside:net'" in line


def test_typed_names_are_allowed_and_the_stored_run_keeps_them(plugin, tmp_path, monkeypatch, capsys):
    plugin("mine_outside", MODULE)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    pairs = [word for key, value in {**SETTINGS, "run.name": "here"}.items() for word in ("-c", f"{key}={value}")]
    assert main(["data", *pairs]) == 0
    assert "data mine_outside:digits: 200 train, 359 test" in capsys.readouterr().out
    assert main(["run", "--in-process", *pairs]) == 0
    folder = tmp_path / "runs" / "here"
    stored = read_stored(folder)
    assert {key: stored[key] for key in NAMES} == NAMES
    assert len(json.loads((folder / "data.json").read_text())["digest"]) == 64
    infer = ["infer", "--model", str(folder), "--dataset", "digits"]
    assert client_main(infer) == 0
    capsys.readouterr()
    monkeypatch.setenv(VARIABLE, "")
    assert client_main(infer) == 2
    message = capsys.readouterr().err
    assert "may not import 'mine_outside' for network.name 'mine_outside:net'" in message
    assert f"{VARIABLE}=mine_outside" in message
    assert "does not hold a whole model" not in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.exit-weights": "1,2"}, r"exit-weights is 1\.0,2\.0, but the network has 3 exits"),
        ({"objective.exit-weights": "1,2,3,4"}, r"but the network has 3 exits: give one each"),
        ({"clients.mix": "0.5,0.5"}, r"clients\.mix '0\.5,0\.5' must give one share"),
        ({"network.exits": "1,2", "clients.mix": "equal"}, r"network\.exits is 1,2: .* end with 3"),
    ],
)
def test_lists_are_checked_once_the_exits_are_known(plugin, prepare_run, changes, message):
    plugin("mine_outside", MODULE)
    with pytest.raises(UserError, match=message):
        prepare_run({**NAMES, **changes})


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("network.name=mine_nowhere:net", "this command cannot import 'mine_nowhere'"),
        ("data.name=mine_outside:digit", "mine_outside has no 'digit'"),
        ("network.name=mine_outside:MODULES", "has no 'MODULES'"),
        ("network.name=mine_outside", "must be one of convnet, "),
    ],
)
def test_mistake_comes_before_anything_starts(plugin, tmp_path, monkeypatch, capsys, pair, message):
    plugin("mine_outside", MODULE)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    assert main(["run", "-c", pair]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / ".flwr" / "ray.log").exists()


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Put the module onto the PYTHONPATH of processes that are started from now on, not of this one."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "mine_outside.py").write_text(MODULE)
    paths = filter(None, [str(folder), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return folder


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(600)
def test_simulation_gives_the_weights_of_one_process(package, plugin, run_strategy, tmp_path):
    done = run_launcher(tmp_path, {**SETTINGS, "run.name": "ray"})
    assert done.returncode == 0, done.stderr
    weights = load_file(tmp_path / "runs" / "ray" / "final" / "model.safetensors")
    plugin("mine_outside", MODULE)
    defaults = {"clients.device": "auto", "server.evaluate-every": 1, "train.batch-size": 32}
    strategy = run_strategy({**SETTINGS, **defaults}).strategy
    assert weights.keys() == strategy.model.keys()
    assert all(torch.equal(weights[key], strategy.model[key]) for key in weights)


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(600)
def test_server_without_the_module_ends_the_run_and_names_itself(tmp_path, monkeypatch):
    (tmp_path / "mine_outside.py").write_text(MODULE)
    script = tmp_path / "start.py"
    script.write_text(  # the command finds the module beside it, the processes that it starts do not
        f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(PROJECT)!r}]\n"
        "from server.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    done = run_launcher(tmp_path, {**SETTINGS, "run.name": "absent"}, script)
    assert done.returncode == 1
    assert "the server cannot import 'mine_outside' for network.name 'mine_outside:net'" in done.stderr


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(600)
def test_device_without_the_permission_is_left_out_and_another_trains(package, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "mine_outside")
    deployment = Deployment(tmp_path / "deployment")
    try:
        deployment.node("willing", "client-id=0 depth=3")
        deployment.env = {**deployment.env, VARIABLE: ""}
        deployment.node("unwilling", "client-id=1 depth=3")
        settings = {**SETTINGS, "data.limit": 120, "clients.count": 2, "clients.per-round": 1, "round.min-nodes": 1}
        wait_until(lambda: deployment.nodes() == 2, 120, "the nodes do not connect")
        run_id = deployment.run({**settings, "run.name": "half", "round.quorum": 0.5})
        status, details = deployment.wait(run_id, 300)
    finally:
        deployment.close()
    assert status == "finished:completed", details
    events = read_events(deployment.folder / "runs" / "half" / "metrics.jsonl")
    assert [event["clients"] for event in events if event["event"] == "round"] == [{"3": 1}] * 2
    reasons = {event["reason"] for event in events if event["event"] == "left_out"}
    assert any("a client may not import 'mine_outside' for network.name 'mine_outside:net'" in r for r in reasons)
