"""`python -m client infer`: classify a folder of images with a stored model, offline.

A sample leaves at the first exit that is sure enough and is computed no further, so milliseconds and MACs are what the
device really spends.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from common.bundle import Bundle, load_bundle
from common.data.decode import decode
from common.data.image_folder import SUFFIXES, images_below
from common.devices import pick_device
from common.errors import UserError
from common.exits import ThresholdPolicy, confidence
from common.networks import cost_table
from common.storage import write_text

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

Unreadable = Callable[[Path, str], None]


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    file: str
    """Relative to the folder."""
    label: str
    truth: str | None
    """The class that a folder above the file is named after, if any."""
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
    parser = verbs.add_parser("infer", help="classify images with a stored model, offline", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a finished run's folder, or its model file")
    parser.add_argument("--images", type=Path, required=True, help=f"folder of {', '.join(SUFFIXES)}, any nesting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file too")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default 1: honest time per image)")
    leaving = parser.add_mutually_exclusive_group()
    leaving.add_argument("--accuracy-first", action="store_true", help="everything goes to the last exit")
    leaving.add_argument("--threshold", type=float, help="leave at this confidence, instead of the calibrated ones")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Classify, print and store. Raises `UserError` when there is no model or no readable image."""
    if options.batch < 1:
        raise UserError(f"--batch {options.batch}: give 1 or more")
    bundle = load_bundle(options.model)
    if bundle.network.vocabulary:
        raise UserError(f"{options.model} is a model of texts: this command classifies images only")
    policy = choose_policy(bundle, accuracy_first=options.accuracy_first, threshold=options.threshold)
    bundle, macs = replace(bundle, policy=policy), exit_macs(bundle)
    files = find_images(options.images)
    device = pick_device(options.device)
    skipped: dict[str, str] = {}

    def skip(path: Path, reason: str) -> None:
        skipped[str(path.relative_to(options.images))] = reason
        print(f"skipped: {reason}", file=sys.stderr)

    warm_up(bundle, device)
    found = classify(bundle, files, options.images, macs=macs, device=device, batch=options.batch, skip=skip)
    predictions = list(found)
    if not predictions:
        raise UserError(f"none of the {len(files)} images in {options.images} can be read: replace them")
    summary = summarise(predictions, macs, len(skipped))
    show(predictions, summary)
    if options.json:
        content = {
            "model": str(options.model),
            "policy": json.loads(policy.to_json()),
            "summary": asdict(summary),
            "images": [asdict(prediction) for prediction in predictions],
            "skipped": skipped,
        }
        store(options.json, content)
    return 0


def choose_policy(bundle: Bundle, *, accuracy_first: bool = False, threshold: float | None = None) -> ThresholdPolicy:
    """Return the stored policy, or one threshold for every exit but the last; `accuracy_first`: nobody leaves early."""
    early = len(bundle.network.exit_positions) - 1
    if accuracy_first:
        return ThresholdPolicy((math.inf,) * early, bundle.policy.measure)
    if threshold is not None:
        return ThresholdPolicy((threshold,) * early, bundle.policy.measure)
    return bundle.policy


def find_images(folder: Path) -> list[Path]:
    """Return all images below a folder, sorted; raises `UserError` without any."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give --images a folder that holds images")
    files = images_below(folder)
    if not files:
        raise UserError(f"{folder} holds no images: put {', '.join(SUFFIXES)} files there")
    return files


def exit_macs(bundle: Bundle) -> tuple[int, ...]:
    """Return MACs of a sample that leaves at each exit, shallow to deep."""
    costs = cost_table(bundle.network)
    return tuple(costs.macs(index) for index in range(len(bundle.network.exit_positions)))


def warm_up(bundle: Bundle, device: torch.device) -> None:
    """Run one blank image through all units: the first pass of a process also pays for its set-up."""
    network = bundle.network.to(device)
    network.infer(network.example(1).to(device), choose_policy(bundle, accuracy_first=True))


def classify(
    bundle: Bundle,
    files: Sequence[Path],
    folder: Path,
    *,
    macs: Sequence[int],
    device: torch.device,
    batch: int = 1,
    skip: Unreadable = lambda path, reason: None,
) -> Iterator[Prediction]:
    """Yield a prediction per readable image below `folder`, in order; `skip` hears of the others.

    Args:
        bundle: model and policy.
        files: image files below `folder`.
        folder: what file names and class folders are relative to.
        macs: of each exit, see `exit_macs`.
        device: where the model runs.
        batch: images at once.
        skip: called with each unreadable file and the reason.

    Only `batch` decoded images are held at once. Size and channels are changed to what the network takes.
    """
    network, normalise, policy = bundle.network.to(device), bundle.normalizer.to(device), bundle.policy
    truths = {name.replace("/", "-"): name for name in bundle.classes}
    channels, height, width = network.input_shape
    for paths, pixels in _batches(files, (channels, height, width), batch, skip):
        started = _now(device)
        inference = network.infer(normalise(pixels.to(device)), policy)
        ms = (_now(device) - started) * 1000 / len(paths)
        labels = inference.logits.argmax(-1).tolist()
        sure = confidence(inference.logits, policy.measure).tolist()
        for path, label, exit_, score in zip(paths, labels, inference.exits.tolist(), sure, strict=True):
            inside = path.relative_to(folder)
            truth = next((truths[part] for part in reversed(inside.parts[:-1]) if part in truths), None)
            yield Prediction(str(inside), bundle.classes[label], truth, exit_ + 1, score, ms, macs[exit_])


def summarise(predictions: Sequence[Prediction], macs: Sequence[int], skipped: int) -> Summary:
    """Add up predictions, of which there is at least one; `macs` of each exit, shallow to deep."""
    number = len(predictions)
    labelled = [p for p in predictions if p.truth is not None]
    mean_macs = sum(p.macs for p in predictions) / number
    return Summary(
        images=number,
        skipped=skipped,
        exit_histogram=tuple(sum(p.exit == e for p in predictions) for e in range(1, len(macs) + 1)),
        mean_ms=sum(p.ms for p in predictions) / number,
        mean_macs=mean_macs,
        full_macs=macs[-1],
        share_of_full_macs=mean_macs / macs[-1],
        labelled=len(labelled),
        accuracy=sum(p.label == p.truth for p in labelled) / len(labelled) if labelled else None,
    )


def show(predictions: Sequence[Prediction], summary: Summary) -> None:
    """Print the table and the closing lines."""
    console = Console()
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("label", overflow="fold")
    for name in ("exit", "confidence", "ms", "MMACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for p in predictions:
        wrong = p.truth is not None and p.label != p.truth
        numbers = (str(p.exit), f"{p.confidence:.3f}", f"{p.ms:.2f}", f"{p.macs / 1e6:.3f}")
        # Text, because a file name may hold what rich takes for markup
        table.add_row(Text(p.file), Text(f"{p.label} (not {p.truth})" if wrong else p.label), *numbers)
    console.print(table)
    for line in closing_lines(summary):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def closing_lines(summary: Summary) -> list[str]:
    """Return what to say after the table."""
    left = ", ".join(f"exit {e}: {n}" for e, n in enumerate(summary.exit_histogram, start=1))
    lines = [
        f"{summary.images} images, {summary.mean_ms:.2f} ms and {summary.mean_macs / 1e6:.3f} MMACs each on average, "
        f"{100 * summary.share_of_full_macs:.1f} % of the full {summary.full_macs / 1e6:.3f} ({left})"
    ]
    if summary.accuracy is not None:
        lines.append(f"accuracy {100 * summary.accuracy:.1f} % of {summary.labelled} images in class folders")
    if summary.skipped:
        lines.append(f"{summary.skipped} unreadable files skipped")
    return lines


def store(file: Path, content: dict[str, Any]) -> None:
    """Write JSON; raises `UserError` when the file cannot be written."""
    try:
        write_text(file, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--json {file} cannot be written: {error.strerror}") from error


def _batches(
    files: Sequence[Path], shape: tuple[int, int, int], size: int, skip: Unreadable
) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield paths and their uint8 pixels (b, C, H, W), b = size but for the last."""
    paths: list[Path] = []
    pixels: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    for path in files:
        try:
            pixels += decode([path], shape, resize=True, where="image")
        except UserError as error:
            skip(path, str(error))
            continue
        paths.append(path)
        if len(paths) == size:
            yield paths, torch.from_numpy(np.stack(pixels))
            paths, pixels = [], []
    if paths:
        yield paths, torch.from_numpy(np.stack(pixels))


def _now(device: torch.device) -> float:
    """Return seconds, after everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
