"""A client of a personalised run uses its own network offline; the run's folder points to it."""

import json

import numpy as np
import pytest
from PIL import Image

from client.__main__ import main
from client.app import app
from common.data.digits import read_digits
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.storage.model_file import FILE, load_model
from server.execution import prepare


@pytest.fixture
def images(tmp_path):
    """Ten digits in folders named after their class."""
    split = read_digits().train
    for number in range(10):
        folder = tmp_path / "images" / str(int(split.labels[number]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(split.samples[number])).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def settings(flat, tmp_path):
    return {**flat, "run.strategy": "fedper", "run.rounds": 1, "run.root": str(tmp_path / "runs")}


def test_a_client_infers_with_its_own_network(settings, images, tmp_path, capsys):
    prepare(settings).start(LocalGrid(app, [{"partition-id": 0}]))
    own = tmp_path / "clients" / "test" / "client-000003"
    file = tmp_path / "out.json"
    assert main(["infer", "--model", str(own), "--images", str(images), "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["summary"]["images"] == content["summary"]["labelled"] == 10
    stored = load_model(own)
    assert content["policy"] == json.loads(stored.policy.to_json())
    assert len(stored.network.exit_positions) == 2  # client 3's depth
    capsys.readouterr()
    assert main(["infer", "--model", str(tmp_path / "runs" / "test"), "--images", str(images)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"each client of this run has its own, give the folder of one, such as {own.parent}/client-000000" in error


def test_a_run_points_to_its_clients_networks(settings, tmp_path):
    strategy = prepare(settings)
    strategy.callbacks[1].on_start(strategy)
    folder = tmp_path / "runs" / "test"
    where = "the run is not finished, or each client keeps its own, in .*/clients/test/client-"
    with pytest.raises(UserError, match=where):
        load_model(folder)
    (folder / "config.toml").write_text("[run\n")
    with pytest.raises(UserError, match=f"give a finished run's folder, or a file {FILE}"):
        load_model(folder)
