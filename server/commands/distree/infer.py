"""`python -m server infer`: classify images with students on several devices, which stop by themselves."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from rich.text import Text

from common.console import results
from common.console.samples import Samples, Skipped, Takes, folder_of, read
from common.errors import UserError
from server.commands.distree import devices
from server.commands.distree.infer_compare import compare, percentile
from strategies.distree.exits.policies import Policies, remedy
from strategies.distree.model.stored import StoredStudents, load_students
from strategies.distree.serving.aggregator import Aggregator, Answer
from strategies.distree.serving.controller import LatencyController, LatencyTarget, Seconds


@dataclass(frozen=True)
class Prediction:
    """The students' common answer to one image."""

    file: str
    label: str | None  # None: no device answered
    truth: str | None
    exits: dict[int, int | None]  # student -> its exit, counted from 1; None: its features did not arrive in time
    ms: float  # from sending the image to the answer; each image of a batch has the batch's time
    sent: float  # bytes to all devices: the batch's, divided by its images
    received: float
    missing: dict[int, str]  # student -> why it is missing


def run(options: argparse.Namespace) -> int:
    """Ask the devices, print the answers and store them. Raises `UserError`."""
    stored = load_students(options.model)
    policies = _policies(stored, options.policy)
    controller = _controller(stored, options.target_ms, options.deadline)
    skipped = Skipped()
    samples = read(options, stored.classes, Takes(stored.students.student(1).input_shape), skipped)
    with ExitStack() as stack:
        aggregator = devices.ask(stored, options, stack)
        if options.compare:
            batches = list(samples)
            if not batches:
                raise skipped.all_of(folder_of(options))
            rows = compare(stored, aggregator, batches)
            if options.json:
                results.store(options.json, {"model": str(options.model), "policies": [asdict(row) for row in rows]})
            return 0
        predictions = list(classify(stored, aggregator, samples, policies, controller))
    if not predictions:
        raise skipped.all_of(folder_of(options))
    if all(p.label is None for p in predictions):
        raise devices.none_answered(predictions[-1].missing)
    show(predictions, stored, controller)
    if options.json:
        content = {"model": str(options.model), "images": [asdict(p) for p in predictions], "skipped": skipped.reasons}
        results.store(options.json, content)
    return 0


def classify(
    stored: StoredStudents,
    aggregator: Aggregator,
    batches: Iterable[Samples],
    policies: Policies | None,
    controller: LatencyController | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction per sample, in order. A controller chooses the policies before each batch."""
    first = 0
    for batch in batches:
        if controller:
            policies = {k: stored.ladder[rung][k] for k, rung in controller.rungs.items()}
        answer = aggregator.infer(torch.from_numpy(batch.inputs), policies, range(first, first + len(batch)))
        if controller:
            whole = {
                k: Seconds(answer.arrived[k], answer.compute[k]) for k in answer.arrived if k not in answer.missing
            }
            controller.observe(whole | dict.fromkeys(answer.late, Seconds(aggregator.deadline, aggregator.deadline)))
        yield from _predictions(batch, answer, stored.classes)
        first += len(batch)


def show(predictions: Sequence[Prediction], stored: StoredStudents, controller: LatencyController | None) -> None:
    """Print the table and the closing lines."""
    numbers, table = stored.students.spec.numbers, Table()
    table.add_column("file", overflow="fold")
    table.add_column("label", overflow="fold")
    for name in (*(f"exit of {k}" for k in numbers), "ms", "bytes up", "down"):
        table.add_column(name, justify="right")
    for p in predictions:
        exits = ("-" if p.exits[k] is None else str(p.exits[k]) for k in numbers)
        # Text: rich would take parts of some file names for markup
        answer = Text("-" if p.label is None else results.answer(p.label, p.truth))
        table.add_row(Text(p.file), answer, *exits, f"{p.ms:.2f}", f"{p.sent:.0f}", f"{p.received:.0f}")
    results.show(table, closing_lines(predictions, controller))


def closing_lines(predictions: Sequence[Prediction], controller: LatencyController | None = None) -> list[str]:
    """Return the lines to print after the table."""
    times = [p.ms for p in predictions]
    lines = [
        f"{len(predictions)} images, {sum(times) / len(times):.2f} ms on average, 99 in 100 within "
        f"{percentile(times, 0.99):.2f} ms, {sum(p.received for p in predictions) / len(predictions):.0f} bytes of "
        "features each"
    ]
    for number in predictions[0].exits:
        gone = [p for p in predictions if p.exits[number] is None]
        if gone:
            reasons = "; ".join(sorted({p.missing[number] for p in gone}))
            lines.append(f"student {number} is missing in {len(gone)} answers, its mean feature stands in: {reasons}")
    if unlabelled := sum(p.label is None for p in predictions):
        lines.append(f"{unlabelled} images have no label: no device answered them")
    if controller:
        lines.append(f"rungs of the ladder at the end: {controller.rungs} (0: all students at the last exit)")
    labelled, accuracy = results.accuracy((p.label, p.truth) for p in predictions)
    if accuracy is not None:
        lines.append(f"accuracy {100 * accuracy:.1f} % of {labelled} images whose class is known")
    return lines


def _predictions(batch: Samples, answer: Answer, classes: Sequence[str]) -> Iterator[Prediction]:
    share = len(batch)
    sent, received = sum(answer.sent.values()) / share, sum(answer.received.values()) / share
    exits = {k: exits.tolist() for k, exits in answer.exits.items()}
    for row, label in enumerate(answer.labels()):
        own = {k: None if found[row] < 0 else found[row] + 1 for k, found in exits.items()}
        missing = {k: answer.missing.get(k, "") for k, exit_ in own.items() if exit_ is None}
        name = None if label is None else classes[label]
        yield Prediction(batch.names[row], name, batch.truths[row], own, 1000 * answer.seconds, sent, received, missing)


def _policies(stored: StoredStudents, name: str | None) -> Policies | None:
    if name is not None and name not in stored.policies:
        raise UserError(f"--policy {name}: choose one of {', '.join(sorted(stored.policies))}{remedy(name)}")
    return stored.policies[name] if name else None


def _controller(stored: StoredStudents, target_ms: float | None, deadline: float) -> LatencyController | None:
    if target_ms is None:
        return None
    controller = LatencyController(stored.ladder_costs, LatencyTarget(target_ms / 1000))
    if controller.target.seconds >= deadline:
        # an answer that misses the deadline counts as if it had taken the deadline
        raise UserError(f"--target-ms {target_ms:g}: give less than the --deadline, {1000 * deadline:g} ms")
    return controller
