import copy
from dataclasses import replace

import pytest
import torch

from common.config import load_config
from common.data.batches import batches
from common.networks import EarlyExitNetwork
from common.seeding import generator
from common.storage.client_store import ClientStore
from strategies.hetero_splitee.settings import SplitEESettings
from tests.strategies.hetero_splitee.reference import Client, Reference, synchronised

CUTS = {0: 1, 1: 2, 2: 2, 3: 4}


def clients(network, sizes=(24, 16, 16, 8)):
    """Return clients with images whose brightness depends on their class."""
    source, owners = torch.Generator().manual_seed(3), {}
    for (client, cut), size in zip(CUTS.items(), sizes, strict=True):
        y = torch.randint(0, network.num_classes, (size,), generator=source)
        noise = 0.3 * torch.randn(size, *network.input_shape, generator=source)
        owners[client] = Client(cut, noise + (y - 1).view(-1, 1, 1, 1), y)
    return owners


@pytest.fixture
def run(slim, tmp_path):
    def start(rounds=2, owners=None, network=slim, **changes):
        flat = {"train.batch-size": 8, "train.lr": 0.02, "train.epochs": 2}
        flat |= {"splitee.aggregate-scope": "server", "splitee.client-sync": "none"}
        flat |= {f"splitee.{key.replace('_', '-')}": value for key, value in changes.items()}
        config = load_config(flat, [SplitEESettings])
        number = len(list(tmp_path.iterdir()))
        (tmp_path / f"run-{number}").mkdir()
        owners = clients(network) if owners is None else owners
        reference = Reference(network, owners, config, ClientStore(tmp_path, f"run-{number}"))
        return reference, [reference.run_round(round_) for round_ in range(1, rounds + 1)]

    return start


VARIANTS = [
    {"mode": "sequential"},
    {"mode": "sequential", "granularity": "epoch", "client_sync": "same_cut"},
    {"mode": "sequential", "gradient": "return", "client_sync": "prefix", "exit_weight": 0.5},
    {"mode": "averaging", "client_sync": "prefix", "period": 2},
    {"mode": "averaging", "aggregate_scope": "global"},
    {"mode": "averaging", "aggregate_scope": "global", "statistics": "own"},
    {"mode": "sequential", "turns": "shuffled", "statistics": "own"},
    {"mode": "averaging", "gradient": "return", "vectorise": "always"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_every_variant_learns_and_is_reproducible(run, changes):
    (one, losses), (two, _) = run(rounds=8, **changes), run(rounds=8, **changes)
    assert {c: len(per_batch) for c, per_batch in losses[0].server.items()} == {0: 6, 1: 4, 2: 4, 3: 2}
    assert {c: len(per_batch) for c, per_batch in losses[0].device.items()} == {0: 6, 1: 4, 2: 4, 3: 2}
    for client in CUTS:
        first, last = (sum(of.server[client]) / len(of.server[client]) for of in (losses[0], losses[-1]))
        assert last < 0.85 * first, client
    assert all(torch.equal(value, two.server.model()[key]) for key, value in one.server.model().items())
    for client, device in one.devices.items():
        assert torch.equal(device.model.floats, two.devices[client].model.floats)


def test_devices_do_not_depend_on_the_server_mode(run):
    one, _ = run(mode="sequential")
    for changes in ({"mode": "sequential", "granularity": "epoch"}, {"mode": "averaging", "server_lr": 0.5}):
        other, _ = run(**changes)
        for client, device in one.devices.items():
            assert torch.equal(device.model.floats, other.devices[client].model.floats)
        assert any(not torch.equal(value, other.server.model()[key]) for key, value in one.server.model().items())


def test_devices_are_averaged_as_configured(run):
    def unit(reference, client):
        return reference.devices[client].network.state_dict()["units.0.0.weight"]

    none, same, prefix, everything = (
        run(rounds=1, mode="averaging", **changes)[0]
        for changes in ({}, {"client_sync": "same_cut"}, {"client_sync": "prefix"}, {"aggregate_scope": "global"})
    )
    assert not torch.equal(unit(none, 1), unit(none, 2))
    assert torch.allclose(unit(same, 1), (unit(none, 1) + unit(none, 2)) / 2, atol=1e-6)
    assert torch.equal(unit(same, 1), unit(same, 2))
    assert torch.equal(unit(same, 0), unit(none, 0))
    mean = (24 * unit(none, 0) + 16 * unit(none, 1) + 16 * unit(none, 2) + 8 * unit(none, 3)) / 64
    for reference in (prefix, everything):
        assert all(torch.allclose(unit(reference, client), mean, atol=1e-6) for client in CUTS)
    key = "units.2.conv1.weight"  # on client 3's device, in the others' copies
    held = everything.devices[3].network.state_dict()[key]
    assert torch.equal(held, everything.server.model()[key])
    assert not torch.equal(held, prefix.devices[3].network.state_dict()[key])


def test_period_of_two_averages_every_other_round(run):
    first, _ = run(rounds=1, mode="averaging", period=2, client_sync="same_cut")
    second, _ = run(rounds=2, mode="averaging", period=2, client_sync="same_cut")
    weights = [[r.devices[c].network.state_dict()["units.1.conv1.weight"] for c in (1, 2)] for r in (first, second)]
    assert [torch.equal(*pair) for pair in weights] == [False, True]
    assert (first.server.averaged, second.server.averaged) == (0, 2)


def test_split_learning_with_one_client_equals_central_training(run, slim):
    owner = replace(clients(slim)[3], cut=2)
    reference, losses = run(owners={5: owner}, gradient="return")
    units = {int(index): copy.deepcopy(unit) for index, unit in slim.units.items()}
    central = EarlyExitNetwork(units, {5: copy.deepcopy(slim.head(5))}, slim.architecture).train()
    optimizer = torch.optim.SGD(central.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    expected = []
    for round_ in (1, 2):
        optimizer.param_groups[0]["lr"] = 0.02 * 0.99 ** (round_ - 1)
        source = generator(1, "batches", round_, 5)
        for batch in [batch for _ in range(2) for batch in batches(len(owner.y), 8, source)]:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(central(owner.x[batch])[-1], owner.y[batch])
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    assert [loss for of in losses for loss in of.server[5]] == pytest.approx(expected, rel=1e-5)
    parts = {**reference.server.model(), **reference.devices[5].network.state_dict()}
    for key, value in central.state_dict().items():
        assert torch.allclose(parts[key], value, rtol=1e-5, atol=1e-6), key


def device(cut, value, tracked):
    units = {f"units.{u}.weight": torch.full((2,), value) for u in range(cut)}
    return {**units, "units.0.tracked": torch.tensor(tracked), f"exits.{cut}.bias": torch.full((1,), value)}


DEVICES = {4: device(1, 1.0, 3), 1: device(2, 4.0, 9), 2: device(2, 10.0, 5), 3: device(3, 20.0, 1)}
HELD, SAMPLES = {4: 1, 1: 2, 2: 2, 3: 3}, {4: 10, 1: 10, 2: 20, 3: 40}


def numbers(part):
    return {key: pytest.approx(value.flatten()[0].item()) for key, value in part.items()}


def test_same_cut_averages_whole_devices():
    by_cut = synchronised(DEVICES, HELD, SAMPLES, "same_cut")
    assert list(by_cut) == [1, 2, 3]
    assert numbers(by_cut[1]) == {"units.0.weight": 1, "units.0.tracked": 3, "exits.1.bias": 1}
    assert numbers(by_cut[2]) == {"units.0.weight": 8, "units.1.weight": 8, "units.0.tracked": 9, "exits.2.bias": 8}
    assert all(torch.equal(value, DEVICES[3][key]) for key, value in by_cut[3].items())


def test_prefix_averages_each_unit_over_its_holders():
    by_cut = synchronised(DEVICES, HELD, SAMPLES, "prefix")
    first = (10 * 1 + 10 * 4 + 20 * 10 + 40 * 20) / 80  # 13.125
    second = (10 * 4 + 20 * 10 + 40 * 20) / 70
    assert numbers(by_cut[1]) == {"units.0.weight": first, "units.0.tracked": 9, "exits.1.bias": 1}
    assert numbers(by_cut[2]) == {
        "units.0.weight": first, "units.1.weight": second, "units.0.tracked": 9, "exits.2.bias": 8,
    }  # fmt: skip
    assert numbers(by_cut[3]) == {
        "units.0.weight": first, "units.1.weight": second, "units.2.weight": 20, "units.0.tracked": 9,
        "exits.3.bias": 20,
    }  # fmt: skip


def test_synchronised_ignores_absent_clients():
    assert list(synchronised({3: DEVICES[3]}, HELD, SAMPLES, "prefix")) == [3]
