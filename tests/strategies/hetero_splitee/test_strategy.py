"""Hetero-SplitEE's runs on the in-process grid: the same bits, whoever hosts whom, and as without a network."""

import pytest
import torch

from strategies.hetero_splitee.client_sync import synchronised
from strategies.setup import make_strategy
from tests.strategies.hetero_splitee.runs import NODES, Spy, everything, kept, reference, same, told

SEQUENTIAL = {"splitee.mode": "sequential"}
EPOCH = {"splitee.mode": "sequential", "splitee.granularity": "epoch", "train.epochs": 2}
AVERAGING = {"splitee.mode": "averaging"}
GLOBAL = {**AVERAGING, "splitee.aggregate-scope": "global"}
RETURN = {"splitee.gradient": "return", "splitee.exit-weight": 0.5}
MODES = {
    "sequential": SEQUENTIAL,
    "epoch": EPOCH,
    "averaging": {**AVERAGING, "train.epochs": 3},
    "global": GLOBAL,
    "sequential-return": {**SEQUENTIAL, **RETURN, "train.epochs": 2},
    "epoch-return": {**EPOCH, **RETURN},
    "averaging-return": {**AVERAGING, **RETURN},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@modes
def test_who_hosts_whom_changes_no_bit(split, mode):
    one, *others = (split({**mode, "data.partitioner": "dirichlet"}, NODES[:number]) for number in (1, 2, 6))
    state, records = everything(one.strategy), told(one)
    assert len([key for key in state if key.startswith("client.0.")]) > 10
    for other in others:
        assert same(everything(other.strategy), state)
        assert told(other) == records
    assert records[-1]["accuracy"]["clients"] == 6
    assert len(records[-1]["accuracy"]["exits"]) == 2
    assert sorted(records[-1]["accuracy"]["by_depth"]) == [1, 2, 4]


@modes
def test_a_run_is_the_method_without_a_network_bit_for_bit(split, tmp_path, mode):
    run = split({**mode, "data.partitioner": "dirichlet", "run.rounds": 3}, NODES[:2])
    expected = reference(run.strategy, tmp_path, 3)
    assert same(run.strategy.server.state_dict()[0], expected.server.state_dict()[0])
    if mode is not GLOBAL:  # there, devices are about to take over the average
        own = {f"client.{c}.{k}": v for c, device in expected.devices.items() for k, v in device.state_dict().items()}
        assert same({k: v for k, v in kept(run.strategy).items() if k.startswith("client.")}, own)


def test_with_one_client_both_strategies_are_the_same(split):
    alone = {"clients.count": 1, "clients.per-round": 1, "clients.mix": "0,1,0", "data.limit": 40}
    one, two = (split({**alone, **mode}).strategy for mode in (SEQUENTIAL, AVERAGING))
    assert same(one.model, two.model)
    seeded = make_strategy(one.config).model
    changed = {key.split(".")[1] for key in seeded if "units." in key and not torch.equal(one.model[key], seeded[key])}
    assert changed == {"2", "3", "4"}  # the layers after the cut
    ours, theirs = ({k: v for k, v in kept(s).items() if k.startswith("client.")} for s in (one, two))
    assert same(ours, theirs)


@pytest.mark.parametrize("how", ["same_cut", "prefix"])
def test_devices_go_on_with_the_synchronised_parts(split, monkeypatch, how):
    spy = Spy(monkeypatch)
    reports = split({"splitee.client-sync": how}).strategy.roster.reports
    cuts = {client: report.depth for client, report in reports.items()}
    samples = {client: report.num_examples for client, report in reports.items()}
    expected = synchronised(spy.after[1], cuts, samples, how)
    assert sorted(spy.before[2]) == list(range(6))
    for client, state in spy.before[2].items():
        assert state.keys() == expected[cuts[client]].keys()
        for key, value in state.items():  # what nodes add up is rounded
            torch.testing.assert_close(value, expected[cuts[client]][key], rtol=1e-5, atol=1e-6)
    assert not same(spy.before[2][0], spy.after[1][0])
