"""Rounds in device time: deadline, quorum and staleness by the simulated clock, and what is measured otherwise.

The profiles compute and send in no time worth counting, so that a client takes its device's latency: 1 s, or that of
the slow device, which the clients 4 and 5 are, those of depth 3.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from client.app import app as real_app
from common.errors import UserError
from common.messages import protocol
from common.messages.protocol import ClientReport, ClientResult, pack_report, unpack_report
from common.profiles import Profile
from common.storage.files import read_tensors, write_tensors
from strategies.engine import clock as clock_module
from strategies.engine.clock import Clock
from strategies.engine.messaging import exchange
from strategies.engine.rounds import QuorumError
from strategies.method import RoundUpdate
from strategies.node.local_training import LocalTraining

METHOD = "method."
NODES = [{"partition-id": p} for p in range(3)]


class Watched:
    """The real ClientApp; records (round, client, version) of every training."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, message: Message, context: Any) -> Message:
        if message.metadata.message_type == protocol.TRAIN:
            order = protocol.unpack_order(message.content)[0]
            self.asked += [(order.round, task.client, task.version) for task in order.tasks]
        return real_app(message, context)

    def rounds_of(self, client: int) -> list[int]:
        return [round_ for round_, asked, _ in self.asked if asked == client]


@pytest.fixture
def simulated(tmp_path: Path):
    """Return the configuration of a simulated clock; `slow` is the slow devices' seconds."""

    def make(slow: float = 3.0, watts: bool = True, **changes: Any) -> Mapping[str, Any]:
        file = tmp_path / f"profiles-{slow}-{watts}.toml"
        quick = 'compute = "1000TFLOPS"\nbandwidth = "1000Tbps"\n'
        file.write_text(
            f"[fast]\n{quick}latency = 1.0\nbusy-watts = 10.0\nidle-watts = 2.0\n"
            f"[slow]\n{quick}latency = {slow}\n" + ("busy-watts = 5.0\nidle-watts = 1.0\n" if watts else "")
        )
        return {
            "clients.clock": "simulated", "clients.devices": "fast:2,slow:1", "clients.profiles": str(file), **changes,
        }  # fmt: skip

    return make


def same(one, two) -> bool:
    return set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)


def test_round_lasts_as_long_as_its_slowest_client(run_strategy, simulated):
    run = run_strategy(simulated())
    assert [dict(record.device) for record in run.records] == [
        {
            "clock": "simulated", "seconds": 3.0, "total": total,
            "by_part": {
                1: {"clients": 2, "busy": 2.0, "link": 2.0, "idle": 4.0},
                2: {"clients": 2, "busy": 2.0, "link": 2.0, "idle": 4.0},
                3: {"clients": 2, "busy": 6.0, "link": 6.0, "idle": 0.0},
            },
            "energy": 86.0,  # 4 * (1 * 10 + 2 * 2) + 2 * (3 * 5)
        } for total in (3.0, 6.0)
    ]  # fmt: skip
    assert all(not record.failures for record in run.records)


def test_energy_is_unknown_without_every_devices_watts(run_strategy, simulated):
    assert [record.device["energy"] for record in run_strategy(simulated(watts=False)).records] == [None, None]


def test_computing_takes_what_the_cost_table_says(run_strategy, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('[own]\ncompute = "1MFLOPS"\nbandwidth = "1kbps"\n')
    run = run_strategy({**settings_of(file), "run.rounds": 1})
    strategy = run.strategy
    (report,) = [strategy.roster.reports[0]]
    bytes_ = 2 * (4 * sum(p.numel() for p in strategy.parts.take(1).parameters()))  # LeNet has no buffers
    seconds = 6 * strategy.parts.macs(1) * report.num_examples / 1e6 + 8 * bytes_ / 1e3
    tier = run.records[0].device["by_part"][1]
    assert tier["busy"] == pytest.approx(2 * seconds, abs=1e-5)
    assert tier["link"] == pytest.approx(2 * 8 * bytes_ / 1e3, abs=1e-5)


def settings_of(file: Path) -> dict[str, Any]:
    return {"clients.clock": "simulated", "clients.devices": "own", "clients.profiles": str(file)}


@pytest.mark.parametrize("strategy", ["eefl", "fedper", "darkdistill"])
def test_client_beyond_the_deadline_is_as_one_that_failed(run_strategy, simulated, strategy):
    app, settings = Watched(), {"run.strategy": strategy, "run.rounds": 3}
    run = run_strategy(simulated(**settings, **{"round.deadline": 2.0}), NODES, app)
    reason = "its device would take 3 s, round.deadline is 2 s"
    assert [dict(record.failures) for record in run.records] == [{4: reason, 5: reason}] * 3
    assert [(record.device["seconds"], record.device["total"]) for record in run.records] == [(2, 2), (2, 4), (2, 6)]
    assert run.records[0].device["by_part"][3] == {"clients": 2, "busy": 4.0, "link": 4.0, "idle": 0.0}
    assert {client for _, client, _ in app.asked} == {0, 1, 2, 3}
    assert set(run.strategy.committed) == ({0, 1, 2, 3} if strategy == "fedper" else set())

    def failing(message, context):
        slow = context.node_config["partition-id"] >= 4
        if message.metadata.message_type == protocol.TRAIN and slow:
            raise RuntimeError("no power")
        return real_app(message, context)

    homes = [{"partition-id": p} for p in range(6)]
    reference = run_strategy({**settings, "clients.per-node": 1, "run.name": "reference"}, homes, failing)
    assert same(run.strategy.model, reference.strategy.model)
    assert run.strategy.committed == reference.strategy.committed


def test_deadline_in_simulated_time_is_none_of_real_messages(run_strategy, simulated):
    lives = []

    def app(message, context):
        lives.append(message.metadata.ttl)
        return real_app(message, context)

    run_strategy(simulated(**{"round.deadline": 3.0}), NODES, app)
    assert set(lives) == {3600.0}


def test_quorum_counts_clients_in_simulated_time(prepare_run, simulated, monkeypatch):
    run = prepare_run(simulated(**{"round.deadline": 2.0, "round.quorum": 0.7}))
    with pytest.raises(QuorumError, match=r"4 of 6.*would take 3 s, round.deadline is 2 s") as refused:
        run.strategy.start(run.grid)
    assert "; raise round.deadline or lower round.quorum in a new run" in str(refused.value)  # resumed it would repeat
    run = prepare_run(simulated(**{"round.deadline": 2.0, "round.quorum": 0.5}))
    monkeypatch.setattr(LocalTraining, "steps", lambda *_: 1 / 0)
    with pytest.raises(QuorumError, match=r"0 of 6 clients answered.*; continue later with run\.resume"):
        run.strategy.start(run.grid)  # two are too slow, which alone would not matter
    monkeypatch.undo()
    run = prepare_run(simulated(**{"round.deadline": 0.5, "run.name": "all"}))
    with pytest.raises(QuorumError, match="0 of 6 clients answered"):
        run.strategy.start(run.grid)


def test_timeout_of_a_start_holds_for_all_its_messages(prepare_run, simulated, monkeypatch):
    waited, lived = list[float](), set[float]()

    def watched(grid, messages, deadline, *rest):
        waited.extend([deadline] * bool(messages))
        lived.update(message.metadata.ttl for message in messages)
        return exchange(grid, messages, deadline, *rest)

    for module in ("strategy", "roster", "deferred"):
        monkeypatch.setattr(f"strategies.engine.{module}.exchange", watched)
    late = {"round.deadline": 2.0, "round.staleness": 0.5, "server.clients-evaluate-every": 1}
    run = prepare_run(simulated(**late), NODES)
    run.strategy.start(run.grid, timeout=7200.0)
    assert run.records[1].late
    assert len(waited) == 7  # discovery, two rounds with their evaluations, the late answers, delivery
    assert set(waited) == lived == {7200.0}
    run.strategy.start(run.grid, num_rounds=0)
    assert [record.round for record in run.records] == [1, 2]
    assert waited[7:] == [run.strategy.config.patience]  # the models are delivered again


@pytest.mark.parametrize(("slow", "comes"), [(3.0, 2), (3.5, 3), (4.0, 3)])
def test_late_answer_is_folded_in_the_round_in_which_its_time_is_over(run_strategy, simulated, slow, comes):
    """Round 1 ends at 2 s, by its deadline; the next ones last 1 s, while the slow clients are at work."""
    app = Watched()
    late = {"round.deadline": 2.0, "round.staleness": 0.5, "run.rounds": comes + 1}
    run = run_strategy(simulated(slow=slow, **late), NODES, app)
    records = run.records
    assert [list(record.late) for record in records] == [[4, 5] if r.round == comes else [] for r in records]
    assert [sorted(record.failures) for record in records][:comes] == [[4, 5], *[[]] * (comes - 1)]
    assert [record.device["total"] for record in records][:comes] == [2.0, *(2.0 + n for n in range(1, comes))]
    assert app.rounds_of(5)[0] == 1
    assert app.asked.index((1, 5, 0)) > app.asked.index((comes - 1, 0, 0))  # trained when it is due
    assert sorted(records[comes].failures) == [4, 5]  # asked again, in vain
    assert run.strategy.trained == set(range(6))
    busy = [record.device["by_part"].get(3, {}).get("busy") for record in records[:comes]]
    assert sum(busy) == pytest.approx(2 * slow)


@pytest.mark.parametrize("nodes", [1, 3])
def test_late_answers_have_the_weight_of_their_staleness(run_strategy, simulated, nodes):
    models: dict[int, dict[str, torch.Tensor]] = {}

    def app(message, context):
        answer = real_app(message, context)
        if message.metadata.message_type == protocol.TRAIN:
            reply = protocol.unpack_reply(answer.content)
            for part, fold in reply.folds.items():
                models[part] = fold.mean().state_dict()
            for client, state in reply.lone.items():
                models[client] = state.state_dict()
        return answer

    # the only clients of depth 3 are late, so that its mean is theirs
    run = run_strategy(
        simulated(**{"round.deadline": 2.0, "round.staleness": 0.5, "run.rounds": 2}),
        [{"partition-id": p} for p in range(nodes)], app,
    )  # fmt: skip
    assert run.records[1].late == [4, 5]
    mean = models[3] if nodes == 1 else {k: (models[4][k] + models[5][k]) / 2 for k in models[4]}
    for key in set(run.strategy.layouts[3].keys) - set(run.strategy.layouts[2].keys):
        assert torch.allclose(run.strategy.model[key], mean[key], atol=1e-6), key
    # 40 samples each; late ones count half: layer 1 is the mean of 4 in time and 2 late
    shallow = next(iter(run.strategy.layouts[1].keys))
    weights = {1: 80.0, 2: 80.0, 3: 40.0}
    if nodes == 1:
        expected = sum(weights[p] * models[p][shallow].double() for p in weights) / 200.0
        assert torch.allclose(run.strategy.model[shallow].double(), expected, atol=1e-6)


def test_client_that_would_take_two_deadlines_is_busy_until_then_and_never_trained(run_strategy, simulated):
    app = Watched()
    late = {"round.deadline": 2.0, "round.staleness": 0.5, "run.rounds": 4}
    run = run_strategy(simulated(slow=4.1, **late), NODES, app)
    assert app.rounds_of(5) == []
    assert all(record.late == [] for record in run.records)
    assert [sorted(record.failures) for record in run.records] == [[4, 5], [], [], [4, 5]]
    assert [record.device["total"] for record in run.records] == [2.0, 3.0, 4.0, 6.0]
    assert [record.device["by_part"][3]["busy"] for record in run.records] == [4.0, 2.0, 2.0, 4.0]


@pytest.mark.parametrize("changes", [{}, {"round.deadline": 3.0}, {"round.deadline": 3.0, "round.staleness": 0.5}])
def test_bits_do_not_depend_on_the_number_of_nodes(run_strategy, simulated, changes):
    settings = simulated(**changes, **{"clients.time-spread": 0.4, "run.rounds": 4, "round.quorum": 0.1})
    one, three = (run_strategy(settings, [{"partition-id": p} for p in range(n)]) for n in (1, 3))
    assert same(one.strategy.model, three.strategy.model)
    assert [record.device for record in one.records] == [record.device for record in three.records]
    assert [record.late for record in one.records] == [record.late for record in three.records]
    if changes:
        assert any(record.failures for record in one.records)
    if "round.staleness" in changes:
        assert any(record.late for record in one.records)


def test_spread_changes_the_time_and_no_bit_of_the_model(run_strategy, simulated):
    plain, spread, other = (
        run_strategy(simulated(**changes))
        for changes in ({}, {"clients.time-spread": 0.4}, {"clients.time-spread": 0.4, "run.seed": 2})
    )
    assert same(plain.strategy.model, spread.strategy.model)
    assert plain.records[0].device["total"] == 3.0
    totals = {run.records[-1].device["total"] for run in (plain, spread, other)}
    assert len(totals) == 3
    assert spread.records[0].device["seconds"] != spread.records[1].device["seconds"]


@pytest.mark.parametrize("strategy", ["eefl", "fedper"])
def test_resumed_run_gives_the_same_bits_and_the_same_time(prepare_run, simulated, tmp_path, strategy):
    """The run is killed while clients are at work for round 1."""
    late = {"round.deadline": 2.0, "round.staleness": 0.5, "run.rounds": 4, "run.strategy": strategy}
    settings = simulated(slow=3.5, **late)
    whole = prepare_run({**settings, "run.name": "whole"})
    whole.strategy.start(whole.grid)
    assert [record.late for record in whole.records] == [[], [], [4, 5], []]
    first = prepare_run({**settings, "run.name": "cut"})
    first.strategy.start(first.grid, num_rounds=2)
    model, tensors, values = first.strategy.checkpoint()
    file = tmp_path / "checkpoint.safetensors"
    write_tensors(file, model | {METHOD + key: value for key, value in tensors.items()}, values)
    stored, values = read_tensors(file)
    second = prepare_run({**settings, "run.name": "cut"}, NODES)
    second.strategy.restore(
        {k: v for k, v in stored.items() if not k.startswith(METHOD)},
        {k.removeprefix(METHOD): v for k, v in stored.items() if k.startswith(METHOD)}, values,
    )  # fmt: skip
    second.strategy.start(second.grid)
    assert same(second.strategy.model, whole.strategy.model)
    assert [record.device for record in second.records] == [record.device for record in whole.records[2:]]
    assert [record.late for record in second.records] == [record.late for record in whole.records[2:]]
    assert second.strategy.committed == whole.strategy.committed


def test_checkpoint_of_an_older_version_is_resumed(prepare_run, simulated):
    first = prepare_run(simulated())
    first.strategy.start(first.grid, num_rounds=1)
    model, tensors, values = first.strategy.checkpoint()
    del values["clock"]
    second = prepare_run(simulated())
    second.strategy.restore(model, tensors, values)
    second.strategy.start(second.grid)
    assert second.records[0].device["total"] == 3.0


def test_profile_chooses_the_depth_unless_a_mix_does(run_strategy, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(
        '[small]\ncompute = "1GFLOPS"\nbandwidth = "1Mbps"\nmemory = "100kB"\n'
        '[large]\ncompute = "1GFLOPS"\nbandwidth = "1Mbps"\n'
        '[none]\ncompute = "1GFLOPS"\nbandwidth = "1Mbps"\nmemory = "1kB"\n'
    )
    own = {"clients.devices": "small:3,large:2,none:1", "clients.profiles": str(file), "clients.clock": "simulated"}
    run = run_strategy({**own, "clients.mix": "auto", "run.rounds": 1})
    reports = run.strategy.roster.reports
    assert {client: report.part for client, report in reports.items()} == {0: 2, 1: 2, 2: 2, 3: 3, 4: 3, 5: 0}
    assert reports[0].reason.startswith("small: tier 3 needs")
    assert reports[5].refused.startswith("none: nothing fits")
    mixed = run_strategy({**own, "run.rounds": 1, "run.name": "mixed"})  # the fixture's mix
    assert [report.part for _, report in sorted(mixed.strategy.roster.reports.items())] == [1, 1, 2, 2, 3, 3]
    assert mixed.strategy.roster.reports[5].profile == {"compute": 1e9, "bandwidth": 1e6, "latency": 0.0, "memory": 1e3}
    untimed = run_strategy({**own, "clients.clock": "measured", "clients.mix": "auto", "run.name": "untimed"})
    assert {c: r.part for c, r in untimed.strategy.roster.reports.items()} == {c: r.part for c, r in reports.items()}
    assert not any(report.profile for report in untimed.strategy.roster.reports.values())


def test_real_device_is_timed_by_what_it_declares(run_strategy, flower_log):
    nodes: list[dict[str, Any]] = [
        {"client-id": 0, "compute": "1MFLOPS", "bandwidth": "1kbps"},
        {"client-id": 1, "compute": "2MFLOPS", "depth": 1},
        {"client-id": 2, "depth": 1},
    ]
    run = run_strategy({"clients.clock": "simulated", "run.rounds": 1}, nodes)
    profiles = {client: report.profile for client, report in run.strategy.roster.reports.items()}
    assert profiles[0] == {"compute": 1e6, "bandwidth": 1e3, "latency": 0.0}
    assert profiles[1] == {"compute": 2e6, "latency": 0.0}
    assert any("client 2 is left out: clients.clock is 'simulated', but nothing says" in line for line in flower_log)
    assert any("declare compute= on the device" in line for line in flower_log)
    assert set(run.records[0].device["by_part"]) == {1, 2}  # its link carries no more than depth 2
    assert run.records[0].device["by_part"][1]["link"] == 0.0


@pytest.mark.parametrize("clock", ["measured", "simulated"])
def test_real_device_is_no_other_one(run_strategy, clock):
    with pytest.raises(QuorumError, match=r"clients.devices is 'pi4', but this device is a real one"):
        settings = {"clients.clock": clock, "clients.devices": "pi4", "clients.mix": "auto"}
        run_strategy(settings, [{"client-id": 0, "compute": "1GFLOPS"}])


def test_virtual_client_without_devices_cannot_be_timed(run_strategy):
    with pytest.raises(QuorumError, match=r"nothing says how fast this client computes: set clients\.devices"):
        run_strategy({"clients.clock": "simulated"})


def test_staleness_is_refused_where_unsupported_by_this_clock_too(prepare_run, simulated):
    with pytest.raises(UserError, match="late answers have a place only where models are averaged"):
        prepare_run(simulated(**{"run.strategy": "darkdistill", "round.staleness": 0.5}))


@pytest.mark.parametrize("profile", [{"compute": float("nan")}, {"compute": "much"}, {"speed": 1.0}, {"latency": 1.0}])
def test_report_with_an_impossible_profile_cannot_be_read(profile):
    content = pack_report(protocol.NodeReport(0, False, (ClientReport(0, 1, "", 5, profile=profile),)))
    with pytest.raises(ValueError, match=r"malformed message|compute|made of numbers"):
        unpack_report(content)
    fine = ClientReport(0, 1, "", 5, profile=Profile(1e9).known())
    assert unpack_report(pack_report(protocol.NodeReport(0, False, (fine,)))).clients == (fine,)


class Ticking:
    """Advances by one second per reading."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


def reply_of(node: int) -> Any:
    class Metadata:
        src_node_id = node

    class Fake:
        metadata = Metadata()

    return Fake()


def test_measured_clock_shares_what_a_node_took_among_its_clients(monkeypatch):
    """Node 7 answers after 1 s and node 8 after 2 s, and the round takes 3 s."""
    monkeypatch.setattr(clock_module, "time", Ticking())
    clock = Clock(lambda: {7: (0, 1), 8: (2,), 9: (3,)})
    assert [reply.metadata.src_node_id for reply in clock.watch([reply_of(7), reply_of(8)])] == [7, 8]
    results = {
        0: ClientResult(0, 1, 10, seconds=0.25), 1: ClientResult(1, 2, 10, seconds=0.5),
        2: ClientResult(2, 2, 10, seconds=1e9),  # claims more than the server has waited
    }  # fmt: skip
    event = clock.end(RoundUpdate(results=results))
    assert event == {
        "clock": "measured", "seconds": 3.0, "total": 3.0, "energy": None,
        "by_part": {
            1: {"clients": 1, "busy": 0.375, "link": 0.125, "idle": 2.625},
            2: {"clients": 2, "busy": 2.625, "link": 0.125, "idle": 3.375},
        },
    }  # fmt: skip
    restored = Clock(dict)
    restored.load_state_dict(*clock.state_dict())
    assert restored.end(RoundUpdate())["total"] == 3.0


def test_measured_rounds_say_what_they_took(run_strategy):
    run = run_strategy(nodes=NODES)
    events = [record.device for record in run.records]
    assert [event["clock"] for event in events] == ["measured"] * 2
    assert events[1]["total"] == pytest.approx(events[0]["seconds"] + events[1]["seconds"], abs=1e-5)
    for event, record in zip(events, run.records, strict=True):
        assert event["seconds"] <= record.seconds["round"]
        assert {part: sums["clients"] for part, sums in event["by_part"].items()} == {1: 2, 2: 2, 3: 2}
        assert all(sums["busy"] > 0 for sums in event["by_part"].values())
