"""The last step before students serve: calibrated exits, policies to compare with, and mean features."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from common.data.images import Normalizer, SampleSet
from common.errors import UserError
from common.weights.flat import FlatState
from strategies.distree.exits.calibration import Answers, cheapest, ladder, operate, with_gates, within
from strategies.distree.exits.gate_fit import LEAST, check_samples
from strategies.distree.exits.policies import (
    CALIBRATED,
    PUBLISHED,
    RULES,
    FeatureDifference,
    Gate,
    LastExit,
    Policies,
    Random,
)
from strategies.distree.model.stored import StoredStudents, exit_macs
from strategies.distree.model.students import Students
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.joint import collect_features


def finish_students(
    students: Students,
    validation: SampleSet,
    normalize: Normalizer,
    settings: DistrEESettings,
    device: torch.device,
    run: str,
) -> tuple[StoredStudents, dict[str, Any]]:
    """Return the students with all their policies, and the policies' operating points on validation images, by name.

    `run` is the training's name, part of its `training_id`. Raises `UserError` when there are too few validation
    images. Without `gate` as the rule, too few for a gate mean only that there is none to compare with.
    """
    check_images(settings, len(validation))
    answers = measure(students, validation, normalize, device)
    if len(validation) >= LEAST:
        answers = with_gates(answers)
    policies = comparable_policies(answers, settings.max_accuracy_loss, settings.exit_rule)
    rungs, means = ladder(answers, RULES[settings.exit_rule]), {k: f[-1].mean(0) for k, f in answers.features.items()}
    costs = [operate(rung, answers).costs for rung in rungs]
    stored = StoredStudents(
        students, validation.classes, normalize.to("cpu"), means, policies, rungs,
        {k: [rung[k] for rung in costs] for k in means}, training_id(run, students),
    )  # fmt: skip
    return stored, {name: asdict(operate(chosen, answers)) for name, chosen in policies.items()}


def check_images(settings: DistrEESettings, count: int) -> None:
    """Raise `UserError` if there are too few validation images to fit the exit rule."""
    if not count:
        raise UserError("there are no validation images to calibrate the exits on: set data.validation above 0")
    if settings.exit_rule == Gate.name:
        check_samples(count)


def training_id(run: str, students: Students) -> str:
    """Return a training's name with a digest of all weights: students of two trainings must not answer together."""
    weights = FlatState.of(students.state_dict()).floats.numpy().tobytes()
    return f"{run}-{hashlib.sha256(weights).hexdigest()[:12]}"


def measure(
    students: Students,
    images: SampleSet,
    normalize: Normalizer,
    device: torch.device,
    costs: Callable[[Any], Sequence[float]] = exit_macs,
) -> Answers:
    """Return the students' answers to images at every exit; `costs`: student -> cost of each exit, by default MACs."""
    features = collect_features(students, images, normalize.to(device), device)
    students.cpu()
    macs = {k: costs(student) for k, student in students.numbered()}
    return Answers(features, images.labels, students.classifier, students.own, macs)


def comparable_policies(answers: Answers, max_accuracy_loss: float, rule: str) -> Mapping[str, Policies]:
    """Return the policies by name.

    "calibrated": the cheapest by `rule` (a name in `RULES`) that lose at most `max_accuracy_loss`; each rule's name:
    the most accurate by that rule with the same mean MACs ("gate" if gates are fitted); "random": uniform from the
    second exit on; "last"; with 7 exits "published": the paper's thresholds.
    """
    exits: dict[int, int] = {k: len(features) for k, features in answers.features.items()}
    calibrated = cheapest(answers, max_accuracy_loss, RULES[rule])
    budget = operate(calibrated, answers).cost
    found: dict[str, Policies] = {
        CALIBRATED: calibrated,
        **{
            name: calibrated if name == rule else within(answers, budget, kind)
            for name, kind in RULES.items()
            if kind is not Gate or answers.gates
        },
        "random": {k: Random((0.0, *[1.0] * (n - 1)) if n > 1 else (1.0,), seed=k) for k, n in exits.items()},
        "last": {k: LastExit(n) for k, n in exits.items()},
    }
    if set(exits.values()) == {len(PUBLISHED) + 1}:
        found["published"] = {k: FeatureDifference(PUBLISHED) for k in exits}
    return found
