"""Split inference: a device's own exit answers confident samples, the server the rest (Hetero-SplitEE, Oda et al.).

For each batch of images:

1. Run the device's units and its exit.
2. The device answers samples whose entropy H / log C at the exit is at most tau.
3. The features of the others go up in one call, and the server's answer comes back.
4. Without an answer the device's exit answers those too, and reports it; the next calls skip the server for a while.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.table import Table
from rich.text import Text

from client.commands.split_half import device_half
from client.commands.split_sweep import sweep
from client.runtimes.base import Runtime, blank
from client.runtimes.choice import open_network
from common.console import results
from common.console.samples import Samples, Skipped, folder_of, read
from common.errors import UserError
from common.exits.policy import ThresholdPolicy, confidence, entropy_gate
from common.rpc.channels import Limits, connect
from common.rpc.secrets import read_certificate, read_token
from strategies.hetero_splitee.origin import NO_CLIENT, Origin
from strategies.hetero_splitee.remote import OVERHEAD, NoAnswer, Remote, bytes_per_sample

DEVICE, SERVER = "device", "server"


@dataclass(frozen=True)
class SplitPrediction:
    """The prediction for one image, and its origin."""

    file: str  # relative to the folder; for a data set the number in its test split
    label: str
    truth: str | None
    answered: str  # by "device" or "server"
    entropy: float  # at the device's exit, divided by log C: in [0, 1]
    ms: float  # milliseconds with the network's but without decoding; a batch's times are shared evenly
    sent: float  # bytes up; a batch's bytes are shared evenly among its samples that went up
    received: float  # bytes down, likewise
    problem: str = ""  # why the device answered instead of the server; empty: it did not


@dataclass(frozen=True)
class SplitSummary:
    """Totals and means over all predictions; a mean over no images is None."""

    images: int
    skipped: int
    tau: float
    on_device: int  # answered by the device's exit, those included that the server did not answer
    in_place: int  # of these, answered instead of the server
    share_on_device: float
    mean_ms: float
    mean_ms_device: float | None  # of images that stayed on the device by the gate
    mean_ms_server: float | None
    mean_sent: float
    mean_received: float
    labelled: int
    accuracy: float | None  # in [0, 1], of the labelled images; None without any
    problems: dict[str, int]  # why the server did not answer -> images


def run(options: argparse.Namespace) -> int:
    """Classify, print and store. Raises `UserError` without a device's part, token or readable image."""
    if options.sweep and options.tau is not None:
        raise UserError(f"--tau {options.tau} with --sweep: leave --tau out, a sweep compares every tau from 0 to 1")
    network = open_network(options, split=True)
    gate = choose_gate(network, options.tau)
    skipped = Skipped()
    samples = read(options, network.classes, network.takes, skipped)
    remote = _remote(options, network)
    if options.sweep:
        halves = ((batch, device_half(network, batch.inputs, gate)) for batch in samples)
        warm_up(network, gate, remote, quiet=True)
        tuned = tuned_gate(network)
        return sweep(options, network, remote, halves, None if tuned is None else tau_of(tuned), skipped)
    warm_up(network, gate, remote)
    predictions = list(classify(network, samples, gate, remote))
    if not predictions:
        raise skipped.all_of(folder_of(options))
    summary = summarise(predictions, tau_of(gate), len(skipped.reasons))
    show(predictions, summary, options.server, network.takes.kind)
    if options.json:
        content = {
            "model": str(options.model), "cut": network.cut, "server": options.server,
            "coding": options.coding or "fp32", "summary": asdict(summary),
            "images": [asdict(prediction) for prediction in predictions], "skipped": skipped.reasons,
        }  # fmt: skip
        results.store(options.json, content)
    return 0


def choose_gate(network: Runtime, tau: float | None = None) -> ThresholdPolicy:
    """Return the gate of `tau`, else the one that the device tuned; without either every sample goes up."""
    if tau is not None:
        return entropy_gate(tau)
    return tuned_gate(network) or entropy_gate(0.0)


def tuned_gate(network: Runtime) -> ThresholdPolicy | None:
    """Return the gate that the device tuned in training, if it did."""
    return network.policy if network.policy.measure == "entropy" and network.policy.num_exits == 2 else None


def tau_of(gate: ThresholdPolicy) -> float:
    """Return the entropy up to which a sample stays."""
    return max(0.0, round(1.0 - gate.thresholds[0], 12))  # an infinite threshold is a tau of 0


def warm_up(network: Runtime, gate: ThresholdPolicy, remote: Remote, *, quiet: bool = False) -> None:
    """Run one blank image through both sides: the first image includes set-up, of the connection too.

    Prints a note when the server does not answer, unless no sample would go there.
    """
    half = device_half(network, blank(network), gate)
    if tau_of(gate) == 1.0 and not quiet:
        return
    try:
        remote.ask(half.features)
    except NoAnswer as error:
        if not quiet:
            print(f"note: {error}; until the server answers, this device's own exit does", file=sys.stderr)


def classify(
    network: Runtime, batches: Iterable[Samples], gate: ThresholdPolicy, remote: Remote
) -> Iterator[SplitPrediction]:
    """Yield a prediction per sample, in order."""
    for batch in batches:
        half = device_half(network, batch.inputs, gate)
        labels, away = half.logits.argmax(-1).tolist(), np.flatnonzero(~half.stays).tolist()
        sent = received = 0
        problem, started = "", time.perf_counter()
        if away:
            try:
                answer = remote.ask(half.features[away])
                sent, received = answer.sent, answer.received
                for row, label in zip(away, answer.logits.argmax(-1).tolist(), strict=True):
                    labels[row] = label
            except NoAnswer as error:
                problem = str(error)
        waited = (time.perf_counter() - started) * 1000
        entropies = (1.0 - confidence(half.logits, "entropy")).tolist()
        rows = zip(batch.names, batch.truths, labels, half.stays.tolist(), entropies, strict=True)
        for name, truth, label, stays, entropy in rows:
            share = 0.0 if stays else 1 / len(away)
            yield SplitPrediction(
                name, network.classes[label], truth, DEVICE if stays or problem else SERVER, entropy,
                half.ms + share * waited, share * sent, share * received, "" if stays else problem,
            )  # fmt: skip


def summarise(predictions: Sequence[SplitPrediction], tau: float, skipped: int) -> SplitSummary:
    """Return the summary of at least one prediction."""
    number = len(predictions)
    labelled, accuracy = results.accuracy((p.label, p.truth) for p in predictions)
    on_device = [p for p in predictions if p.answered == DEVICE]
    problems = Counter(p.problem for p in predictions if p.problem)
    return SplitSummary(
        images=number,
        skipped=skipped,
        tau=tau,
        on_device=len(on_device),
        in_place=problems.total(),
        share_on_device=len(on_device) / number,
        mean_ms=sum(p.ms for p in predictions) / number,
        mean_ms_device=_mean([p.ms for p in on_device if not p.problem]),
        mean_ms_server=_mean([p.ms for p in predictions if p.answered == SERVER]),
        mean_sent=sum(p.sent for p in predictions) / number,
        mean_received=sum(p.received for p in predictions) / number,
        labelled=labelled,
        accuracy=accuracy,
        problems=dict(problems),
    )


def show(predictions: Sequence[SplitPrediction], summary: SplitSummary, server: str, kind: str) -> None:
    """Print the table and the closing lines; `kind` is what the samples are, see `Takes.kind`."""
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("label", overflow="fold")
    for name in ("answered by", "entropy", "ms", "bytes up", "bytes down"):
        table.add_column(name, justify="right", no_wrap=True)
    for p in predictions:
        where = f"{p.answered} (no server)" if p.problem else p.answered
        numbers = (f"{p.entropy:.3f}", f"{p.ms:.2f}", f"{p.sent:.0f}", f"{p.received:.0f}")
        table.add_row(Text(p.file), Text(results.answer(p.label, p.truth)), where, *numbers)
    results.show(table, closing_lines(summary, server, kind))


def closing_lines(summary: SplitSummary, server: str, kind: str) -> list[str]:
    """Return the lines below the table of images or texts."""
    asked = summary.images - summary.on_device
    lines = [
        f"{summary.images} {kind}, tau {summary.tau:g}: {summary.on_device} answered on the device "
        f"({100 * summary.share_on_device:.1f} %), {asked} by {server}",
        f"{summary.mean_ms:.2f} ms each on average ({_ms(summary.mean_ms_device)} on the device, "
        f"{_ms(summary.mean_ms_server)} with the server), {summary.mean_sent:.0f} bytes up, "
        f"{summary.mean_received:.0f} down",
    ]
    for problem, number in summary.problems.items():
        lines.append(f"{number} of them answered by the device instead of the server: {problem}")
    if summary.accuracy is not None:
        lines.append(f"accuracy {100 * summary.accuracy:.1f} % of {summary.labelled} labelled {kind}")
    if summary.skipped:
        lines.append(f"{summary.skipped} unreadable files skipped")
    return lines


def _remote(options: argparse.Namespace, network: Runtime) -> Remote:
    """Return the server of the options, without sending anything yet."""
    if not options.server or not options.token_file:
        raise UserError(
            "--mode split needs --server HOST:PORT and --token-file FILE, as `python -m server offload` prints them"
        )
    deadline = 2.0 if options.deadline is None else options.deadline
    if not 0 < deadline < float("inf"):
        raise UserError(f"--deadline {options.deadline}: give seconds above 0")
    limits = Limits(OVERHEAD + options.batch * bytes_per_sample(network.feature_shape))
    certificate = read_certificate(options.certificate) if options.certificate else None
    channel = connect(options.server, read_token(options.token_file), certificate, limits)
    whose = NO_CLIENT if network.client is None else network.client
    origin = Origin(network.run, whose, network.cut, round=0)
    return Remote(channel, origin, len(network.classes), coding=options.coding or "fp32", deadline=deadline)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
