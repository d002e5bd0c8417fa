"""`python -m client infer`: classify images with a stored model, on this device alone or together with a server.

Alone (`--mode local`), a sample leaves at the first exit that is sure enough and is computed no further, so
milliseconds and MACs are what the device really spends. Together (`--mode split`), a device that trained the first
layers of a network sends the features of what its own exit is unsure of to `python -m server offload`.
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.table import Table
from rich.text import Text

from common.console import results
from common.console.samples import Samples, Skipped, add_arguments, read
from common.devices import keep_memory, pick_device
from common.errors import UserError
from common.exits import ThresholdPolicy, confidence
from common.networks import cost_table
from common.rpc.tensors import CODINGS
from common.storage.model_file import StoredModel, load_model
from strategies.hetero_splitee.statistics import SERVER_HALF

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

SPLIT = ("server", "token_file", "certificate", "coding", "tau", "deadline", "sweep")  # options of that mode alone
LOCAL = ("accuracy_first", "threshold")


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    file: str
    """Relative to the folder; of a data set the number in its test split."""
    label: str
    truth: str | None
    """The data set's label, or the class that a folder above the file is named after, if any."""
    exit: int
    """Counted from 1."""
    confidence: float
    """In the policy's measure: for softmax a probability."""
    ms: float
    """Milliseconds on the device, decoding left out; a batch's time is shared evenly."""
    macs: int
    """Multiply-accumulates up to that exit."""


@dataclass(frozen=True)
class Summary:
    """What all predictions come to."""

    images: int
    skipped: int
    exit_histogram: tuple[int, ...]
    mean_ms: float
    mean_macs: float
    full_macs: int
    """Of a sample that leaves at the last exit."""
    share_of_full_macs: float
    labelled: int
    accuracy: float | None
    """In [0, 1], of the labelled images; None without any."""


def add_parser(verbs: "Verbs") -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("infer", help="classify images with a stored model", description=__doc__)
    parser.add_argument("--mode", choices=("local", "split"), default="local", help="(default: %(default)s)")
    parser.add_argument("--model", type=Path, required=True, help="a finished run's or device's folder, or model file")
    add_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file too")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    local = parser.add_argument_group("local").add_mutually_exclusive_group()
    local.add_argument("--accuracy-first", action="store_true", help="everything goes to the last exit")
    local.add_argument("--threshold", type=float, help="leave at this confidence, instead of the calibrated ones")
    split = parser.add_argument_group("split")
    split.add_argument("--server", metavar="HOST:PORT", help="where `python -m server offload` listens")
    split.add_argument("--token-file", type=Path, metavar="FILE", help="a copy of the server's")
    split.add_argument("--certificate", type=Path, metavar="PEM", help="the server's, off loopback")
    split.add_argument("--coding", choices=tuple(CODINGS), help="of the features that are sent (default: fp32)")
    split.add_argument("--tau", type=float, help="stay on the device up to this entropy / log C, not the tuned one")
    split.add_argument("--deadline", type=float, metavar="S", help="seconds to wait for the server (default: 2)")
    split.add_argument("--sweep", action="store_true", help="ask for everything once and compare taus from 0 to 1")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Classify, print and store. Raises `UserError` when there is no model or no readable image."""
    foreign, other = (LOCAL, "local") if options.mode == "split" else (SPLIT, "split")
    if wrong := [name for name in foreign if getattr(options, name) not in (None, False)]:
        raise UserError(f"--{wrong[0].replace('_', '-')} is for --mode {other}, not for --mode {options.mode}")
    if options.mode == "split":
        from client.commands import split_infer  # its imports take seconds that a device alone need not spend

        return split_infer.run(options)
    bundle = load_model(options.model)
    if bundle.values.get(SERVER_HALF):
        raise UserError(
            f"{options.model} is the server's half of a split network: serve it with `python -m server offload`, "
            "and give --model the folder that a device stored"
        )
    policy = choose_policy(bundle, accuracy_first=options.accuracy_first, threshold=options.threshold)
    bundle, macs = replace(bundle, policy=policy), exit_macs(bundle)
    device = pick_device(options.device)
    keep_memory()
    skipped = Skipped()
    samples = read(options, bundle.classes, bundle.network.input_shape, skipped)
    warm_up(bundle, device)
    predictions = list(classify(bundle, samples, macs=macs, device=device))
    if not predictions:
        raise skipped.all_of(options.images)
    summary = summarise(predictions, macs, len(skipped.reasons))
    show(predictions, summary)
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


def choose_policy(
    bundle: StoredModel, *, accuracy_first: bool = False, threshold: float | None = None
) -> ThresholdPolicy:
    """Return the stored policy, or one threshold for every exit but the last; `accuracy_first`: nobody leaves early."""
    early = len(bundle.network.exit_positions) - 1
    if accuracy_first:
        return ThresholdPolicy((math.inf,) * early, bundle.policy.measure)
    if threshold is not None:
        return ThresholdPolicy((threshold,) * early, bundle.policy.measure)
    return bundle.policy


def exit_macs(bundle: StoredModel) -> tuple[int, ...]:
    """Return MACs of a sample that leaves at each exit, shallow to deep."""
    costs = cost_table(bundle.network)
    return tuple(costs.macs(index) for index in range(len(bundle.network.exit_positions)))


def warm_up(bundle: StoredModel, device: torch.device) -> None:
    """Run one blank image through all units: the first pass of a process also pays for its set-up."""
    network = bundle.network.to(device)
    network.infer(network.example(1).to(device), choose_policy(bundle, accuracy_first=True))


def classify(
    bundle: StoredModel, batches: Iterable[Samples], *, macs: Sequence[int], device: torch.device
) -> Iterator[Prediction]:
    """Yield a prediction per sample, in order; `macs` are of each exit, see `exit_macs`."""
    network, normalise, policy = bundle.network.to(device), bundle.normalizer.to(device), bundle.policy
    for batch in batches:
        started = results.now(device)
        inference = network.infer(normalise(batch.pixels.to(device)), policy)
        ms = (results.now(device) - started) * 1000 / len(batch)
        rows = zip(
            batch.names, batch.truths, inference.logits.argmax(-1).tolist(), inference.exits.tolist(),
            confidence(inference.logits, policy.measure).tolist(), strict=True,
        )  # fmt: skip
        for name, truth, label, exit_, score in rows:
            yield Prediction(name, bundle.classes[label], truth, exit_ + 1, score, ms, macs[exit_])


def summarise(predictions: Sequence[Prediction], macs: Sequence[int], skipped: int) -> Summary:
    """Add up predictions, of which there is at least one; `macs` of each exit, shallow to deep."""
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


def show(predictions: Sequence[Prediction], summary: Summary) -> None:
    """Print the table and the closing lines."""
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("label", overflow="fold")
    for name in ("exit", "confidence", "ms", "MMACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for p in predictions:
        numbers = (str(p.exit), f"{p.confidence:.3f}", f"{p.ms:.2f}", f"{p.macs / 1e6:.3f}")
        # Text, because a file name may hold what rich takes for markup
        table.add_row(Text(p.file), Text(results.answer(p.label, p.truth)), *numbers)
    results.show(table, closing_lines(summary))


def closing_lines(summary: Summary) -> list[str]:
    """Return what to say after the table."""
    left = ", ".join(f"exit {e}: {n}" for e, n in enumerate(summary.exit_histogram, start=1))
    lines = [
        f"{summary.images} images, {summary.mean_ms:.2f} ms and {summary.mean_macs / 1e6:.3f} MMACs each on average, "
        f"{100 * summary.share_of_full_macs:.1f} % of the full {summary.full_macs / 1e6:.3f} ({left})"
    ]
    if summary.accuracy is not None:
        lines.append(f"accuracy {100 * summary.accuracy:.1f} % of {summary.labelled} images whose class is known")
    if summary.skipped:
        lines.append(f"{summary.skipped} unreadable files skipped")
    return lines
