"""CAFEDistill's server half: what it gives each client, what it keeps, what it survives."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from client.app import app as real_app
from common.flower.local_grid import LocalGrid
from common.messages import protocol
from common.messages.protocol import ClientReport, ClientResult
from common.storage.client_store import ClientStore
from server.execution import prepare
from strategies.cafedistill.client import HEAD, STUDENTS
from strategies.cafedistill.heads import head_layout, head_state
from strategies.method import RoundUpdate
from strategies.personalised.base import PersonalTraining
from tests.support.killing import run_and_kill
from tests.support.personal_runs import (
    DEEP,
    HOME,
    NODES,
    Recorder,
    close,
    delivered,
    folder,
    heads,
    kept,
    make_job,
    same,
    seeded,
    trunk,
)

# the published alpha and schedule: by the defaults few clients teach others, and few rounds unlock all students at once
CAFE = {"run.strategy": "cafedistill", "cafedistill.alpha": 0.6, "cafedistill.admitted-by": 0.5}
ONE = {**CAFE, "run.rounds": 1}


@pytest.fixture
def everybody_learns(monkeypatch):
    """All students are unlocked from the first round on."""
    monkeypatch.setattr("strategies.cafedistill.strategy.quota", lambda *args: 10**6)


@pytest.fixture
def strategy(prepare_run):
    """A strategy to hand uploads to, without any client."""
    return prepare_run(CAFE).strategy


def meet(strategy, uploads: dict[int, np.ndarray], depths: dict[int, int] | None = None):
    """Merge a round in which these clients uploaded these last heads; return what is logged."""
    depths = depths or dict.fromkeys(uploads, 3)
    strategy.asked = {c: ClientReport(c, depths[c], "", 10) for c in uploads}
    results = {c: ClientResult(c, depths[c], 10) for c in uploads}
    entries = {c: {HEAD: np.asarray(head)} for c, head in uploads.items()}
    return strategy.merge(1, RoundUpdate(results=results, client_arrays=entries))


def changed(strategy, depth: int = 3, **change: float) -> np.ndarray:
    """The seed's last head minus a change, given as the values of single parameters: `p0=1.0`."""
    head = strategy.first[depth].clone()
    for name, value in change.items():
        head[int(name[1:])] -= value
    return head.numpy()


# What the paper says of the limits


def test_huge_alpha_gives_the_uniform_mean_of_last_heads(run_strategy):
    app = Recorder()
    run = run_strategy({**ONE, "cafedistill.alpha": 1e9}, app=app)
    uploads = {client: torch.from_numpy(arrays[HEAD]) for client, arrays in app.uploads(1).items()}
    assert len(uploads) == 6
    for clients in ((0, 1), (2, 3), (4, 5)):
        mean = torch.stack([uploads[client].double() for client in clients]).mean(0)
        for client in clients:
            torch.testing.assert_close(run.strategy.known[client].head.double(), mean, rtol=1e-6, atol=1e-7)
    assert run.records[0].terms["self_weight"] == pytest.approx(0.5)


def test_tiny_alpha_returns_each_clients_own_head(run_strategy):
    app = Recorder()
    run = run_strategy({**ONE, "cafedistill.alpha": 1e-9}, app=app)
    for client, arrays in app.uploads(1).items():
        assert torch.equal(run.strategy.known[client].head, torch.from_numpy(arrays[HEAD]))
    assert run.records[0].terms["self_weight"] == 1.0
    assert all(same(heads(delivered(run.strategy, client)), kept(run.strategy, client)) for client in range(6))


def test_without_distillation_it_is_fedper_with_averaged_heads(run_strategy, prepare_run, everybody_learns):
    small = {**DEEP, "clients.count": 3, "clients.per-round": 3}
    method = {"cafedistill.kd-weight": 0.0, "cafedistill.alpha": 1e9}
    strategy = run_strategy({**CAFE, **small, **method}).strategy
    equal = ",".join(["0.3333333333333333"] * 3)
    fedper = prepare_run({"run.strategy": "fedper", **small, "objective.exit-weights": equal}).strategy
    own = {client: heads(seeded(fedper)) for client in range(3)}
    shared = trunk(seeded(fedper))
    for round_ in (1, 2):
        networks = {}
        for client in range(3):
            job = make_job(fedper, client, round_)
            job.model.load_dict({**shared, **own[client]})
            PersonalTraining().train(job)
            networks[client] = job.model.read(job.model.layout).state_dict()
        shared = {key: torch.stack([n[key] for n in networks.values()]).mean(0) for key in shared}  # equal samples
        last = [key for key in own[0] if key.startswith("exits.3.")]
        mean = {key: torch.stack([n[key] for n in networks.values()]).mean(0) for key in last}
        own = {client: {**heads(network), **mean} for client, network in networks.items()}
    assert close(trunk(strategy.model), shared)
    assert all(close(delivered(strategy, client), {**shared, **own[client]}) for client in range(3))


# Matching teachers


def test_three_clients_by_hand(strategy):
    # 0 and 1 changed their heads alike, 2 at right angles to them; alpha = 0.6
    uploads = {0: changed(strategy, p0=1.0), 1: changed(strategy, p0=2.0), 2: changed(strategy, p1=4.0)}
    logged = meet(strategy, uploads)
    h = {client: torch.from_numpy(head).double() for client, head in uploads.items()}
    half, most = (h[0] + h[1]) / 2, (h[0] + h[1]) / 18 + h[2] * 8 / 9
    for client, expected in ((0, half), (1, half), (2, most)):
        torch.testing.assert_close(strategy.known[client].head.double(), expected, rtol=1e-6, atol=1e-7)
    assert logged == {"admitted": 0, "self_weight": pytest.approx((0.5 + 0.5 + 8 / 9) / 3), "pairs": 3}


@pytest.mark.parametrize(("rounds", "admitted"), [(2, 2), (None, 0)])
def test_students_are_admitted_by_the_rounds_that_run(prepare_run, rounds, admitted):
    strategy = prepare_run({**CAFE, "run.rounds": 300, "cafedistill.admitted-by": 0.5}).strategy
    strategy.rounds = rounds or 300  # as `start` sets it
    clients = [ClientReport(client, 2, "because", 10) for client in range(2)]
    for round_ in (1, 2):
        strategy.prepare(round_, clients)
    assert strategy.admitted == admitted


def test_order_of_clients_changes_nothing(prepare_run):
    ends = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        strategy = prepare_run({**CAFE, "run.name": "order"}).strategy
        made = {0: changed(strategy, p0=1.0), 1: changed(strategy, p0=1.0, p1=0.5), 2: changed(strategy, p1=4.0)}
        meet(strategy, {client: made[client] for client in order})
        ends.append({client: strategy.known[client].head for client in range(3)})
    for client in range(3):
        torch.testing.assert_close(ends[1][client], ends[0][client], rtol=0, atol=1e-7)
        torch.testing.assert_close(ends[2][client], ends[0][client], rtol=0, atol=1e-7)
    # were a head overwritten while others still need it, the first client's would be among the second one's teachers
    assert not torch.equal(ends[0][0], ends[0][1])


@pytest.mark.parametrize(("similarity", "expected"), [("updates", 0.0), ("parameters", 1.0)])
def test_similarity_compares_updates_or_parameters(prepare_run, similarity, expected):
    strategy = prepare_run({**CAFE, "cafedistill.similarity": similarity}).strategy
    meet(strategy, {0: changed(strategy, p0=1e-3), 1: changed(strategy, p1=1e-3)})
    assert strategy.similarities.matrix([0, 1])[0, 1].item() == pytest.approx(expected, abs=1e-3)


def test_update_is_measured_from_the_sent_head(strategy):
    meet(strategy, {0: changed(strategy, p0=1.0), 1: changed(strategy, p1=1.0)})
    start = {client: strategy.known[client].head.clone() for client in (0, 1)}
    step = torch.zeros_like(start[0])
    step[5] = 0.5
    meet(strategy, {client: (head - step).numpy() for client, head in start.items()})
    assert strategy.similarities.matrix([0, 1])[0, 1].item() == pytest.approx(1.0, abs=1e-6)


def test_clients_of_unequal_depth_do_not_mix(strategy):
    depths = {0: 1, 1: 1, 4: 3, 5: 3}
    uploads = {c: changed(strategy, depth, p0=1.0 + c) for c, depth in depths.items()}
    logged = meet(strategy, uploads, depths)
    for client, other in ((0, 1), (1, 0), (4, 5), (5, 4)):
        mean = (torch.from_numpy(uploads[client]) + torch.from_numpy(uploads[other])) / 2
        assert torch.allclose(strategy.known[client].head, mean)
        assert (strategy.known[client].depth, strategy.known[client].teachers) == (depths[client], {})
    assert logged["pairs"] == 2


def test_across_depths_shallower_clients_teach_deeper_ones(prepare_run):
    strategy = prepare_run({**CAFE, "cafedistill.across-depths": True, "cafedistill.alpha": 1e9}).strategy
    depths = {0: 1, 1: 1, 2: 2, 4: 3}
    uploads = {c: changed(strategy, depth, p0=1.0 + c) for c, depth in depths.items()}
    logged = meet(strategy, uploads, depths)
    h = {client: torch.from_numpy(head) for client, head in uploads.items()}
    assert logged["pairs"] == 6
    shallow, middle, deep = (strategy.known[client] for client in (0, 2, 4))
    assert (shallow.teachers, set(middle.teachers), set(deep.teachers)) == ({}, {1}, {1, 2})
    assert torch.allclose(shallow.head, (h[0] + h[1]) / 2)
    assert torch.allclose(middle.head, h[2])
    assert torch.allclose(deep.head, h[4])
    assert deep.teachers[1][0] == pytest.approx(0.5)
    assert deep.teachers[2][0] == pytest.approx(0.25)  # and a quarter is its own
    assert torch.allclose(deep.teachers[1][1], (h[0] + h[1]) / 2)
    assert torch.allclose(deep.teachers[2][1], h[2])
    told = strategy.client_values(ClientReport(4, 3, "", 10))
    assert told == {STUDENTS: 0, "shares": {"1": deep.teachers[1][0], "2": deep.teachers[2][0]}}
    sent = strategy.client_arrays([ClientReport(c, depth, "", 10) for c, depth in depths.items()])
    assert {client: set(arrays) for client, arrays in sent.items()} == {
        0: {HEAD}, 1: {HEAD}, 2: {HEAD, "teacher.1"}, 4: {HEAD, "teacher.1", "teacher.2"},
    }  # fmt: skip


def test_across_depths_changes_the_result(run_strategy, everybody_learns):
    ends = []
    for number, across in enumerate((False, True)):
        run = run_strategy({**CAFE, "cafedistill.across-depths": across, "run.name": f"across-{number}"})
        ends.append(run.strategy.model)
        assert all(record.failures == {} for record in run.records)
    assert not same(*ends)


# What may go wrong


class Spoiled:
    """The real ClientApp, but client 1 uploads another last head."""

    def __init__(self, spoil) -> None:
        self.spoil = spoil

    def __call__(self, message, context):
        answer = real_app(message, context)
        if message.metadata.message_type != protocol.TRAIN:
            return answer
        reply = protocol.unpack_reply(answer.content)
        if 1 in reply.client_arrays:
            self.spoil(reply)
        return Message(protocol.pack_reply(reply), reply_to=message)


def no_head(reply):
    del reply.client_arrays[1]


def other(array):
    def spoil(reply):
        reply.client_arrays[1][HEAD] = array(reply.client_arrays[1][HEAD])

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_head, "it sent none"),
        (other(lambda head: head[:-1]), "an exit head of 610 float32 parameters was expected"),
        (other(lambda head: head.reshape(2, -1)), "an exit head of 610"),
        (other(lambda head: head.astype(np.float64)), "an exit head of 610"),
        (other(lambda head: np.full_like(head, np.nan)), "not finite, or out of range"),
        (other(lambda head: np.full_like(head, -np.inf)), "not finite, or out of range"),
        (other(lambda head: np.full_like(head, 5000)), "not finite, or out of range"),
    ],
    ids=["missing", "short", "reshaped", "double", "nan", "infinite", "huge"],
)
def test_client_with_an_unusable_head_is_not_matched(run_strategy, flower_log, spoil, reason):
    run = run_strategy({**CAFE, **DEEP, **HOME}, NODES, Spoiled(spoil))
    assert [record.failures for record in run.records] == [{}, {}]
    assert run.strategy.round == 2
    assert set(run.strategy.known) == {0, 2, 3, 4, 5}
    assert set(run.strategy.similarities._pairs) == set(combinations((0, 2, 3, 4, 5), 2))
    assert 1 in run.strategy.trained  # its backbone counts
    warnings = [line for line in flower_log if line.startswith("client 1: its last head cannot be used: ")]
    assert len(warnings) == 2
    assert all(reason in line for line in warnings)
    start = seeded(run.strategy)
    own = delivered(run.strategy, 1)
    assert torch.equal(own["exits.3.linear.bias"], start["exits.3.linear.bias"])  # nobody's aggregate: anew
    assert not torch.equal(own["exits.1.linear.bias"], start["exits.1.linear.bias"])


def test_depth_claimed_in_a_result_is_ignored(strategy):
    head = changed(strategy, p0=1.0)
    strategy.asked = {c: ClientReport(c, 3, "", 10) for c in (0, 1)}
    results = {0: ClientResult(0, 3, 10), 1: ClientResult(1, 99, 10)}
    strategy.merge(1, RoundUpdate(results=results, client_arrays={c: {HEAD: head} for c in (0, 1)}))
    assert {client: known.depth for client, known in strategy.known.items()} == {0: 3, 1: 3}


def test_round_without_any_usable_head_changes_no_teacher(strategy):
    nan = np.full(610, np.nan, np.float32)
    assert meet(strategy, {0: nan, 1: nan}) == {"admitted": 0, "self_weight": 0.0, "pairs": 0}
    assert strategy.known == {}


# What the server remembers


def test_similarities_exist_only_for_pairs_of_a_round(run_strategy):
    app = Recorder()
    run = run_strategy({**CAFE, **DEEP, "clients.per-round": 2, "run.rounds": 3}, app=app)
    met = {tuple(sorted(task.client for task in order.tasks)) for order, _ in app.sent}
    assert set(run.strategy.similarities._pairs) == met
    assert len(met) > 1
    assert set(run.strategy.known) == {client for pair in met for client in pair} == run.strategy.trained


def test_unlocked_students_are_sent_to_clients(run_strategy):
    app = Recorder()
    run = run_strategy({**CAFE, **DEEP, "run.rounds": 4}, app=app)
    told = {(order.round, task.client): task.client_values[STUDENTS] for order, _ in app.sent for task in order.tasks}
    assert [record.terms["admitted"] for record in run.records] == [0, 6, 12, 12]
    assert [{told[round_, client] for client in range(6)} for round_ in (1, 2, 3, 4)] == [{0}, {1}, {2}, {2}]


def test_only_trained_clients_are_sent_a_head(run_strategy):
    app = Recorder()
    run = run_strategy({**CAFE, "clients.per-round": 3, "run.rounds": 3}, app=app)
    before: set[int] = set()
    for order, payload in app.sent:
        clients = {task.client for task in order.tasks}
        assert set(payload.client_arrays) == clients & before
        before |= clients
    assert run.strategy.trained == before
    assert not any(key.startswith("exits.") for key in app.down() | app.up())


def test_client_of_a_new_depth_starts_a_new_head(strategy):
    meet(strategy, {0: changed(strategy, p0=1.0), 1: changed(strategy, p0=2.0)})
    deep, shallow = ClientReport(0, 3, "", 10), ClientReport(0, 2, "", 10)
    assert strategy.client_arrays([deep]).keys() == {0}
    assert strategy.client_arrays([shallow]) == {}
    depths = {0: 2, 2: 2}
    uploads = {client: changed(strategy, 2, p3=1.0) for client in depths}
    meet(strategy, uploads, depths)  # 0's change is measured from the seed's head, not from one of another depth
    assert strategy.similarities.matrix([0, 2])[0, 1].item() == pytest.approx(1.0, abs=1e-6)
    assert strategy.known[0].depth == 2
    assert torch.allclose(strategy.known[0].head, torch.from_numpy(uploads[0]))


def test_client_rerated_during_a_run_continues(prepare_run):
    nodes = [{"partition-id": p, "client-id": p} for p in range(5)]
    run = prepare_run({**CAFE, **DEEP, "run.rounds": 5}, [*nodes, {"client-id": 5, "partition-id": 5, "depth": 3}])
    home = next(context for context in run.grid.contexts.values() if "depth" in context.node_config)
    plan = {1: 1, 3: 3}

    def change(strategy, record):
        run.records.append(record)
        home.node_config["depth"] = plan.get(record.round, home.node_config["depth"])
        known.append(strategy.known[5].depth)

    known: list[int] = []
    run.on_round = change
    run.strategy.start(run.grid)
    assert known == [3, 3, 1, 1, 3]
    assert [5 in record.failures for record in run.records] == [False, True, False, False, False]
    last = head_layout(run.strategy.network, 3)
    aggregated = head_state(run.strategy.known[5].head, last)
    assert same({key: delivered(run.strategy, 5)[key] for key in last.keys}, aggregated)


def test_state_dict_restores_the_strategy(run_strategy, prepare_run):
    changes = {**CAFE, "cafedistill.across-depths": True, "clients.per-round": 5}
    strategy = run_strategy(changes).strategy
    tensors, values = strategy.state_dict()
    assert any(known.teachers for known in strategy.known.values())
    again = prepare_run(changes).strategy
    again.load_state_dict(tensors, values)
    assert same(again.state_dict()[0], tensors)
    assert again.state_dict()[1] == values
    assert again.students == strategy.students
    clients = list(strategy.roster.reports.values())
    assert [again.client_values(client) for client in clients] == [strategy.client_values(client) for client in clients]
    one, two = again.client_arrays(clients), strategy.client_arrays(clients)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[c][name], two[c][name]) for c in one for name in two[c])


def test_killed_and_resumed_run_has_the_same_bits(flat, tmp_path):
    settings = {
        **flat, **CAFE, "run.rounds": 4, "clients.per-round": 4, "cafedistill.across-depths": True,
        "run.root": str(tmp_path / "runs"),
    }  # fmt: skip
    whole = prepare({**settings, "run.name": "whole"})
    whole.start(LocalGrid(real_app, NODES[:2]))
    run_and_kill({**settings, "run.name": "killed"}, "store", 3)
    resumed = prepare({"run.resume": str(tmp_path / "runs" / "killed")})
    assert resumed.round == 2
    resumed.start(LocalGrid(real_app, NODES[:2]))
    assert same(resumed.model, whole.model)
    assert same(resumed.state_dict()[0], whole.state_dict()[0])
    assert resumed.state_dict()[1] == whole.state_dict()[1]
    assert resumed.committed == whole.committed
    assert not (tmp_path / "runs" / "whole" / "final").exists()
    stores = [ClientStore(Path(settings["clients.store"]), name) for name in ("whole", "killed")]
    for client in range(6):
        if client in whole.committed:
            assert same(*(store.load(client, whole.committed[client]).tensors for store in stores))
        assert same(delivered(resumed, client), delivered(whole, client))


def test_server_memory_depends_on_sampled_clients_only(prepare_run, monkeypatch):
    many = {
        **CAFE, **DEEP, "clients.count": 1000, "clients.per-round": 5, "data.limit": 0, "data.client-test": 0.1,
        "data.validation": 0.0,
    }  # fmt: skip
    run = prepare_run(many)
    # the last evaluation and the delivery reach everybody, as they must
    monkeypatch.setattr(run.strategy, "configure_evaluate", lambda *args: [])
    monkeypatch.setattr(run.strategy, "_deliver", lambda grid: None)
    run.strategy.start(run.grid)
    strategy = run.strategy
    assert len(strategy.roster.available()) == 1000
    assert len(strategy.known) == len(strategy.trained) <= 10
    assert len(strategy.similarities) <= 20
    tensors, values = strategy.state_dict()
    assert sum(name.startswith("head.") for name in tensors) == len(strategy.known)
    assert sum(tensor.numel() for tensor in tensors.values()) <= 10 * 610 + 3 * 20
    assert len(values["students"]) == len(values["clients"]) == len(strategy.known)
    assert {path.name for path in folder(strategy).iterdir()} == {f"client-{c:06d}" for c in strategy.trained}


def test_round_costs_training_and_the_last_head(strategy):
    report = ClientReport(0, 3, "", 40)
    effort = strategy.effort(report)
    assert effort.macs == 3 * 40 * strategy.parts.macs(3)
    assert effort.up == strategy.first[3].numel() * 4 == strategy.client_array_bytes(report) / 2


def test_server_warns_once_a_round_when_features_die(strategy, flower_log):
    strategy.asked = {c: ClientReport(c, 3, "", 10) for c in (0, 1)}
    for shares in ((0.1, 0.3), (0.75, 0.5)):
        metrics = ({"dead_channels_1": share, "gradient_norm": 20 * share} for share in shares)
        results = {c: ClientResult(c, 3, 10, metrics=found) for c, found in enumerate(metrics)}
        strategy.merge(7, RoundUpdate(results=results))
    (line,) = [line for line in flower_log if "features die" in line]
    assert line.startswith("round 7: features die on the clients: 62 % of the channels at exit 1")
    assert "the largest gradient norm is 12.5;" in line
