"""A round's transfer as values for the log: loss terms, matching weights, requested against measured difficulty."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from strategies.darkdistill.parallel import ParallelReport
from strategies.darkdistill.server_step import TransferReport


def summarise(report: TransferReport) -> dict[str, Any]:
    """Return plain values: per tier the generator's terms, per (teacher, student) the distillation's, each a mean."""
    terms: dict[str, Any] = {}
    for depth in report.generators[-1] if report.generators else ():
        steps = [step[depth] for step in report.generators]
        for name in ("label", "difficulty", "diversity", "spearman"):
            terms[f"generator-{depth}-{name}"] = fmean(getattr(step, name) for step in steps)
    if not report.distillation:
        return terms
    terms["distillation"] = fmean(step.loss for step in report.distillation)
    for teacher, student in report.distillation[-1].pairs:
        pairs = [step.pairs[teacher, student] for step in report.distillation]
        name = f"distill-{teacher}-{student}"
        terms[f"{name}-loss"] = fmean(pair.loss for pair in pairs)
        terms[f"{name}-spearman"] = fmean(pair.spearman for pair in pairs)
        terms[f"{name}-variety"] = fmean(pair.variety for pair in pairs)
        for part in ("distance", "angle", "weights"):
            terms[f"{name}-{part}"] = _columns(getattr(pair, part) for pair in pairs)
    return terms


def summarise_parallel(report: ParallelReport) -> dict[str, Any]:
    """Return plain values: per exit the generators' terms, per (teacher, student) exit the relational loss."""
    terms: dict[str, Any] = {}
    for name in ("label", "diversity", "difficulty") if report.generators else ():
        terms[f"generators-{name}"] = _columns(getattr(step, name) for step in report.generators)
    if report.distillation:
        terms["distillation"] = fmean(step.total for step in report.distillation)
        terms["distill-gap"] = fmean(step.gap for step in report.distillation)
        terms["distill-gradient"] = max(step.gradient for step in report.distillation)
        for teacher, student in report.distillation[-1].pairs:
            losses = [step.pairs[teacher, student] for step in report.distillation]
            terms[f"distill-exit-{teacher + 1}-{student + 1}"] = fmean(losses)
    return terms


def _columns(rows: Iterable[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*rows, strict=True)]
