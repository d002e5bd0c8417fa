"""Local epochs leave the device alone: a GPU that is read, or that waits for a copy, in every step stands idle.

The tests compute on torch's device "meta", whose tensors have shapes but no numbers, so that every read raises.
"""

import math
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.config import load_config
from common.data.clients import ClientData
from common.networks import NetworkSpec, build
from common.weights import flat
from common.weights.flat import FlatModel
from strategies.cafedistill.client import STUDENTS
from strategies.method import Job
from strategies.node import local_training
from strategies.registry import find_method

META = torch.device("meta")
SAMPLES, BATCH, EPOCHS = 20, 8, 2
STEPS = EPOCHS * math.ceil(SAMPLES / BATCH)
WEIGHTS = {"objective.exit-weights": "0.2,0.3,0.5"}


class Copies(TorchDispatchMode):
    """Counts the operations that take tensors or numbers from the CPU to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {leaf.device.type for leaf in tree_leaves([args, kwargs]) if torch.is_tensor(leaf) and leaf.dim()}
        made = {leaf.device.type for leaf in tree_leaves(result) if torch.is_tensor(leaf) and leaf.dim()}
        constant = function is torch.ops.aten.lift_fresh.default  # what torch.tensor and new_tensor make of numbers
        self.count += "meta" in given | made and ("cpu" in given or constant)
        return result


@pytest.fixture
def steps(monkeypatch):
    """Let networks lie on the device "meta"; returns a list that grows with every step."""
    taken: list[int] = []
    step = local_training.sgd
    monkeypatch.setattr(local_training, "sgd", lambda *args, **kwargs: (step(*args, **kwargs), taken.append(1)))
    monkeypatch.setattr(local_training, "autocast", lambda device, enabled: nullcontext())
    monkeypatch.setattr(
        flat, "_concatenate", lambda parts, kind: torch.zeros(sum(t.numel() for t in parts.values()), dtype=kind)
    )
    return taken


def make_job(strategy: str, settings: dict[str, object]) -> Job:
    method = find_method(strategy)
    config = load_config(
        {"run.strategy": strategy, "train.batch-size": BATCH, "train.epochs": EPOCHS, **settings}, method.settings
    )
    spec = NetworkSpec(
        "resnet_slim", 10, (1, 8, 8), width=4, exits=(2, 3, 5), ensemble=method.ensemble(config),
        recurrent=method.recurrent(config),
    )  # fmt: skip
    x, y = torch.zeros(SAMPLES, 1, 8, 8, device=META), torch.zeros(SAMPLES, dtype=torch.int64, device=META)
    none = x[:0], y[:0]
    return Job(
        0, 3, 1, config, FlatModel(build(spec, 1).to(META)), META, lambda: ClientData(x, y, *none, *none),
        {"lr": 0.1}, {STUDENTS: 1},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("eefl", {}),
        ("eefl", WEIGHTS),
        ("eefl", {"objective.name": "boosted"}),
        ("depthfl", {}),
        ("reefl", {}),
        ("darkdistill", {}),
        ("cafedistill", {}),
        ("fedper", {}),
    ],
)
def test_nothing_is_read_before_the_last_step(steps, strategy, settings):
    job = make_job(strategy, settings)
    local = find_method(strategy).local()
    objective = local.objective(job, 3)
    copies = Copies()
    with copies, pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        local.fit(job, objective, job.model.trained, EPOCHS)  # which ends with the mean loss
    assert len(steps) == STEPS
    # the order of an epoch's batches, and once the exits' weights
    assert copies.count == EPOCHS + len(settings.keys() & WEIGHTS.keys())
