"""`infer` with scripted answers of devices: labels, a comparison of policies, exits that keep a latency."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.console.samples import Samples
from common.errors import UserError
from server.commands.distree import infer
from server.commands.distree.infer_compare import compare
from strategies.distree.exits.policies import FeatureDifference, LastExit
from strategies.distree.model.stored import StoredStudents, exit_macs
from strategies.distree.serving.aggregator import Answer
from strategies.distree.serving.controller import LatencyController, LatencyTarget
from tests.strategies.distree.devices import EXITS, Tiny

DEADLINE = 0.5
COSTS = (4.0, 3.0, 2.0, 1.0)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredStudents:
    """Two students with a ladder of four rungs."""
    tiny = Tiny(tmp_path_factory.mktemp("tiny"))
    rungs = [LastExit(EXITS), *(FeatureDifference((2.0 - rung,) * (EXITS - 1)) for rung in range(3))]
    return replace(tiny.whole, ladder=[{1: rung, 2: rung} for rung in rungs], ladder_costs={1: COSTS, 2: COSTS})


def answer(exits: dict[int, list[int]], missing: dict[int, str], late: Sequence[int] = (), seconds: float = 0.01):
    """Return an answer of devices that compute all the time but for a millisecond."""
    numbers = [k for k, own in exits.items() if max(own) >= 0]
    size = len(exits[1])
    logits = torch.arange(5.0).expand(size, -1)
    return Answer(
        logits, {k: torch.tensor(own) for k, own in exits.items()}, missing, frozenset(late), seconds,
        dict.fromkeys(numbers, seconds - 0.001), dict.fromkeys(numbers, seconds), {1: 10, 2: 10}, {1: 10, 2: 10},
    )  # fmt: skip


class Scripted:
    """Replaces the aggregator: gives scripted answers, and repeats the last one."""

    deadline = DEADLINE

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)

    def infer(self, images: Tensor, *_: object) -> Answer:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def batches(number: int, size: int = 1, truth: str | None = None) -> Iterator[Samples]:
    for index in range(number):
        yield Samples([f"{index}.{row}" for row in range(size)], [truth] * size, np.zeros((size, 3, 8, 8), np.uint8))


def after(requests: int, stored: StoredStudents, controller: LatencyController, *answers: Answer) -> dict[int, int]:
    """Return the rungs after a number of requests."""
    predictions = infer.classify(stored, Scripted(*answers), batches(requests), None, controller)  # type: ignore[arg-type]
    assert len(list(predictions)) == requests
    return controller.rungs


LATE = answer({1: [6], 2: [-1]}, {2: "late: 0 of 1 samples came within 0.5 s"}, late=[2])
DOWN = answer({1: [6], 2: [-1]}, {2: "down: it cannot be reached: connection refused"})
UNSERVED = answer({1: [6], 2: [-1]}, {2: "no device serves it"})


def test_device_that_is_always_late_gets_the_cheapest_rung(stored: StoredStudents) -> None:
    controller = LatencyController(stored.ladder_costs, LatencyTarget(0.2))
    # a late answer counts as the deadline, however soon the other devices answered
    assert after(5, stored, controller, replace(LATE, seconds=0.1)) == {1: 0, 2: 3}
    assert after(20, stored, controller, LATE) == {1: 0, 2: 3}


@pytest.mark.parametrize("gone", [DOWN, UNSERVED])
def test_device_that_is_gone_keeps_its_rung(gone: Answer, stored: StoredStudents) -> None:
    controller = LatencyController(stored.ladder_costs, LatencyTarget(0.2))
    assert after(25, stored, controller, LATE) == {1: 0, 2: 3}
    assert after(100, stored, controller, gone) == {1: 0, 2: 3}


@pytest.mark.parametrize("target", [500.0, 501.0, float("inf")])
def test_infer_refuses_a_target_beyond_the_deadline(
    target: float, stored: StoredStudents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer, "load_students", lambda _: stored)
    options = argparse.Namespace(model=tmp_path, policy=None, target_ms=target, deadline=DEADLINE, compare=False)
    with pytest.raises(UserError, match=f"--target-ms {target:g}: give less than the --deadline, 500 ms"):
        infer.run(options)


HALF = answer({1: [2, -1], 2: [-1, -1]}, {1: "late: 1 of 2 samples came within 0.5 s", 2: "down: gone"}, late=[1])
NO_ANSWER = answer({1: [-1], 2: [-1]}, {1: "down: it cannot be reached: refused", 2: "no device serves it"})


def test_image_without_answers_has_no_label(stored: StoredStudents, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(infer.classify(stored, Scripted(HALF), batches(1, 2, "e"), None))  # type: ignore[arg-type]
    assert [p.label for p in found] == ["e", None]
    assert [p.exits for p in found] == [{1: 3, 2: None}, {1: None, 2: None}]
    assert found[1].missing == HALF.missing
    infer.show(found, stored, None)
    shown = capsys.readouterr().out
    assert [cell.strip() for cell in shown.splitlines()[4].split("│")[1:5]] == ["0.1", "-", "-", "-"]
    assert "1 images have no label: no device answered them" in shown
    assert "accuracy 50.0 % of 2 images" in shown


def test_infer_fails_with_all_reasons_if_no_device_answers(
    stored: StoredStudents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.json"
    options = argparse.Namespace(
        model=tmp_path, policy=None, target_ms=None, deadline=DEADLINE, compare=False, images=tmp_path, json=file
    )
    monkeypatch.setattr(infer, "load_students", lambda _: stored)
    monkeypatch.setattr(infer, "read", lambda *_: batches(2))
    monkeypatch.setattr(infer.devices, "ask", lambda *_: Scripted(NO_ANSWER))
    reasons = "student 1: down: it cannot be reached: refused; student 2: no device serves it"
    with pytest.raises(UserError, match=rf"no device answered any image \({reasons}\): check"):
        infer.run(options)
    assert not file.exists()
    assert not capsys.readouterr().out


def test_compare_counts_answers_without_devices_as_wrong(
    stored: StoredStudents, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = {"last": {k: LastExit(EXITS) for k in (1, 2)}}
    known = replace(stored, policies=policies)
    whole = answer({1: [6, 6], 2: [6, 6]}, {})
    rows = compare(known, Scripted(whole, HALF), list(batches(1, 2, "e")))  # type: ignore[arg-type]
    assert rows[0].accuracy == 0.5
    assert rows[0].histogram == {1: {0: 1, 3: 1}, 2: {0: 2}}
    assert rows[0].missing == HALF.missing
    # missing answers save no MACs: one answer arrived, of student 1 at its third exit
    macs = exit_macs(known.students.student(1))
    assert rows[0].mean_macs == macs[2] / 2
    assert rows[0].share_of_full_macs == macs[2] / macs[-1]
    assert "student 2 is missing in some answers, its mean feature stands in: down: gone" in capsys.readouterr().out


def test_policy_without_answers_has_no_share_of_macs(
    stored: StoredStudents, capsys: pytest.CaptureFixture[str]
) -> None:
    known = replace(stored, policies={"last": {k: LastExit(EXITS) for k in (1, 2)}, "first": dict(stored.ladder[1])})
    whole = answer({1: [6], 2: [6]}, {})
    rows = compare(known, Scripted(whole, whole, NO_ANSWER), list(batches(1, 1, "e")))  # type: ignore[arg-type]
    assert [row.share_of_full_macs for row in rows[:2]] == [1.0, None]
    assert [cell.strip() for cell in capsys.readouterr().out.splitlines()[5].split("│")[1:5]][-1] == "-"


def test_infer_refuses_a_folder_without_readable_images(
    stored: StoredStudents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    monkeypatch.setattr(infer, "load_students", lambda _: stored)
    monkeypatch.setattr(infer.devices, "ask", lambda *_: Scripted(NO_ANSWER))
    options = argparse.Namespace(
        model=tmp_path, policy=None, target_ms=None, deadline=DEADLINE, compare=True, images=tmp_path, texts=None,
        dataset=None, column=None, batch=1, limit=0,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"none of the 1 files in .* can be read"):
        infer.run(options)


def test_compare_fails_if_no_device_answers(stored: StoredStudents, capsys: pytest.CaptureFixture[str]) -> None:
    known = replace(stored, policies={"last": {k: LastExit(EXITS) for k in (1, 2)}})
    with pytest.raises(UserError, match=r"no device answered any image \(.*student 2: no device serves it\)"):
        compare(known, Scripted(NO_ANSWER), list(batches(2, 1, "e")))  # type: ignore[arg-type]
    assert not capsys.readouterr().out
