"""Personal networks with real processes: on Ray, and on SuperNodes and a server that are killed and come back."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

from client.app import app
from common.config import Value
from common.flower.local_grid import LocalGrid
from common.messages import protocol
from common.paths import runs_root
from common.storage.client_store import ClientStore
from common.storage.files import read_tensors
from common.storage.run_files import read_events
from server.execution import prepare
from strategies.callbacks.run_folder import METHOD
from strategies.engine.strategy import EarlyExitStrategy
from tests.support.deployment import Deployment, run_launcher, wait_until
from tests.support.killing import NODES, rounds, run_and_kill

# Unequal depths, and teachers across depths: every way in which one client's head reaches another client.
DEPTHS = (4, 2, 4)
SETTINGS: dict[str, Value] = {
    "run.strategy": "cafedistill", "run.rounds": 3, "clients.count": 3, "clients.per-round": 3, "data.limit": 240,
    "data.client-test": 0.25, "data.partitioner": "dirichlet", "cafedistill.across-depths": True,
    "cafedistill.alpha": 5.0,
}  # fmt: skip
# The deadline is for a busy machine: Flower reports a dead node within a minute.
DEPLOYED: dict[str, Value] = {"round.min-nodes": 3, "round.deadline": 120.0}
Models = dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]


def run(
    settings: Mapping[str, Value], nodes: Sequence[Mapping[str, Any]] = NODES, clients: Any = app
) -> EarlyExitStrategy:
    """Run in this process, with a run folder."""
    strategy = prepare(settings)
    strategy.start(LocalGrid(clients, nodes))
    return strategy


def delivered(folder: Path) -> Models:
    """Return the final models below a folder by client: tensors and, among plain values, the client's thresholds."""
    return {path.parent.name: read_tensors(path) for path in folder.rglob("client-*/model.safetensors")}


def round_events(metrics: Path) -> list[dict[str, Any]]:
    """Return the rounds' events without what depends on the clock: seconds, and bytes up, which contain seconds."""
    return [
        {key: value for key, value in event.items() if key not in ("seconds", "traffic", "failures", "device")}
        | {"failures": list(event["failures"]), "down": event["traffic"]["down"]}
        for event in read_events(metrics)
        if event["event"] == "round"
    ]


def same(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def assert_same_models(one: Models, two: Models, clients: int) -> None:
    assert one.keys() == two.keys() == {f"client-{client:06d}" for client in range(clients)}
    for client, (tensors, values) in one.items():
        assert same(tensors, two[client][0]), client
        assert values | {"run": ""} == two[client][1] | {"run": ""}  # the runs' own names differ


def assert_same_state(checkpoint: Path, strategy: EarlyExitStrategy) -> None:
    tensors, values = read_tensors(checkpoint)
    kept, plain = strategy.state_dict()
    assert any(key.startswith("head.") for key in kept)
    assert same(tensors, strategy.model | {METHOD + key: value for key, value in kept.items()})
    assert values["method"] == plain
    assert values["committed"] == {str(client): round_ for client, round_ in strategy.committed.items()}
    assert values["trained"] == sorted(strategy.trained)


class Missing:
    """The ClientApp, which fails for some clients in some rounds, as a killed node does."""

    def __init__(self, missing: Collection[tuple[int, int]]) -> None:
        self.missing = missing  # (round, client)

    def __call__(self, message: Message, context: Context) -> Message:
        order, _ = protocol.unpack_order(message.content)
        missing = {(order.round, task.client) for task in order.tasks} & set(self.missing)
        if missing and message.metadata.message_type == protocol.TRAIN:
            raise RuntimeError("killed")
        return app(message, context)


class Counted(LocalGrid):
    """Counts the bytes of every training message and of its reply, as the server's `traffic` does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counted: list[tuple[int, int]] = []  # down and up

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        replies = list(super().push_messages(messages))
        for message, reply in zip(messages, replies, strict=True):
            if message.metadata.message_type == protocol.TRAIN:
                self.counted.append((protocol.message_bytes(message), protocol.message_bytes(self.replies[reply])))
        return replies


@pytest.mark.parametrize("network", ["lenet", "convnet"])
def test_cafedistill_has_the_traffic_of_fedavg(run_strategy, network):
    """FedAvg of the same network is `eefl` with all clients at full depth; a node has one client, as in deployment.

    The tests with SuperNodes below show that a deployment has the same bytes.
    """
    changes = {"network.name": network, "network.width": 0, "data.limit": 48, "data.image-size": 32, "run.rounds": 3,
               "clients.count": 3, "clients.per-round": 3}  # fmt: skip
    nodes = [{"client-id": client, "depth": 3} for client in range(3)]
    ours, averaging = (
        run_strategy({**changes, "run.strategy": name}, nodes, grid=Counted).grid.counted
        for name in ("cafedistill", "eefl")
    )
    assert len(ours) == len(averaging) == 9
    ratios = [a / b for one, two in zip(ours, averaging, strict=True) for a, b in zip(one, two, strict=True)]
    assert all(0.95 <= ratio <= 1.05 for ratio in ratios), ratios


def test_killed_and_resumed_run_gives_the_same_bits(tmp_path):
    settings: dict[str, Value] = {
        **SETTINGS, "run.root": str(tmp_path), "run.rounds": 4, "clients.count": 6, "clients.per-round": 4,
        "clients.mix": "0,0.5,0,0.5", "clients.store": str(tmp_path / "store"), "server.clients-evaluate-every": 2,
    }  # fmt: skip
    whole = run({**settings, "run.name": "whole"})
    reached: dict[str, Value] = {**settings, "run.name": "again"}
    # kill when a client has stored its heads but the server has not committed the round; when a checkpoint is half
    # written; when the rounds are done but no client has its final network
    for moment, round_ in (("store", 2), ("checkpoint", 3), ("deliver", 4)):
        run_and_kill(reached, moment, round_)
        reached = {"run.resume": str(tmp_path / "again")}
    run(reached)
    assert_same_state(tmp_path / "again" / "checkpoints" / "round-000004.safetensors", whole)
    lines = round_events(tmp_path / "whole" / "metrics.jsonl")
    assert [bool(line["client_accuracy"]) for line in lines] == [False, True, False, True]
    assert round_events(tmp_path / "again" / "metrics.jsonl") == lines
    one, two = (ClientStore(tmp_path / "store", name) for name in ("whole", "again"))
    for client, version in whole.committed.items():
        kept = one.load(client, version).tensors
        assert any(key.startswith("own.exits.") for key in kept)
        assert same(kept, two.load(client, version).tensors)
    assert_same_models(delivered(one.folder), delivered(two.folder), clients=6)


@pytest.mark.slow
@pytest.mark.deployment
def test_ray_gives_the_personal_networks_of_one_process(tmp_path):
    settings = {**SETTINGS, "clients.count": 5, "clients.mix": "0,0.4,0,0.6"}
    done = run_launcher(tmp_path, {**settings, "run.name": "ray"})
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "ray"
    assert f"report: {folder / 'report.html'}" in done.stdout
    assert "<h2>On the clients</h2>" in (folder / "report.html").read_text()
    assert not (folder / "final").exists()  # the final networks are with the clients
    local = {"run.name": "local", "run.root": str(tmp_path / "runs"), "clients.store": str(tmp_path / "store")}
    strategy = run({**settings, **local})
    assert_same_state(folder / "checkpoints" / "round-000003.safetensors", strategy)
    assert (
        len({strategy.committed.get(client, 0) for client in range(5)}) > 1
    )  # some clients did not take part in the last round
    evaluated = [
        round_events(tmp_path / "runs" / name / "metrics.jsonl")[-1]["client_accuracy"] for name in ("ray", "local")
    ]
    assert evaluated[0]["clients"] == 5
    assert evaluated[0] == evaluated[1]
    assert_same_models(delivered(tmp_path / ".cache" / "clients"), delivered(tmp_path / "store"), clients=5)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink and a node for each client."""
    deployment = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        for client in range(len(DEPTHS)):
            start_device(deployment, client)
        yield deployment
    finally:
        deployment.close()


def start_device(deployment: Deployment, client: int) -> None:
    """Start a client's node with its own disk."""
    disk = deployment.folder / f"disk-{client}"
    deployment.node(f"node-{client}", f'client-id={client} depth={DEPTHS[client]} state="{disk}"')


def assert_completes(deployment: Deployment, run_id: str) -> None:
    status, details = deployment.wait(run_id, 500)
    assert status == "finished:completed", details


def assert_like_one_process(deployment: Deployment, settings: Mapping[str, Value], folder: Path) -> None:
    """Compare a run, bit for bit, with a run in this process in which the same clients answer."""
    name = str(settings["run.name"])
    lines = round_events(deployment.folder / "runs" / name / "metrics.jsonl")
    missing = {(line["round"], int(client)) for line in lines for client in line["failures"]}
    nodes = [{"client-id": c, "depth": d, "state": str(folder / f"disk-{c}")} for c, d in enumerate(DEPTHS)]
    strategy = run(settings, nodes, Missing(missing))
    assert any(known.teachers for known in strategy.known.values())
    assert round_events(runs_root("") / name / "metrics.jsonl") == lines  # including client accuracies and bytes
    last = f"round-{strategy.config.run.rounds:06d}.safetensors"
    assert_same_state(deployment.folder / "runs" / name / "checkpoints" / last, strategy)
    disks = [delivered(f / f"disk-{client}" / name) for f in (deployment.folder, folder) for client in range(3)]
    assert all(len(disk) == 1 for disk in disks)
    deployed, local = ({k: v for disk in part for k, v in disk.items()} for part in (disks[:3], disks[3:]))
    assert_same_models(deployed, local, clients=3)


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(900)
def test_personal_heads_survive_a_restart_of_their_node(deployment: Deployment, tmp_path: Path) -> None:
    settings = {**SETTINGS, **DEPLOYED, "run.name": "restarted"}
    run_id = deployment.run(settings)
    folder = deployment.folder / "runs" / "restarted"
    wait_until(lambda: rounds(folder / "metrics.jsonl"), 300, "no round ended")
    deployment.kill("node-0")
    start_device(deployment, 0)
    assert_completes(deployment, run_id)
    assert deployment.nodes() == len(DEPTHS) + 1  # for Flower the restarted node is a new one
    _, values = read_tensors(folder / "checkpoints" / "round-000003.safetensors")
    assert values["committed"]["0"] == 3  # the client took part again, with the heads it had kept
    assert_like_one_process(deployment, settings, tmp_path)


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(900)
def test_run_of_a_killed_server_and_node_can_be_resumed(deployment: Deployment, tmp_path: Path) -> None:
    settings = {**SETTINGS, **DEPLOYED, "run.name": "resumed"}
    deployment.run(settings)
    folder = deployment.folder / "runs" / "resumed"
    wait_until(lambda: rounds(folder / "metrics.jsonl"), 300, "no round ended")
    deployment.kill_server_app()
    deployment.kill("node-1")
    before = deployment.nodes()
    start_device(deployment, 1)
    wait_until(lambda: deployment.nodes() > before, 60, "the node did not come back")
    assert_completes(deployment, deployment.run({"run.resume": str(folder)}))
    assert [event["event"] for event in read_events(folder / "metrics.jsonl")].count("start") == 2
    assert_like_one_process(deployment, settings, tmp_path)
