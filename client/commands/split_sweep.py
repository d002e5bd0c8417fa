"""Cost and accuracy of split inference at every tau, from one pass.

Every image runs on the device and goes to the server once, both measured; the cost and answers of each tau follow image
by image. Batches go up whole, where a gate would send fewer images: `--batch 1` gives the numbers of single images.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from client.commands.split_half import Half
from client.runtimes.base import Runtime
from common.console import results
from common.console.samples import Samples, Skipped, folder_of
from common.errors import UserError
from common.exits.policy import entropy_gate
from strategies.hetero_splitee.remote import NoAnswer, Remote

TAUS = tuple(step / 20 for step in range(21))


@dataclass(frozen=True)
class Measured:
    """Both answers to every image and their cost; all arrays (N,) unless noted."""

    logits: NDArray[np.float32]  # (N, classes) of the device's exit
    right_here: NDArray[np.bool_]  # the device's exit is right
    right_there: NDArray[np.bool_]  # the server is right
    ms_here: NDArray[np.float64]  # milliseconds on the device
    ms_there: NDArray[np.float64]  # further milliseconds to the server and back
    sent: NDArray[np.float64]  # bytes up
    received: NDArray[np.float64]  # bytes down


@dataclass(frozen=True)
class SweepPoint:
    """Split inference at one tau; means are over all images."""

    tau: float
    accuracy: float
    share_on_device: float
    mean_ms: float
    mean_sent: float
    mean_received: float


def sweep(
    options: argparse.Namespace,
    network: Runtime,
    remote: Remote,
    halves: Iterable[tuple[Samples, Half]],
    tuned: float | None,
    skipped: Skipped,
) -> int:
    """Measure, print and store; `tuned` is the device's own tau, None if it tuned none.

    Raises `UserError` when the server does not answer or an image has no label.
    """
    measured = measure(network, remote, halves)
    if not len(measured.logits):
        raise skipped.all_of(folder_of(options))
    points = [at(measured, tau) for tau in TAUS]
    _show(points, f"{len(measured.logits)} {network.takes.kind}", tuned)
    if options.json:
        content = {
            "model": str(options.model), "cut": network.cut, "server": options.server,
            "coding": options.coding or "fp32", "images": len(measured.logits), "tuned_tau": tuned,
            "sweep": [asdict(point) for point in points], "skipped": skipped.reasons,
        }  # fmt: skip
        results.store(options.json, content)
    return 0


def measure(network: Runtime, remote: Remote, halves: Iterable[tuple[Samples, Half]]) -> Measured:
    """Send every batch to the server; `halves` are the device's results for each batch."""
    logits = [np.empty((0, len(network.classes)), np.float32)]
    columns: list[list[float]] = []
    for batch, half in halves:
        unknown = [name for name, truth in zip(batch.names, batch.truths, strict=True) if truth is None]
        if unknown:
            raise UserError(f"--sweep needs labelled {network.takes.kind}; {unknown[0]} is not inside a class folder")
        started = time.perf_counter()
        try:
            answer = remote.ask(half.features)
        except NoAnswer as error:
            raise UserError(f"--sweep needs an answer to every image: {error}") from error
        waited = (time.perf_counter() - started) * 1000
        costs = [half.ms] + [value / len(batch) for value in (waited, answer.sent, answer.received)]
        here, there = half.logits.argmax(-1).tolist(), answer.logits.argmax(-1).tolist()
        for truth, one, other in zip(batch.truths, here, there, strict=True):
            columns.append([network.classes[one] == truth, network.classes[other] == truth, *costs])
        logits.append(half.logits)
    right_here, right_there, *costs_ = np.array(columns, np.float64).reshape(-1, 6).T
    return Measured(np.concatenate(logits), right_here.astype(bool), right_there.astype(bool), *costs_)


def at(measured: Measured, tau: float) -> SweepPoint:
    """Return the cost and accuracy of this tau."""
    stays = entropy_gate(tau)(0, measured.logits)
    goes = (~stays).astype(np.float64)
    right = np.where(stays, measured.right_here, measured.right_there)
    return SweepPoint(
        tau=tau,
        accuracy=right.mean().item(),
        share_on_device=stays.mean().item(),
        mean_ms=(measured.ms_here + goes * measured.ms_there).mean().item(),
        mean_sent=(goes * measured.sent).mean().item(),
        mean_received=(goes * measured.received).mean().item(),
    )


def _show(points: Sequence[SweepPoint], samples: str, tuned: float | None) -> None:
    table = Table()
    for name in ("tau", "accuracy", "on the device", "ms", "bytes up", "bytes down"):
        table.add_column(name, justify="right", no_wrap=True)
    for p in points:
        shares = (f"{100 * p.accuracy:.1f} %", f"{100 * p.share_on_device:.1f} %")
        table.add_row(f"{p.tau:.2f}", *shares, f"{p.mean_ms:.2f}", f"{p.mean_sent:.0f}", f"{p.mean_received:.0f}")
    results.show(table, [closing_line(samples, tuned)])


def closing_line(samples: str, tuned: float | None) -> str:
    """Return the line below the table of so many samples ("24 images")."""
    own = "" if tuned is None else f"; this device tuned {tuned:g} in training"
    return f"{samples}; tau 0: all to the server, 1: all on the device{own}"
