"""What trained students get before they serve: calibrated exits, policies to compare with, and mean features."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from common.data.images import Normalizer, SampleSet
from common.errors import UserError
from common.weights.flat import FlatState
from strategies.distree.exits.calibration import Answers, cheapest, ladder, operate, within
from strategies.distree.exits.policies import (
    PUBLISHED,
    Entropy,
    FeatureDifference,
    LastExit,
    NeighbourSimilarity,
    Policies,
    Random,
)
from strategies.distree.model.stored import CALIBRATED, StoredStudents, exit_macs
from strategies.distree.model.students import Students
from strategies.distree.training.joint import collect_features


def finish_students(
    students: Students,
    validation: SampleSet,
    normalize: Normalizer,
    max_accuracy_loss: float,
    device: torch.device,
    run: str,
) -> tuple[StoredStudents, dict[str, Any]]:
    """Return the students with all their policies, and how these do on the validation images, by name.

    `run` is the training's name, which `told_apart` completes. Raises `UserError` when there are no validation images.
    """
    if not len(validation):
        raise UserError("there are no validation images to calibrate the exits on: set data.validation above 0")
    answers = measure(students, validation, normalize, device)
    policies = comparable_policies(answers, max_accuracy_loss)
    rungs, means = ladder(answers), {k: f[-1].mean(0) for k, f in answers.features.items()}
    costs = [operate(rung, answers).costs for rung in rungs]
    stored = StoredStudents(
        students, validation.classes, normalize.to("cpu"), means, policies, rungs,
        {k: [rung[k] for rung in costs] for k in means}, told_apart(run, students),
    )  # fmt: skip
    return stored, {name: asdict(operate(chosen, answers)) for name, chosen in policies.items()}


def told_apart(run: str, students: Students) -> str:
    """Return a training's name with a digest of all weights: two trainings of one name must not answer together."""
    weights = FlatState.of(students.state_dict()).floats.numpy().tobytes()
    return f"{run}-{hashlib.sha256(weights).hexdigest()[:12]}"


def measure(
    students: Students,
    images: SampleSet,
    normalize: Normalizer,
    device: torch.device,
    costs: Callable[[Any], Sequence[float]] = exit_macs,
) -> Answers:
    """Return what the students answer to images at every exit; `costs` of a student: MACs unless told otherwise."""
    features = collect_features(students, images, normalize.to(device), device)
    students.cpu()
    return Answers(features, images.labels, students.classifier, {k: costs(s) for k, s in students.numbered()})


def comparable_policies(answers: Answers, max_accuracy_loss: float) -> Mapping[str, Policies]:
    """Return the policies by name.

    "calibrated": feature difference, the cheapest that loses at most `max_accuracy_loss`; "neighbour" and, where one
    device sees all logits, "entropy": as accurate as they get with the same mean MACs; "random": uniform from the
    second exit on; "last"; with 7 exits "published", the paper's thresholds.
    """
    exits: dict[int, int] = {k: len(features) for k, features in answers.features.items()}
    calibrated: dict[str, Policies] = {CALIBRATED: cheapest(answers, max_accuracy_loss)}
    budget = operate(calibrated[CALIBRATED], answers).cost
    calibrated["neighbour"] = within(answers, budget, kind=NeighbourSimilarity)
    if len(exits) == 1:
        calibrated["entropy"] = within(answers, budget, kind=Entropy)
    fixed: dict[str, Policies] = {
        "random": {k: Random((0.0, *[1.0] * (n - 1)) if n > 1 else (1.0,), seed=k) for k, n in exits.items()},
        "last": {k: LastExit(n) for k, n in exits.items()},
    }
    if set(exits.values()) == {len(PUBLISHED) + 1}:
        fixed["published"] = {k: FeatureDifference(PUBLISHED) for k in exits}
    return calibrated | fixed
