"""Federated students of a real teacher: messages, averaging, resuming, learning and delivery."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from torch import Tensor

from common.config import Value
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.messages import protocol
from common.messages.protocol import ClientResult
from common.storage.client_store import ClientStore
from common.storage.run_files import read_events
from server.execution import prepare
from strategies.callbacks.run_folder import RunFolder
from strategies.configuration import read_config
from strategies.distree.exits.policies import CALIBRATED, Gate
from strategies.distree.model.parts import LEAN, STUDENTS
from strategies.distree.model.stored import load_student, load_students, student_file
from strategies.distree.model.students import students_spec
from strategies.distree.settings import read_device
from strategies.distree.strategy import DistrEE
from strategies.distree.training.client import FEATURES, IMAGES, LABELS, LOGITS, TEACHER, UNKNOWN
from strategies.distree.training.finish import training_id
from strategies.factory import make_strategy
from strategies.method import Effort, RoundUpdate, TierUpdate
from tests.strategies.distree.conftest import teach
from tests.support.personal_runs import HOME, NODES, Recorder, same

Flat = dict[str, Value]
ROAMING = ({"partition-id": 0},)


@pytest.fixture
def start(students: Flat, tmp_path: Path) -> Callable[..., tuple[DistrEE, Any]]:
    """Return a function that runs the server's preparation and all rounds and returns strategy and client app."""

    def start(
        changes: Mapping[str, Value] | None = None, nodes: Sequence[Mapping[str, Any]] = ROAMING, app: Any = None
    ) -> tuple[DistrEE, Any]:
        strategy = prepare({**students, "run.root": str(tmp_path / "runs"), **(changes or {})})
        strategy.callbacks = [callback for callback in strategy.callbacks if isinstance(callback, RunFolder)]
        assert isinstance(strategy, DistrEE)
        app = app or Recorder()
        strategy.start(LocalGrid(app, nodes))
        return strategy, app

    return start


def carried(recorder: Recorder) -> list[tuple[int, tuple[int, ...], int]]:
    """Return round, clients and number of teachers of each message to train."""
    return [
        (order.round, tuple(task.client for task in order.tasks), sum(name == TEACHER for name in payload.states))
        for order, payload in recorder.sent
    ]


def teacher_bytes(strategy: DistrEE) -> int:
    return 4 * sum(value.numel() for value in strategy.teacher.network.state_dict().values())


def test_client_receives_one_student_and_returns_its_columns(start):
    strategy, recorder = start()
    assert {len(part) > 1 for part in strategy.spec.partition} == {True}
    for order, payload in recorder.sent:
        assert {task.arrays for task in order.tasks} == {"part-1", "part-2"}
        for number, other in ((1, 2), (2, 1)):
            sent = set(payload.states[f"part-{number}"].layout.keys)
            assert f"classifier.blocks.{other}" in sent
            assert not any(key.startswith(f"networks.{other}.") for key in sent)
    for number, other in ((1, 2), (2, 1)):
        back = {key for reply in recorder.replies for key in reply.folds[number].layout.keys}
        assert {"classifier.bias", f"classifier.blocks.{number}"} <= back
        assert not any(key.startswith((f"networks.{other}.", f"classifier.blocks.{other}")) for key in back)
    assert recorder.replies[0].folds[1].clients == [0, 1, 2]


def test_teacher_is_sent_to_a_node_once(prepare_run, students):
    run = prepare_run({"run.rounds": 3}, app=(recorder := Recorder()))
    run.strategy.start(run.grid)
    assert carried(recorder) == [(1, tuple(range(6)), 1), (2, tuple(range(6)), 0), (3, tuple(range(6)), 0)]
    first, second, third = (record.traffic["down"] for record in run.records)
    size = teacher_bytes(run.strategy)
    assert size < first - second < size + 3000  # and the names of its layers
    assert abs(second - third) < 100


def test_teacher_is_sent_again_after_a_lost_round(prepare_run, students):
    class Fails(Recorder):
        def __call__(self, message: Message, context: Any) -> Message:
            answer = super().__call__(message, context)
            trained = message.metadata.message_type == protocol.TRAIN
            if trained and self.sent[-1][0].round == 1 and self.sent[-1][0].tasks[0].client == 3:
                raise OSError("the link broke after the client had trained")
            return answer

    run = prepare_run(HOME, NODES, app=(recorder := Fails()))
    run.strategy.start(run.grid)
    assert set(run.records[0].failures) == {3}
    assert sorted(sent for sent in carried(recorder) if sent[0] == 1) == [(1, (c,), 1) for c in range(6)]
    assert sorted(sent for sent in carried(recorder) if sent[0] == 2) == [(2, (c,), int(c == 3)) for c in range(6)]
    assert run.records[1].failures == {}


def test_weights_do_not_depend_on_the_nodes(run_strategy, students, tmp_path):
    """One node with six clients and three nodes with two each give the same bits."""
    runs = [
        run_strategy({"clients.store": str(tmp_path / "one")}),
        run_strategy({"clients.store": str(tmp_path / "three")}, [{"partition-id": p} for p in range(3)]),
    ]
    one, three = (run.strategy.model for run in runs)
    assert same(one, three)
    assert all(record.clients == {1: 3, 2: 3} for run in runs for record in run.records)


class Killed(BaseException):
    """Ends a run as SIGKILL does: no code of the run handles it."""


class KilledInRound2(Recorder):
    def __call__(self, message: Message, context: Any) -> Message:
        answer = super().__call__(message, context)
        if message.metadata.message_type == protocol.TRAIN and self.sent[-1][0].round == 2:
            raise Killed
        return answer


def test_resumed_run_equals_an_uninterrupted_run(start, tmp_path):
    """Clients that join in the killed round have stored a lesson, but it was not committed and must not count."""
    changes = {"run.rounds": 3, "clients.per-round": 4}
    whole, _ = start({**changes, "run.name": "whole"})
    with pytest.raises(Killed):
        start(changes, app=(killed := KilledInRound2()))
    new = set(carried(killed)[1][1]) - set(carried(killed)[0][1])
    assert new
    assert all(killed.replies[1].results[i].kept for i, c in enumerate(carried(killed)[1][1]) if c in new)
    resumed, recorder = start({"run.resume": str(tmp_path / "runs" / "test")})
    assert carried(recorder)[0] == (2, carried(killed)[1][1], 1)
    assert same(resumed.model, whole.model)
    again = [load_students(tmp_path / "runs" / name) for name in ("test", "whole")]
    assert again[0].policies == again[1].policies


def test_checkpoint_restores_the_partition(students, teacher):
    """The run keeps its students even where another machine's rounding gives another partition."""
    strategy, again = (make_strategy(read_config(students)) for _ in range(2))
    assert isinstance(strategy, DistrEE)
    assert isinstance(again, DistrEE)
    assert strategy.spec == again.spec
    one, two = strategy.spec.partition
    other = students_spec(strategy.spec.teacher, strategy.spec.backbones[0], (two, one))
    again.divide(other)
    tensors, values = again.state_dict()
    model = {key: value + 1 for key, value in again.model.items()}
    strategy.model = model
    strategy.load_state_dict(tensors, values)
    assert strategy.spec == other
    assert strategy.model is model
    assert {k: layout.keys for k, layout in strategy.uploads.items()} == {k: v.keys for k, v in again.uploads.items()}
    with pytest.raises(UserError, match="has changed since this run started"):
        strategy.load_state_dict(tensors, {**values, "teacher": "0" * 64})


def test_merge_averages_what_clients_trained(students):
    """A student and its columns over its own clients, the bias over all, by samples; other columns do not count."""
    strategy = make_strategy(read_config(students))
    before = {key: value.clone() for key, value in strategy.model.items()}
    tiers = {
        k: TierUpdate({key: torch.full(shape, float(k)) for key, shape in strategy.layouts[k].floats}, weight, (k,))
        for k, weight in ((1, 30), (2, 10))
    }
    strategy.merge(1, RoundUpdate(tiers, {k: ClientResult(k, k) for k in (1, 2)}))
    assert strategy.model.keys() == before.keys()
    for key, value in strategy.model.items():
        expected = 1.25 if key == "classifier.bias" else float(key.split(".")[1 if key.startswith("networks.") else 2])
        assert torch.equal(value, torch.full_like(value, expected)), key
    strategy.merge(2, RoundUpdate({2: tiers[2]}))
    assert strategy.model["classifier.blocks.1"].unique().tolist() == [1]
    assert strategy.model["classifier.bias"].unique().tolist() == [2]


def test_students_learn_and_are_delivered_with_policies(start, students, tmp_path):
    """All digits, few rounds; guessing gives 10 %."""
    strategy, _ = start({
        "data.limit": 0, "network.width": 0, "clients.count": 4, "clients.per-round": 4, "run.rounds": 4,
        "train.epochs": 2, "server.evaluate-every": 4, "distree.max-accuracy-loss": 0.02, "train.batch-size": 32,
    })  # fmt: skip
    event = [e for e in read_events(tmp_path / "runs" / "test" / "metrics.jsonl") if e["event"] == "round"][-1]
    exits, found = event["accuracy"]["exits"], event["accuracy"]["calibrated"]
    assert exits[-1] > 0.6
    assert max(exits) > exits[0]
    assert found["accuracy"] > 0.65
    assert found["mean_macs"] <= event["accuracy"]["exit_macs"][-1]
    assert sum(found["exit_histogram"]) == 2 * len(strategy.evaluator.test)
    stored = load_students(tmp_path / "runs" / "test")
    assert same(stored.students.state_dict(), strategy.model)
    assert (stored.classes, stored.run) == (strategy.classes, training_id("test", stored.students))
    assert event["accuracy"]["exit_macs"] == [
        sum(macs) for macs in zip(*(strategy.parts.exit_macs(k) for k in (1, 2)), strict=True)
    ]
    test = strategy.evaluator.test
    x = strategy.normalizer(test.inputs)
    answers: dict[int, tuple[Tensor, Tensor]] = {}
    for number in (1, 2):
        device = load_student(student_file(Path(str(students["clients.store"])) / "test" / f"student-{number}", number))
        assert same(device.network.state_dict(), dict(stored.students.student(number).state_dict()))
        assert {name: chosen[number] for name, chosen in stored.policies.items()} == device.policies
        assert (device.number, device.run, device.classes) == (number, stored.run, strategy.classes)
        left = device.network.infer(x, device.policies[CALIBRATED].start(device.classify))
        answers[number] = left.logits, left.exits
    with torch.no_grad():
        logits = stored.students.classifier.combine(*({k: a[i] for k, a in answers.items()} for i in (0, 1)))
    assert (logits.argmax(1) == test.labels).double().mean().item() == pytest.approx(found["accuracy"], abs=2e-3)


def test_run_with_a_gate_delivers_it(start, students, tmp_path):
    strategy, _ = start({
        "data.limit": 0, "run.rounds": 1, "distree.exit-rule": "gate", "distree.max-accuracy-loss": 0.3,
        "server.evaluate-every": 1,
    })  # fmt: skip
    event = [e for e in read_events(tmp_path / "runs" / "test" / "metrics.jsonl") if e["event"] == "round"][-1]
    stored = load_students(tmp_path / "runs" / "test")
    assert {type(policy) for policy in stored.policies[CALIBRATED].values()} == {Gate}
    x = strategy.normalizer(strategy.evaluator.test.inputs)
    for number in (1, 2):
        device = load_student(student_file(Path(str(students["clients.store"])) / "test" / f"student-{number}", number))
        gate = device.policies[CALIBRATED]
        assert gate == stored.policies[CALIBRATED][number] == stored.policies["gate"][number]
        left = device.network.infer(x, gate.start(device.classify)).exits.bincount(minlength=3)
        assert left.tolist() == list(event["accuracy"]["policies"][CALIBRATED]["histogram"][str(number)])


def test_students_of_unequal_width_learn_on_photographs(start, students, data_root, tmp_path):
    """CIFAR-10 images: devices of different power train a narrow and a wide student."""
    photos: Flat = {
        "data.name": "folder", "data.root": str(data_root / "cifar10_tiny"), "data.limit": 120,
        "network.name": "resnet_slim", "network.width": 4, "train.batch-size": 16, "clients.count": 4,
        "clients.per-round": 4,
    }  # fmt: skip
    folder = teach(tmp_path, {**photos, "run.rounds": 1, "train.epochs": 1, "clients.mix": "0,0,0,1"})
    changes: Flat = {**photos, "distree.teacher": str(folder), "distree.widths": "4,2", "train.lr": 0.01}
    trial = make_strategy(read_config({**students, **changes}))
    narrow, wide = (6 * trial.parts.macs(k) * 24 / 60 for k in (1, 2))  # of 30 images 6 validate
    speeds = 0.99 * narrow, 1.01 * narrow, 0.99 * wide, 1.01 * wide
    strategy, _ = start(changes, [{"client-id": c, "compute": f"{speed:.0f}FLOPS"} for c, speed in enumerate(speeds)])
    assert [backbone.width for backbone in strategy.spec.backbones] == [2, 4]
    assert [strategy.roster.reports[c].part for c in range(4)] == [0, 1, 1, 2]
    assert same(load_students(tmp_path / "runs" / "test").students.state_dict(), strategy.model)
    losses = [e["client_metrics"]["loss"] for e in read_events(tmp_path / "runs/test/metrics.jsonl") if "terms" in e]
    assert losses[1] < losses[0]


DEVICES = "memory=2.2MB,compute=2MFLOPS", "memory=4MB,compute=500kFLOPS", "memory=2.2MB,compute=9MFLOPS"


def test_declared_device_takes_the_student_made_for_it(start, students, flower_log):
    """Widths 3, 6, 9 and 12 are on offer; the first two devices could also train the next wider student."""
    students |= {"clients.count": 3, "clients.per-round": 3, "distree.students": 3, "data.limit": 120}
    students["distree.devices"] = ";".join(DEVICES)
    nodes = [dict(pair.split("=") for pair in text.split(",")) | {"client-id": c} for c, text in enumerate(DEVICES)]
    strategy, _ = start(nodes=nodes)
    assert strategy.spec.devices == (DEVICES[1], DEVICES[0], DEVICES[2])
    assert [backbone.width for backbone in strategy.spec.backbones] == [3, 6, 9]
    reports = [strategy.roster.reports[c] for c in range(3)]
    assert [(report.part, report.refused) for report in reports] == [(2, ""), (1, ""), (3, "")]
    assert f"student 1, for {DEVICES[1]}: width 3, since width 6" in "\n".join(flower_log)
    capacities = [read_device(text) for text in strategy.spec.devices]
    chosen = [strategy.parts.choose(c, strategy.config, 16).part for c in capacities]
    assert chosen == [1, 2, 3]
    unmatched = replace(strategy.parts.costs, devices=())
    assert [STUDENTS.choose(c, unmatched, strategy.config, 16).part for c in capacities] == [2, 3, 3]
    again = make_strategy(read_config({**students, "distree.devices": ";".join(reversed(DEVICES))}))
    assert again.spec == strategy.spec


def test_declared_device_too_small_for_the_teacher_is_refused(students):
    students["distree.devices"] = "memory=40kB;high"
    with pytest.raises(UserError, match=r"'memory=40kB': the teacher needs 0.2 MB of 0.0 MB; set distree.without"):
        make_strategy(read_config(students))
    students |= {"distree.without-teacher": "public", "distree.public": "digits"}
    with pytest.raises(UserError, match=r"no student suits device 1 .* since width 3 needs 0.. MB of 0.0 MB"):
        make_strategy(read_config(students))


def small_and_large(students: Flat) -> list[dict[str, Any]]:
    """Return nodes of two devices; the first can hold its student but not the teacher."""
    trial = make_strategy(read_config(students))
    memory = max(trial.parts.costs.training_memory(k, 16) for k in (1, 2))
    assert memory < trial.parts.costs.teacher_memory(16)
    return [{"client-id": 0, "memory": f"{memory}B"}, {"client-id": 1}]


def test_device_too_small_for_the_teacher_uses_public_images(start, students, tmp_path):
    students |= {"network.width": 1, "clients.count": 2, "clients.per-round": 2}
    nodes = small_and_large(students)
    lean: Flat = {"distree.without-teacher": "public", "distree.public": "digits", "distree.public-samples": 30}
    strategy, recorder = start(lean, nodes)
    assert [strategy.roster.reports[c].values.get(LEAN, False) for c in (0, 1)] == [True, False]
    assert sorted(carried(recorder)) == [(1, (0,), 0), (1, (1,), 1), (2, (0,), 0), (2, (1,), 0)]
    entries = {(o.round, o.tasks[0].client): payload.client_arrays for o, payload in recorder.sent}
    assert entries.keys() == {(r, c) for r in (1, 2) for c in (0, 1)}
    sent = entries.pop((1, 0))[0]
    assert not any(entries.values())
    assert (sent[IMAGES].shape, sent[IMAGES].dtype) == ((30, 1, 8, 8), "uint8")
    used = [f for part in strategy.spec.partition for f in part]
    with torch.no_grad():
        outputs = strategy.teacher.network.forward_exits(strategy.normalizer(torch.from_numpy(sent[IMAGES])))
    torch.testing.assert_close(torch.from_numpy(sent[FEATURES]), outputs.features[-1].clamp_min(0)[:, used])
    torch.testing.assert_close(torch.from_numpy(sent[LOGITS]), outputs.logits[-1])
    assert (sent[LABELS] != UNKNOWN).all()
    store = ClientStore(tmp_path / "clients", "test")
    assert set(store.load(0, 1).tensors) == {FEATURES, LOGITS, IMAGES, LABELS}
    assert set(store.load(1, 1).tensors) == {FEATURES, LOGITS}
    assert strategy.committed == {0: 1, 1: 1}


def test_refused_device_leaves_a_warning_for_its_student(start, students, flower_log):
    students |= {"network.width": 1, "clients.count": 2, "clients.per-round": 2}
    strategy, recorder = start(nodes=small_and_large(students))
    assert {clients for _, clients, _ in carried(recorder)} == {(1,)}
    assert strategy.roster.reports[0].refused.startswith("the teacher needs 0.2 MB of 0.")
    assert "no device trains student 1: declare student=1 on a device, or lower distree.students" in flower_log
    assert not any("no device trains student 2" in line for line in flower_log)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distree.teacher": ""}, "distree.teacher is empty: set it to a finished run's folder"),
        ({"distree.teacher": "/nowhere"}, "no model in /nowhere"),
        ({"server.clients-evaluate-every": 1}, "server.clients-evaluate-every is above 0"),
        (
            {"network.name": "vit_small32", "network.pretrained": "weights.safetensors"},
            "without network.pretrained: leave it empty",
        ),
        (
            {"data.name": "bbc_news", "network.name": "transformer4"},
            "'bbc_news' holds texts, distree needs images",
        ),
        ({"data.validation": 0.0}, "the server has no validation images"),
        ({"data.name": "devices", "data.classes": "a,b", "data.image-size": 8}, "the server has no validation images"),
        ({"distree.exit-rule": "gate"}, "the exit rule gate is fitted on 100 or more validation images"),
        ({"data.mean": "0.4"}, "give this run the same"),
        ({"distree.exit-weights": "1,2"}, "names 2 exits, the students have 3"),
        ({"distree.students": 80}, "too few for 80 students"),
        (
            {"distree.without-teacher": "public", "distree.public": "folder:/nowhere"},
            "'folder:/nowhere': data.root is /nowhere",
        ),
        ({"clients.mix": "1,1,1"}, "must give one share, 0 or more, for each of the 2 tiers"),
    ],
)
def test_unsupported_configuration_is_refused_at_start(students, changes, message):
    with pytest.raises(UserError, match=message):
        make_strategy(read_config({**students, **changes}))


def test_teacher_costs_a_pass_once_and_public_images_cost_training(start):
    nodes = [{"client-id": 0, "student": 1}, {"client-id": 1, "student": 2}]
    lean: Flat = {"distree.without-teacher": "public", "distree.public": "digits", "distree.public-samples": 30}
    strategy, _ = start({**lean, "run.rounds": 1, "train.epochs": 2}, nodes)
    own, macs, teacher = strategy.roster.reports[0], strategy.parts.macs(1), strategy.parts.costs.teacher
    samples, answers = own.num_examples, teacher.cut_macs(len(teacher.units))
    assert strategy.effort(own) == Effort(3 * 2 * samples * macs)
    strategy._untaught = frozenset({0})
    assert strategy.effort(own) == Effort(3 * 2 * samples * macs + samples * answers)
    assert strategy.effort(replace(own, values={LEAN: True})) == Effort(3 * 2 * 30 * macs)
