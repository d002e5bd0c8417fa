"""Methods on texts: nothing between the data and the loss may assume images."""

import argparse

import pytest
import torch

from client.commands.computing import add_infer
from common.data import load
from common.errors import UserError
from common.paths import cache_root
from common.storage.model_file import load_model
from strategies.configuration import read_config
from strategies.factory import make_strategy

TEXTS = {
    "data.name": "bbc_news", "data.vocabulary": 4000, "network.name": "transformer4", "network.width": 32,
    "data.limit": 0, "train.batch-size": 8, "train.lr": 0.01, "train.lr-decay": 1.0,
}  # fmt: skip
QUICK = {
    **TEXTS, "data.limit": 120, "data.length": 12, "data.vocabulary": 300, "network.width": 8, "run.rounds": 1,
    "clients.count": 4, "clients.per-round": 4, "clients.mix": "equal",
}  # fmt: skip


def test_run_learns_news_sections(run_strategy):
    run = run_strategy({
        **TEXTS, "clients.count": 2, "clients.per-round": 2, "clients.mix": "0.5,0,0,0.5", "train.epochs": 2,
        "run.rounds": 4, "server.evaluate-every": 4,
    })  # fmt: skip
    assert run.records[-1].clients == {1: 1, 4: 1}
    assert run.records[-1].accuracy["mean"] > 0.45  # the largest section is 0.24 of all articles
    assert len(run.records[-1].accuracy["exit_macs"]) == 4


def test_grouping_changes_no_bit(run_strategy):
    one = run_strategy(QUICK).strategy.model
    two = run_strategy(QUICK, [{"partition-id": 0}, {"partition-id": 1}]).strategy.model
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("variant", ["progressive", "parallel"])
def test_darkdistill_generates_latents_of_texts(run_strategy, variant):
    changes = {
        **QUICK, "run.strategy": "darkdistill", "darkdistill.variant": variant, "darkdistill.distill-steps": 1,
        "darkdistill.server-epochs": 1, "darkdistill.generator-hidden": 32,
    }  # fmt: skip
    distilled = run_strategy(changes).strategy
    plain = run_strategy({**changes, "darkdistill.distillation": False}).strategy
    assert distilled.round == 1
    assert any(not torch.equal(distilled.model[key], plain.model[key]) for key in plain.model)
    assert all(value.isfinite().all() for value in distilled.model.values())


def test_personal_networks_train_on_texts(run_strategy):
    run = run_strategy({**QUICK, "run.strategy": "cafedistill", "run.rounds": 2, "data.client-test": 0.25})
    measured = run.records[-1].client_accuracy
    assert (measured["clients"], len(measured["exits"]), measured["own_test"]) == (4, 4, True)
    assert set(run.strategy.known) == {0, 1, 2, 3}


def test_split_training_cuts_text_network_between_blocks(run_strategy):
    changes = {"clients.mix": "equal", "splitee.cuts": "1,2", "stream.patience": 30.0, "data.client-test": 0.25}
    run = run_strategy({**QUICK, **changes, "run.strategy": "hetero_splitee"})
    assert run.records[-1].terms["missing"] == 0
    assert set(run.records[-1].client_accuracy["by_part"]) == {1, 2}


def test_pixel_generation_is_refused_for_texts(flat):
    with pytest.raises(UserError, match="texts have no pixels"):
        make_strategy(
            read_config({**flat, **QUICK, "run.strategy": "darkdistill", "darkdistill.generator-output": "pixels"})
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"network.name": "lenet"}, "'lenet' does not take texts"), ({"data.name": "digits"}, "does not take images")],
)
def test_network_for_other_data_kind_is_refused(flat, changes, message):
    with pytest.raises(UserError, match=message):
        make_strategy(read_config({**flat, **QUICK, **changes}))


def test_delivered_text_model_works_and_infer_asks_for_texts(run_strategy, tmp_path):
    run = run_strategy({**QUICK, "clients.store": str(tmp_path)})
    stored_model = load_model(tmp_path / "test" / "depth-4")
    data = load(run.strategy.config.data, cache_root())
    assert stored_model.classes == data.classes
    assert stored_model.network(stored_model.normalizer(data.test.inputs[:3]))[-1].shape == (3, 5)
    parser = argparse.ArgumentParser()
    add_infer(parser.add_subparsers())
    options = parser.parse_args(["infer", "--model", str(tmp_path / "test" / "depth-4"), "--images", str(tmp_path)])
    with pytest.raises(UserError, match="the model of --model classifies texts, give --texts FOLDER"):
        options.run(options)


def test_device_with_image_folder_is_refused(prepare_run, tmp_path):
    run = prepare_run(QUICK, [{"client-id": 0, "depth": 1, "data": str(tmp_path)}])
    with pytest.raises(Exception, match="no client can take part"):
        run.strategy.start(run.grid)
    assert "holds images, but this run's data are texts" in run.strategy.roster.reports[0].refused
