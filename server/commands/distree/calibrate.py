"""`python -m server calibrate`: give finished students another operating point, for what is wanted of them today.

Thresholds are fitted to the validation images of the students' training, for an accuracy loss, a share of the MACs, or
a latency, for which every exit is timed on the devices that serve. They are stored under a name beside those there are.
Of a run's students the run's own configuration says which images those are; for others give `data.*` and `run.seed`
as `python -m server students` was given them.
"""

import argparse
import math
import shlex
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common import paths
from common.config import RunConfig
from common.data import DataConfig, load
from common.data.clients import Population
from common.data.images import SampleSet
from common.devices import deterministic, pick_device, threads
from common.errors import UserError
from common.settings import key
from common.storage.client_store import NAME
from server.commands.distree import devices
from server.commands.distree.infer_compare import Row, show
from server.commands.distree.students import own_split
from server.commands.overrides import add_overrides, read_overrides, refuse_unread
from strategies.callbacks.report.records import load_run
from strategies.distree.exits.calibration import Answers, Measure, cheapest, operate, within
from strategies.distree.exits.policies import LastExit, Policies
from strategies.distree.exits.timing import time_exits
from strategies.distree.model.stored import (
    CALIBRATED,
    FILE,
    StoredStudents,
    find_students,
    load_students,
    save_students,
)
from strategies.distree.serving.aggregator import Aggregator
from strategies.distree.training.finish import measure
from strategies.factory import read_config

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

BUILT_IN = frozenset({"entropy", "last", "neighbour", "oracle", "published", "random"})  # what others compare with
READ = frozenset(
    {"clients.count", "run.seed", "server.device", "server.threads", *(key("data", f.name) for f in fields(DataConfig))}
)
OPTIONS = {"distree.max-accuracy-loss": "--accuracy-loss"}  # key of a run -> what says the same here
SAME = 3e-3  # of the mean features' length: rounding on another machine stays below, other images differ by more


@dataclass(frozen=True)
class Target:
    """What is wanted."""

    option: str
    value: float
    """As it was given."""
    name: str
    """Of the policies, unless the user has another."""
    measure: Measure | None = None
    """What must not exceed `value`; None: the accuracy lost."""

    @property
    def timed(self) -> bool:
        """Whether it is a latency, in milliseconds."""
        return self.measure in ("slowest_mean", "slowest_p99")


def add_parser(verbs: "Verbs") -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("calibrate", help="fit finished students' exits to a target", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a finished distree run, or what `students` made")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--accuracy-loss", type=float, metavar="LOSS", help="at most, such as 0.02: two points")
    wanted.add_argument("--macs", type=float, metavar="SHARE", help="of what everybody at the last exit takes")
    wanted.add_argument("--latency-ms", type=float, metavar="MS", help="on average, of the slowest device")
    wanted.add_argument("--p99-ms", type=float, metavar="MS", help="the same, that 99 in 100 images keep")
    parser.add_argument("--name", help="of the policies (default: the target, such as loss-0.02 or p99-8ms)")
    add_overrides(parser)
    devices.add_arguments(parser, required=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Fit, store and show. Raises `UserError`, with nothing changed, when the target cannot be met."""
    target = read_target(options)
    name, stored = _name(options.name or target.name), load_students(options.model)
    file, numbers = find_students(options.model), stored.students.spec.numbers
    if file.name != FILE:
        raise UserError(f"--model {file}: calibrate would write {FILE} beside it: rename the file to that")
    folder = file.parent
    if target.timed and set(devices.numbered(options.student, stored, "--student")) != set(numbers):
        raise UserError(f"{target.option} is measured on the devices: give --student NUMBER=HOST:PORT for each of them")
    config, images = validation_images(folder, read_overrides(options), stored)
    refuse_unread(options, READ, OPTIONS)
    with ExitStack() as stack:
        measured = _measure(config, stored, images, devices.ask(stored, options, stack) if options.student else None)
    policies = fit(target, measured)
    save_students(folder, replace(stored, policies={**stored.policies, name: policies}))
    last: Policies = {k: LastExit(stored.students.num_exits) for k in numbers}
    lines = [f"on {len(images)} validation images"]
    if measured.seconds:
        times = next(iter(measured.seconds.values())).shape[1]
        lines[0] += f"; ms: until the last device's features are here, every exit timed {times} times"
    unasked = "" if name == CALIBRATED else f" and --policy {name}"
    lines.append(f"stored as {name!r} in {folder}; a device uses it unasked when started with its new file{unasked}")
    show(
        [_row("last", last, measured), _row(name, policies, measured)],
        [*lines, f"next: {_next(options, config, stored, name)}"],
    )
    return 0


def read_target(options: argparse.Namespace) -> Target:
    """Return the one target that was given; raises `UserError` when nothing can meet it, whatever the students."""
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
    """Return the configuration and the validation images of the students' training; `overrides` come on top.

    Raises `UserError` when there are none, or the students know no such images or classes.
    """
    run_folder = folder.parent if folder.name == "final" else folder
    federated = (run_folder / "config.toml").is_file()
    config = read_config({**(load_run(run_folder).config if federated else {}), **overrides})
    images, spec = load(config.data, paths.cache_root()).train, stored.students.spec
    if (images.shape, images.classes) != (spec.input_shape, stored.classes):
        raise UserError(
            f"the students take images {spec.input_shape} of {len(stored.classes)} classes, here are {images.shape} of "
            f"{len(images.classes)} classes: give the data.* of their training"
        )
    if federated:
        chosen = Population(config.data, config.clients.count, config.run.seed).validation()
    else:
        chosen = own_split(len(images), config.run.seed).validation
    if not len(chosen):
        raise UserError("there are no validation images to calibrate on: give the data.* of the students' training")
    return config, images.subset(chosen)


def fit(target: Target, answers: Answers) -> Policies:
    """Return policies that meet a target on validation images; raises `UserError`, with the closest, if none do."""
    if target.measure is None:
        return cheapest(answers, target.value)
    unit = 1e-3 if target.timed else _full(answers)
    policies = within(answers, target.value * unit, target.measure)
    point = operate(policies, answers)
    least = getattr(point, target.measure) / unit
    if least > target.value * (1 + 1e-9):
        raise UserError(
            f"{target.option} {target.value:g} cannot be met, so nothing is stored: the closest is {_up(least)}, with "
            f"{100 * point.accuracy:.1f} % of the validation images right"
        )
    return policies


def _checked(target: Target, fine: bool, wanted: str) -> Target:
    if not fine:
        raise UserError(f"{target.option} {target.value:g}: give {wanted}")
    return target


def _name(name: str) -> str:
    if name in BUILT_IN:
        raise UserError(f"--name {name}: this one is there to compare with; choose another, or {CALIBRATED!r}")
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: use letters, digits, '.', '_' and '-' only")
    return name


def _full(answers: Answers) -> float:
    """Return the MACs of an image that goes to the last exit of all students."""
    return sum(costs[-1] for costs in answers.costs.values())


def _measure(config: RunConfig, stored: StoredStudents, images: SampleSet, aggregator: Aggregator | None) -> Answers:
    """Return what the students answer to the images here, and the seconds of the devices if they are asked.

    Raises `UserError` when the students were not calibrated on these images before: they may have trained on them.
    """
    deterministic()
    with threads(config.server.threads):
        answers = measure(stored.students, images, stored.normalizer, pick_device(config.server.device))
    for k, features in answers.features.items():
        mean = features[-1].mean(0)
        if not (mean - stored.means[k]).norm() <= SAME * stored.means[k].norm():
            raise UserError(
                "these are not the validation images of the students' training: give its data.* and its run.seed"
            )
    if aggregator is None:
        return answers
    seconds = time_exits(aggregator, stored.students.spec.numbers, stored.students.num_exits, images.inputs)
    return replace(answers, seconds=seconds)


def _row(name: str, policies: Policies, answers: Answers) -> Row:
    point = operate(policies, answers)
    counts = {k: {e: n for e, n in enumerate(exits, start=1) if n} for k, exits in point.histogram.items()}
    mean, p99 = (1000 * point.slowest_mean, 1000 * point.slowest_p99) if answers.seconds else (None, None)
    return Row(name, point.accuracy, point.cost, point.cost / _full(answers), mean, p99, counts)


def _up(value: float) -> str:
    """Return a number of four digits that is not below the value: a target that can be given."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / step - 1e-9) * step:.4g}"


def _next(options: argparse.Namespace, config: RunConfig, stored: StoredStudents, name: str) -> str:
    """Return what to type to use the policies."""
    images = f"{config.data.name}:{config.data.root}" if config.data.root else config.data.name
    command = ["python", "-m", "server", "infer", "--model", str(options.model), *devices.words(options, stored)]
    return shlex.join([*command, "--dataset", images, "--limit", "20", "--policy", name])
