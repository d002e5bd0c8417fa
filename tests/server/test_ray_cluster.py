"""Simulations on a Ray cluster of two nodes: the same bits as on one machine, a node that dies, and unfit machines."""

import time
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from client.app import app
from common.flower.local_grid import LocalGrid
from common.flower.processes import PROJECT
from common.storage.run_files import read_events
from strategies.configuration import read_config
from strategies.factory import make_strategy
from tests.support.namespaces import namespaces_available
from tests.support.ray_cluster import HEAD, OTHER, RayCluster, ray_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployment,
    pytest.mark.timeout(590),
    pytest.mark.skipif(bool(namespaces_available()), reason=namespaces_available()),
]

# 100 clients with personal networks, 40 of them a round: many need a state that the other machine wrote
SETTINGS: Mapping[str, Any] = {
    "run.strategy": "ditto", "run.rounds": 3, "clients.count": 100, "clients.per-round": 40, "clients.device": "cpu",
    "network.name": "lenet", "network.width": 3, "data.limit": 1000, "train.batch-size": 8, "server.device": "cpu",
    "server.evaluate-every": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(OTHER) as made:
        made.start(HEAD)
        made.start(OTHER)
        yield made


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, torch.Tensor]:
    """Return the global model of the same run in one process."""
    store = str(tmp_path_factory.mktemp("reference"))
    strategy = make_strategy(read_config({**SETTINGS, "run.name": "reference", "clients.store": store}))
    strategy.start(LocalGrid(app, [{"partition-id": 0}]))
    return strategy.model


def rounds(cluster: RayCluster, name: str) -> list[Mapping[str, Any]]:
    metrics = cluster.folder / "runs" / name / "metrics.jsonl"
    return [event for event in read_events(metrics) if event["event"] == "round"] if metrics.exists() else []


# The next two have clusters of their own, so they come before `cluster` starts: all heads have one address.


def test_machine_with_other_sources_is_named():
    file = PROJECT / "common" / "errors.py"
    with ray_cluster(OTHER) as cluster:
        changed = cluster.shared / "errors.py"
        changed.write_text(file.read_text() + "# another version\n")
        cluster.start(HEAD)
        cluster.start(OTHER, before=[f"mount --bind {changed} {file}"])
        code, _, err = cluster.run({**SETTINGS, "run.name": "old"}, "--ray", cluster.address)
    assert code == 1
    assert "machine other: its packages of this app are not the server's" in err


def test_run_goes_on_when_a_machine_dies():
    settings = {**SETTINGS, "run.rounds": 6, "train.epochs": 12, "round.quorum": 0.3, "run.name": "dies"}
    with ray_cluster(OTHER) as cluster:
        cluster.start(HEAD)
        cluster.start(OTHER)
        run = cluster.popen(settings, "--ray", cluster.address)
        while len(rounds(cluster, "dies")) < 2 and run.poll() is None:
            time.sleep(0.05)
        time.sleep(1)  # the machine is at work on round 3
        cluster.kill(OTHER)
        out, err = run.communicate(timeout=250)
        done = rounds(cluster, "dies")
    assert run.returncode == 0, out + err
    assert len(done) == 6
    (failed,) = [event for event in done if event["failures"]]  # a dead worker gets no more messages
    assert failed["round"] in (3, 4)
    assert all("Actor" in reason for reason in failed["failures"].values())


@pytest.mark.parametrize("shared", [False, True], ids=["states-travel", "shared-store"])
def test_two_machines_give_the_bits_of_one(cluster, reference, shared):
    name = "shared" if shared else "travels"
    store = {"clients.store": str(cluster.shared / "clients")} if shared else {}
    code, out, err = cluster.run({**SETTINGS, **store, "run.name": name}, "--ray", cluster.address)
    assert code == 0, out + err
    assert all(not event["failures"] for event in rounds(cluster, name))
    weights = load_file(sorted((cluster.folder / "runs" / name / "checkpoints").iterdir())[-1])
    assert all(torch.equal(weights[key], reference[key]) for key in reference)
    if not shared:
        stored = [len(list(cluster.clients(node, name).glob("client-*"))) for node in (HEAD, OTHER)]
        print("clients with files on head and other:", stored)
        assert min(stored) > 20  # of 100: both nodes worked


def test_machine_without_the_shared_store_is_named(cluster):
    store = {"clients.store": str(cluster.folder / "store"), "run.name": "alone"}
    code, _, err = cluster.run({**SETTINGS, **store}, "--ray", cluster.address)
    assert code == 1
    assert f"machine other: {cluster.folder}/store/alone is not the folder that the server writes to" in err


def test_machine_without_the_data_is_named(cluster):
    images = cluster.folder / "images"
    for split, label in product(("train", "test"), ("cat", "dog")):
        (images / split / label).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(images / split / label / f"{number}.png")
    data = {"data.name": "folder", "data.root": str(images), "clients.count": 4, "clients.per-round": 4}
    code, _, err = cluster.run({**SETTINGS, **data, "run.name": "bare"}, "--ray", cluster.address)
    assert code == 1
    assert f"machine other: data.root is {images}, which is not a folder" in err
