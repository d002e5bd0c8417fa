"""`python -m server calibrate`: give trained students another operating point."""

import argparse
import math
import shlex
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from common import paths
from common.config import RunConfig
from common.data import DataConfig, load
from common.data.clients import Population
from common.data.images import SampleSet
from common.devices import pick_device, set_kernels, threads
from common.errors import UserError
from common.settings import keys
from common.storage.client_store import NAME
from server.commands.distree import devices
from server.commands.distree.infer_compare import Row, show
from server.commands.distree.students import own_split
from server.commands.overrides import read_overrides, refuse_unread
from strategies.callbacks.report.records import load_run
from strategies.configuration import read_config
from strategies.distree.exits.calibration import Answers, Measure, cheapest, operate, with_gates, within
from strategies.distree.exits.policies import CALIBRATED, RULES, Gate, LastExit, Policies, ScorePolicy
from strategies.distree.model.stored import (
    FILE,
    StoredStudents,
    find_students,
    load_students,
    save_students,
)
from strategies.distree.serving.aggregator import Aggregator
from strategies.distree.serving.timing import time_exits
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.finish import measure

# names of the policies that others are compared with
BUILT_IN = frozenset({"last", "oracle", "published", "random", *RULES})
READ = frozenset({
    "clients.count", "distree.exit-rule", "run.fast", "run.seed", "server.device", "server.threads", *keys(DataConfig)
})  # fmt: skip
OPTIONS = {"distree.max-accuracy-loss": "--accuracy-loss"}  # key of a run -> the option for it here
SAME = 3e-3  # of the mean features' norm: rounding on another machine stays below, other images differ by more


@dataclass(frozen=True)
class Target:
    """What the policies must achieve on the validation images."""

    option: str
    value: float  # as typed
    name: str  # default name of the policies
    measure: Measure | None = None  # must not exceed `value`; None: the accuracy loss must not

    @property
    def timed(self) -> bool:
        """Whether the value is a latency, in milliseconds."""
        return self.measure in ("slowest_mean", "slowest_p99")


def run(options: argparse.Namespace) -> int:
    """Fit the policies, store them and show them. Raises `UserError`, with nothing changed, if none meet the target."""
    target = read_target(options)
    name, stored = _name(options.name or target.name), load_students(options.model)
    file, numbers = find_students(options.model), stored.students.spec.numbers
    if file.name != FILE:
        raise UserError(f"--model {file}: calibrate would write another {FILE} beside it: rename this file to {FILE}")
    folder = file.parent
    if target.timed and set(devices.numbered(options.student, stored, "--student")) != set(numbers):
        raise UserError(f"{target.option} is measured on the devices: give --student NUMBER=HOST:PORT for each student")
    config, images = validation_images(folder, read_overrides(options), stored)
    refuse_unread(options, READ, OPTIONS)
    with ExitStack() as stack:
        measured = _measure(config, stored, images, devices.ask(stored, options, stack) if options.student else None)
    policies = fit(target, measured, RULES[config.of(DistrEESettings).exit_rule])
    save_students(folder, replace(stored, policies={**stored.policies, name: policies}))
    last: Policies = {k: LastExit(stored.students.num_exits) for k in numbers}
    lines = [f"on {len(images)} validation images"]
    if measured.seconds:
        times = next(iter(measured.seconds.values())).shape[1]
        lines[0] += f"; ms: until the last device's features arrive, every exit timed {times} times"
    start = "its new file" if name == CALIBRATED else f"its new file and --policy {name}"
    lines.append(f"stored as {name!r} in {folder}; a device uses it by default when it is started with {start}")
    show(
        [_row("last", last, measured), _row(name, policies, measured)],
        [*lines, f"next: {_next(options, config, stored, name)}"],
    )
    return 0


def read_target(options: argparse.Namespace) -> Target:
    """Return the target that the options give; raises `UserError` for one that no students could meet."""
    if options.accuracy_loss is not None:
        loss = Target("--accuracy-loss", options.accuracy_loss, f"loss-{options.accuracy_loss:g}")
        return _checked(loss, 0 <= loss.value < 1, "0 or more, below 1: 0.02 is two points")
    if options.macs is not None:
        macs = Target("--macs", options.macs, f"macs-{options.macs:g}", "cost")
        return _checked(macs, 0 < macs.value <= 1, "a share above 0, at most 1")
    if options.latency_ms is not None:
        mean = Target("--latency-ms", options.latency_ms, f"latency-{options.latency_ms:g}ms", "slowest_mean")
        return _checked(mean, 0 < mean.value < math.inf, "milliseconds above 0")
    p99 = Target("--p99-ms", options.p99_ms, f"p99-{options.p99_ms:g}ms", "slowest_p99")
    return _checked(p99, 0 < p99.value < math.inf, "milliseconds above 0")


def validation_images(
    folder: Path, overrides: dict[str, str | int | float | bool], stored: StoredStudents
) -> tuple[RunConfig, SampleSet]:
    """Return the configuration, replaced by `overrides`, and the validation images of the students' training.

    Raises `UserError` if there are no such images, or if the students take other images or classes.
    """
    run_folder = folder.parent if folder.name == "final" else folder
    federated = (run_folder / "config.toml").is_file()
    config = read_config({**(load_run(run_folder).config if federated else {}), **overrides})
    source, spec = load(config.data, paths.cache_root()), stored.students.spec
    images = source.train
    if (images.shape, images.classes) != (spec.input_shape, stored.classes):
        raise UserError(
            f"the students take images {spec.input_shape} of {len(stored.classes)} classes, but data.name "
            f"{config.data.name!r} has {images.shape} of {len(images.classes)}: give the data.* of their training"
        )
    if federated:
        validation = Population(config.data, config.clients.count, config.run.seed).server_validation()
    else:
        _, validation = own_split(source, config.run.seed)
    if not len(validation):
        raise UserError("no validation images to calibrate on: give the data.* of the students' training")
    return config, validation


def fit(target: Target, answers: Answers, kind: type[ScorePolicy]) -> Policies:
    """Return policies that meet a target on validation images; raises `UserError` with the closest value if none do."""
    if target.measure is None:
        return cheapest(answers, target.value, kind)
    unit = 1e-3 if target.timed else _full(answers)
    policies = within(answers, target.value * unit, kind, target.measure)
    point = operate(policies, answers)
    least = getattr(point, target.measure) / unit
    if least > target.value * (1 + 1e-9):
        raise UserError(
            f"{target.option} {target.value:g} cannot be met, so nothing is stored: the closest is {_up(least)}, with "
            f"an accuracy of {100 * point.accuracy:.1f} % on the validation images"
        )
    return policies


def _checked(target: Target, fine: bool, wanted: str) -> Target:
    if not fine:
        raise UserError(f"{target.option} {target.value:g}: give {wanted}")
    return target


def _name(name: str) -> str:
    if name in BUILT_IN:
        raise UserError(f"--name {name} is reserved for comparisons: choose another name, or {CALIBRATED!r}")
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: use letters, digits, '.', '_' and '-' only")
    return name


def _full(answers: Answers) -> float:
    """Return the MACs of an image up to the last exit of all students."""
    return sum(costs[-1] for costs in answers.costs.values())


def _measure(config: RunConfig, stored: StoredStudents, images: SampleSet, aggregator: Aggregator | None) -> Answers:
    """Return the students' answers to the images, computed here, and with an aggregator the devices' seconds.

    A gate is fitted on the images anew, so students that were stored without one get it.
    Raises `UserError` for images on which the students were not calibrated before: they may have trained on them.
    """
    set_kernels(fast=config.run.fast)
    with threads(config.server.threads):
        answers = measure(stored.students, images, stored.normalizer, pick_device(config.server.device))
    for k, features in answers.features.items():
        mean = features[-1].mean(0)
        if not (mean - stored.means[k]).norm() <= SAME * stored.means[k].norm():
            raise UserError(
                "these are not the validation images of the students' training: give the data.* and run.seed of it"
            )
    kind = RULES[config.of(DistrEESettings).exit_rule]
    if kind is Gate:
        answers = with_gates(answers)
    if aggregator is None:
        return answers
    rules = {k: answers.rule(kind, k) for k in stored.students.spec.numbers}
    return replace(answers, seconds=time_exits(aggregator, rules, images.inputs))


def _row(name: str, policies: Policies, answers: Answers) -> Row:
    point = operate(policies, answers)
    counts = {k: {e: n for e, n in enumerate(exits, start=1) if n} for k, exits in point.histogram.items()}
    mean, p99 = (1000 * point.slowest_mean, 1000 * point.slowest_p99) if answers.seconds else (None, None)
    return Row(name, point.accuracy, point.cost, point.cost / _full(answers), mean, p99, counts)


def _up(value: float) -> str:
    """Return the value rounded up to four digits, so that it can be given as a target."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / step - 1e-9) * step:.4g}"


def _next(options: argparse.Namespace, config: RunConfig, stored: StoredStudents, name: str) -> str:
    """Return the command that uses the policies."""
    images = f"{config.data.name}:{config.data.root}" if config.data.root else config.data.name
    command = ["python", "-m", "server", "infer", "--model", str(options.model), *devices.words(options, stored)]
    return shlex.join([*command, "--dataset", images, "--limit", "20", "--policy", name])
