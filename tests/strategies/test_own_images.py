"""Devices that bring their own folders of images, with a server that has none."""

import pytest

from client.app import app
from common.flower.local_grid import LocalGrid
from common.storage.model_file import load_model
from strategies.configuration import read_config
from strategies.engine.rounds import QuorumError
from strategies.factory import make_strategy
from tests.support.digit_folders import write_images

SETTINGS = {
    "run.strategy": "darkdistill", "run.rounds": 2, "clients.count": 4, "clients.per-round": 4, "data.name": "devices",
    "data.classes": "zero,one,two", "data.channels": 1, "data.image-size": 8, "server.clients-evaluate-every": 1,
}  # fmt: skip


def test_devices_train_on_own_folders_and_store_models(tmp_path):
    nodes = [
        {
            "client-id": client, "depth": client + 1, "state": str(tmp_path / f"state-{client}"),
            "data": str(write_images(tmp_path / f"images-{client}", ["zero", "one", "two"], 10 * client)),
        }
        for client in range(4)
    ]  # fmt: skip
    strategy = make_strategy(read_config({**SETTINGS, "run.name": "own"}))
    result = strategy.start(LocalGrid(app, nodes))
    assert strategy.evaluator is None
    assert {r.num_examples for r in strategy.roster.reports.values()} == {24}
    assert len(result.train_metrics_clientapp) == 2
    for client in range(4):
        stored_model = load_model(tmp_path / f"state-{client}" / "own" / f"depth-{client + 1}")
        assert stored_model.classes == ("zero", "one", "two")
        assert len(stored_model.network.exit_positions) == client + 1


def test_device_with_unknown_classes_is_refused_and_logged(tmp_path, flower_log):
    folder = write_images(tmp_path / "images", ["zero", "cat", "two"], 0)
    strategy = make_strategy(read_config({**SETTINGS, "run.name": "unknown"}))
    with pytest.raises(QuorumError, match="no client can take part"):
        strategy.start(LocalGrid(app, [{"client-id": 0, "depth": 1, "data": str(folder)}]))
    assert "cat" in strategy.roster.reports[0].refused
    assert "zero" in strategy.roster.reports[0].refused
