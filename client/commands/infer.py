"""`python -m client infer`: classify images or texts with a stored model, on this device alone or with a server."""

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from client.runtimes.base import Runtime, warm_up
from client.runtimes.choice import open_network
from common.console import results
from common.console.samples import Samples, Skipped, folder_of, read
from common.errors import UserError
from common.exits.policy import ThresholdPolicy, confidence

SPLIT = ("server", "token_file", "certificate", "coding", "tau", "deadline", "sweep")  # options of this mode only
LOCAL = ("accuracy_first", "threshold")


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one image."""

    file: str  # relative to the folder; for a data set the number in its test split
    label: str
    truth: str | None  # the data set's label, or the class after which a folder above the file is named, if any
    exit: int  # counted from 1
    confidence: float  # in the policy's measure: for softmax a probability
    ms: float  # milliseconds on the device without decoding; a batch's time is shared evenly
    macs: int  # multiply-accumulates up to that exit


@dataclass(frozen=True)
class Summary:
    """Totals and means over all predictions."""

    images: int
    skipped: int
    exit_histogram: tuple[int, ...]
    mean_ms: float
    mean_macs: float
    full_macs: int  # of a sample that leaves at the last exit
    share_of_full_macs: float
    labelled: int
    accuracy: float | None  # in [0, 1], of the labelled images; None without any


def run(options: argparse.Namespace) -> int:
    """Classify, print and store. Raises `UserError` without a model or a readable image."""
    foreign, other = (LOCAL, "local") if options.mode == "split" else (SPLIT, "split")
    # by identity: a given 0.0 equals False
    if wrong := [name for name in foreign if not any(getattr(options, name) is absent for absent in (None, False))]:
        raise UserError(f"--{wrong[0].replace('_', '-')} is for --mode {other}, not for --mode {options.mode}")
    if options.mode == "split":
        from client.commands import split_infer  # its imports take seconds that local mode need not spend

        return split_infer.run(options)
    network = open_network(options, split=False)
    policy = choose_policy(network, accuracy_first=options.accuracy_first, threshold=options.threshold)
    skipped = Skipped()
    samples = read(options, network.classes, network.takes, skipped)
    warm_up(network)
    predictions = list(classify(network, samples, policy))
    if not predictions:
        raise skipped.all_of(folder_of(options))
    summary = summarise(predictions, network.macs, len(skipped.reasons))
    show(predictions, summary, network.takes.kind)
    if options.json:
        content = {
            "model": str(options.model),
            "policy": json.loads(policy.to_json()),
            "summary": asdict(summary),
            "images": [asdict(prediction) for prediction in predictions],
            "skipped": skipped.reasons,
        }
        results.store(options.json, content)
    return 0


def choose_policy(network: Runtime, *, accuracy_first: bool = False, threshold: float | None = None) -> ThresholdPolicy:
    """Return the stored policy, or one threshold for all early exits; `accuracy_first`: always the last exit."""
    early = len(network.macs) - 1
    if accuracy_first:
        return ThresholdPolicy((math.inf,) * early, network.policy.measure)
    if threshold is not None:
        if not threshold > -math.inf:  # NaN is refused too
            raise UserError(f"--threshold {threshold}: give a confidence, such as 0.9")
        return ThresholdPolicy((threshold,) * early, network.policy.measure)
    return network.policy


def classify(network: Runtime, batches: Iterable[Samples], policy: ThresholdPolicy) -> Iterator[Prediction]:
    """Yield a prediction per sample, in order."""
    for batch in batches:
        started = time.perf_counter()
        inference = network.infer(batch.inputs, policy)
        ms = (time.perf_counter() - started) * 1000 / len(batch)
        rows = zip(
            batch.names, batch.truths, inference.logits.argmax(-1).tolist(), inference.exits.tolist(),
            confidence(inference.logits, policy.measure).tolist(), strict=True,
        )  # fmt: skip
        for name, truth, label, exit_, score in rows:
            yield Prediction(name, network.classes[label], truth, exit_ + 1, score, ms, network.macs[exit_])


def summarise(predictions: Sequence[Prediction], macs: Sequence[int], skipped: int) -> Summary:
    """Return the summary of at least one prediction; `macs` are those of its exits."""
    number = len(predictions)
    labelled, accuracy = results.accuracy((p.label, p.truth) for p in predictions)
    mean_macs = sum(p.macs for p in predictions) / number
    return Summary(
        images=number,
        skipped=skipped,
        exit_histogram=tuple(sum(p.exit == e for p in predictions) for e in range(1, len(macs) + 1)),
        mean_ms=sum(p.ms for p in predictions) / number,
        mean_macs=mean_macs,
        full_macs=macs[-1],
        share_of_full_macs=mean_macs / macs[-1],
        labelled=labelled,
        accuracy=accuracy,
    )


def show(predictions: Sequence[Prediction], summary: Summary, kind: str) -> None:
    """Print the table and the closing lines; `kind` is what the samples are, see `Takes.kind`."""
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("label", overflow="fold")
    for name in ("exit", "confidence", "ms", "MMACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for p in predictions:
        numbers = (str(p.exit), f"{p.confidence:.3f}", f"{p.ms:.2f}", f"{p.macs / 1e6:.3f}")
        # Text, because a file name may look like rich's markup
        table.add_row(Text(p.file), Text(results.answer(p.label, p.truth)), *numbers)
    results.show(table, closing_lines(summary, kind))


def closing_lines(summary: Summary, kind: str) -> list[str]:
    """Return the lines below the table of images or texts."""
    left = ", ".join(f"exit {e}: {n}" for e, n in enumerate(summary.exit_histogram, start=1))
    lines = [
        f"{summary.images} {kind}, {summary.mean_ms:.2f} ms and {summary.mean_macs / 1e6:.3f} MMACs each on average, "
        f"{100 * summary.share_of_full_macs:.1f} % of the full {summary.full_macs / 1e6:.3f} ({left})"
    ]
    if summary.accuracy is not None:
        lines.append(f"accuracy {100 * summary.accuracy:.1f} % of {summary.labelled} labelled {kind}")
    if summary.skipped:
        lines.append(f"{summary.skipped} unreadable files skipped")
    return lines
