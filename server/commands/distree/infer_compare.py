"""`python -m server infer --compare`: all exit policies of the same students side by side, on their devices."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.table import Table

from common.console import results
from common.console.samples import Samples
from common.errors import UserError
from server.commands.distree import devices
from strategies.distree.exits.policies import Policies, oracle_exits
from strategies.distree.model.stored import StoredStudents, exit_macs
from strategies.distree.serving.aggregator import Aggregator


@dataclass(frozen=True)
class Row:
    """The results of one policy."""

    policy: str
    accuracy: float  # in [0, 1]; an image that no device answered counts as wrong
    mean_macs: float  # per image, summed over the devices that answered
    share_of_full_macs: float | None  # of the same answers' MACs at the last exit; None: no device answered
    mean_ms: float | None  # from sending a batch to the answer; None: no device was asked
    p99_ms: float | None
    histogram: dict[int, dict[int, int]]  # student -> exit, counted from 1 -> images; exit 0: its answer was missing
    missing: dict[int, str] = field(default_factory=dict)  # student -> why its answer was missing, the last time


def compare(stored: StoredStudents, aggregator: Aggregator, batches: Sequence[Samples]) -> list[Row]:
    """Ask the devices once per policy, print the table and return its rows.

    The oracle, which leaves at the first correct exit, is computed here: it needs the labels and all exits.
    Raises `UserError` if an image's class is unknown, or if no device answered any image.

    Args:
        stored: the students.
        aggregator: from `devices.ask`.
        batches: one or more.
    """
    if any(truth is None for batch in batches for truth in batch.truths):
        raise UserError("--compare needs the class of every image: give --dataset, or folders named after the classes")
    macs = {k: exit_macs(student) for k, student in stored.students.numbered()}
    warm_up = torch.from_numpy(batches[0].inputs)
    aggregator.infer(warm_up, stored.policies["last"], range(len(warm_up)))
    rows = [_ask(name, chosen, stored, aggregator, batches, macs) for name, chosen in stored.policies.items()]
    missing = {k: reason for row in rows for k, reason in row.missing.items()}
    if not any(exit_ for row in rows for counts in row.histogram.values() for exit_ in counts):
        raise devices.none_answered(missing)
    rows.append(_oracle(stored, batches, macs))
    lines = ["ms: of a batch, from sending it to the answer; oracle: the first correct exit, an upper bound"]
    lines += [
        f"student {k} is missing in some answers, its mean feature stands in: {missing[k]}" for k in sorted(missing)
    ]
    show(rows, lines)
    return rows


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]


def _ask(
    name: str,
    policies: Policies,
    stored: StoredStudents,
    aggregator: Aggregator,
    batches: Sequence[Samples],
    macs: Mapping[int, Sequence[float]],
) -> Row:
    right, first, times, spent, full = 0, 0, list[float](), 0.0, 0.0
    histogram: dict[int, Counter[int]] = {k: Counter() for k in macs}
    missing = dict[int, str]()
    for batch in batches:
        answer = aggregator.infer(torch.from_numpy(batch.inputs), policies, range(first, first + len(batch)))
        for label, truth in zip(answer.labels(), batch.truths, strict=True):
            right += label is not None and stored.classes[label] == truth
        missing |= answer.missing
        times.append(1000 * answer.seconds)
        for k, exits in answer.exits.items():
            histogram[k].update((exits + 1).tolist())
            answered = [exit_ for exit_ in exits.tolist() if exit_ >= 0]
            spent += sum(macs[k][exit_] for exit_ in answered)
            full += len(answered) * macs[k][-1]
        first += len(batch)
    counts = {k: dict(sorted(counter.items())) for k, counter in histogram.items()}
    share = spent / full if full else None
    return Row(
        name, right / first, spent / first, share, sum(times) / len(times), percentile(times, 0.99), counts, missing
    )


@torch.no_grad()
def _oracle(stored: StoredStudents, batches: Sequence[Samples], macs: Mapping[int, Sequence[float]]) -> Row:
    exits = []
    right = number = 0
    for batch in batches:
        labels = torch.tensor([stored.classes.index(str(truth)) for truth in batch.truths])
        logits = torch.stack(stored.students(stored.normalizer(torch.from_numpy(batch.inputs))))
        chosen = oracle_exits(logits, labels)
        right += int((logits[chosen, torch.arange(len(labels))].argmax(1) == labels).sum())
        number += len(labels)
        exits.append(chosen)
    counted = torch.cat(exits).bincount(minlength=stored.students.num_exits).tolist()
    mean = sum(count * own[e] for own in macs.values() for e, count in enumerate(counted)) / number
    histogram = {e + 1: count for e, count in enumerate(counted) if count}
    share = mean / sum(own[-1] for own in macs.values())
    return Row("oracle", right / number, mean, share, None, None, dict.fromkeys(macs, histogram))


def show(rows: Sequence[Row], lines: Sequence[str]) -> None:
    """Print the rows as a table, with columns for times if any row has them, and the closing lines."""
    timed = any(row.mean_ms is not None for row in rows)
    table = Table()
    table.add_column("policy")
    for name in ("accuracy", "MMACs", "of full", *(("ms", "p99 ms") if timed else ())):
        table.add_column(name, justify="right")
    table.add_column("images per exit")
    for row in rows:
        times = ["" if ms is None else f"{ms:.2f}" for ms in (row.mean_ms, row.p99_ms)] if timed else []
        exits = "\n".join(
            f"{k}: " + " ".join(f"{'missing' if e == 0 else e}:{count}" for e, count in counts.items())
            for k, counts in row.histogram.items()
        )
        share = "-" if row.share_of_full_macs is None else f"{100 * row.share_of_full_macs:.1f} %"
        macs = f"{row.mean_macs / 1e6:.2f}"
        table.add_row(row.policy, f"{100 * row.accuracy:.1f} %", macs, share, *times, exits)
    results.show(table, lines)
