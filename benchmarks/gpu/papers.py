"""The papers' sizes: what a round or an epoch takes, and from that the whole training."""

import os
from typing import Any

import numpy as np
import torch

from benchmarks.distillation import SIZES
from benchmarks.distillation import measure as measure_transfer
from benchmarks.gpu.host import Host, Ran, run
from common import plugins
from common.data.images import Normalizer, SampleSet
from common.data.raw import RawSet, RawSplit
from common.networks import NetworkSpec, build
from common.sections.data import DataConfig
from strategies.distree.model.students import build_students, students_spec
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.central import Schedule
from strategies.distree.training.joint import train_students

IMAGES = "benchmarks.gpu.papers:like_cifar"
TARGET = 20 * 60.0  # seconds for DarkDistill's 500 rounds


def like_cifar(config: DataConfig) -> RawSet:
    """Return random images of the size and number of CIFAR-100's training set: for speed, not for accuracy."""
    rng = np.random.default_rng(1)
    number = config.limit or 50_000

    def split(count: int) -> RawSplit:
        return RawSplit(rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 100)

    return RawSet(split(number), split(1000), tuple(f"class {label}" for label in range(100)))


def darkdistill(host: Host) -> dict[str, Any]:
    """A round at the paper's size (KDD 2025): DeiT-tiny, 100 classes, 10 clients of 400 images at 224 each."""
    return {precision: _darkdistill(host, bf16) for precision, bf16 in (("float32", False), ("bf16", True))}


def _darkdistill(host: Host, bf16: bool) -> dict[str, Any]:
    transfer = measure_transfer(SIZES["demo" if host.small else "paper"], host.device, bf16, 1 if host.small else 2, 5)
    small = {"data.limit": 400, "data.image-size": 32, "network.name": "vit_small32", "network.width": 16}
    done = _with_images(host, f"darkdistill-{bf16}", {
        "run.strategy": "darkdistill", "run.rounds": 3, "clients.count": 10, "clients.per-round": 10,
        "clients.mix": "equal", "data.limit": 4000, "data.image-size": 224, "data.validation": 0.0,
        "network.name": "deit_tiny", "server.evaluate-every": 0, "clients.autocast": bf16, "server.autocast": bf16,
        **(small if host.small else {}),
    })  # fmt: skip
    return {
        "transfer": transfer,
        "round_seconds": done.round_seconds,
        "phases": dict(done.records[-1].seconds),
        "seconds_of_500_rounds": 500 * done.round_seconds,
        "goal": TARGET,
    }


def cafedistill(host: Host) -> dict[str, Any]:
    """A round of CAFEDistill at 100 clients, 20 a round, five local epochs (arXiv 2601.10015)."""
    done = _with_images(host, "cafedistill", {
        "run.strategy": "cafedistill", "run.rounds": 2, "clients.count": 100, "clients.per-round": 20,
        "clients.mix": "0,0,1", "network.name": "convnet", "train.epochs": 5, "train.batch-size": 64,
        "data.client-test": 0.25, "server.evaluate-every": 0, "data.limit": 1000 if host.small else 50_000,
        **({"network.width": 8} if host.small else {}),
    })  # fmt: skip
    return {"round_seconds": done.round_seconds, "seconds_of_300_rounds": 300 * done.round_seconds}


def distree(host: Host) -> dict[str, Any]:
    """An epoch of DistrEE's joint training of two students from a WRN-16-4 on 50,000 images (arXiv 2502.15735)."""
    number = 256 if host.small else 50_000
    raw = like_cifar(DataConfig(limit=number)).train
    images = SampleSet(
        torch.from_numpy(np.stack(raw.samples)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(raw.labels) % 10,
        tuple(map(str, range(10))),
    )  # fmt: skip
    width = 1 if host.small else 4
    taught = NetworkSpec("wrn16", 10, (3, 32, 32), width=width, exits=(7,))
    filters = 64 * width
    parts = [tuple(range(filters // 2)), tuple(range(filters // 2, filters))]
    settings = DistrEESettings()
    spec = students_spec(taught, NetworkSpec("wrn16", 10, (3, 32, 32), width=1), parts, pooling=settings.pooling)
    seconds: list[float] = []
    train_students(
        build_students(spec, 1), build(taught, 1), images, Normalizer((0.5,), (0.5,)), settings,
        Schedule(epochs=2, autocast=True), 1, host.device, lambda epoch, loss, spent: seconds.append(spent),
    )  # fmt: skip
    return {"epoch_seconds": seconds[-1], "seconds_of_200_epochs": 200 * seconds[-1]}


def _with_images(host: Host, name: str, settings: dict[str, Any]) -> Ran:
    os.environ[plugins.VARIABLE] = "benchmarks"
    return run(host, name, {"data.name": IMAGES, **settings})
