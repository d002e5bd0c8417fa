"""`python -m server teacher` and `students`: train DistrEE's teacher and its students on the server's own data."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import nn

from common import paths
from common.capacity import Capacity, lacking
from common.config import RunConfig
from common.data import TrainTest, client_split, load, normalizer
from common.data.images import Normalizer, SampleSet
from common.devices import keep_memory, pick_device, set_kernels, threads
from common.errors import UserError
from common.exits import anytime_accuracy, collect_logits
from common.networks import NetworkSpec, build, check_outside, without_early_exits
from common.settings import keys, read_section
from common.storage.files import write_text
from common.storage.model_file import FILE, ModelInfo, save_model
from server.commands.check import allow_plugins
from server.commands.overrides import read_overrides, refuse_unread
from strategies.configuration import read_config
from strategies.distree.model.partition import partition
from strategies.distree.model.parts import StudentCosts
from strategies.distree.model.stored import save_students, student_file
from strategies.distree.model.students import build_students, students_spec
from strategies.distree.model.teacher import load_teacher
from strategies.distree.model.widths import describe_matches, match_devices
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.central import Schedule, image_batches
from strategies.distree.training.checkpoint import FILE as CHECKPOINT
from strategies.distree.training.checkpoint import Checkpoint
from strategies.distree.training.finish import check_images, finish_students
from strategies.distree.training.joint import teacher_activations, train_students, train_teacher

BOTH_READ = frozenset({
    "data.name", "data.root", "data.label", "data.image-size", "data.limit", "data.mean", "data.std",
    "network.name", "network.width", "network.lora-rank", "run.fast", "run.seed", "server.device", "server.threads",
})  # fmt: skip
READ = {  # verb -> the keys that it reads
    "teacher": BOTH_READ | {"network.pretrained"},
    "students": BOTH_READ
    | {"network.exits"}
    | keys(DistrEESettings).keys()
    - {"distree.teacher", "distree.without-teacher", "distree.public", "distree.public-samples"},
}
OPTIONS = {  # key of a run -> the option for it here
    "train.epochs": "--epochs", "train.lr": "--lr", "server.autocast": "--autocast", "clients.autocast": "--autocast",
    "run.root": "--out", "run.name": "--out", "clients.device": "-c server.device",
    "clients.threads": "-c server.threads",
}  # fmt: skip
VALIDATION = 0.1  # share of the training images (NoNN, released code), for the partition and the thresholds


@dataclass(frozen=True)
class Samples:
    """A server's own images."""

    train: SampleSet
    validation: SampleSet
    test: SampleSet
    normalize: Normalizer
    spec: NetworkSpec  # of the configured network, for these images


def run_teacher(options: argparse.Namespace) -> int:
    """Train a teacher and write its model; raises `UserError` before anything starts."""
    config, samples, schedule, device = _prepare(options)
    _make_folder(options.out)
    spec = without_early_exits(samples.spec)
    teacher = build(spec, config.run.seed)
    decided = _settings(options, config, schedule, config.run.seed)
    checkpoint = _checkpoint(options, decided, spec.to_json())
    with threads(config.server.threads):
        train_teacher(
            teacher, samples.train, samples.normalize, schedule, config.run.seed, device, _progress, checkpoint
        )
        scores = {name: _accuracy(teacher, getattr(samples, name), samples, device) for name in ("validation", "test")}
    constants = samples.normalize.mean, samples.normalize.std
    info = ModelInfo(spec.to_json(), 1, samples.train.classes, *constants, "", run=options.out.name)
    save_model(options.out / FILE, teacher.state_dict(), info)
    checkpoint.remove()
    _conclude(
        options.out,
        {"exits": scores, **decided},
        f"teacher: {options.out}; next: python -m server students --teacher {options.out}",
    )
    return 0


def run_students(options: argparse.Namespace) -> int:
    """Partition the teacher, and train, calibrate and write students; raises `UserError` before anything starts."""
    config, samples, schedule, device = _prepare(options)
    settings, seed = config.of(DistrEESettings), config.run.seed if options.seed is None else options.seed
    check_images(settings, len(samples.validation))
    taught = load_teacher(options.teacher, samples.train, samples.normalize)
    _make_folder(options.out)
    with threads(config.server.threads):
        matches = match_devices(settings, samples.spec, taught, _lacks_to_serve)
        widths = tuple(match.width for match in matches) or settings.widths
        activations = teacher_activations(taught.network, samples.validation, samples.normalize, device)
        found = partition(activations, settings, widths, config.run.seed)
        for line in (*found.report(), *describe_matches(matches)):
            print(line, flush=True)
        spec = students_spec(
            taught.spec, samples.spec, found.parts, widths, [match.device for match in matches], settings.pooling
        )
        students = build_students(spec, seed)
        decided = _settings(options, config, schedule, seed)
        checkpoint = _checkpoint(options, decided, spec.to_json())
        train_students(
            students, taught.network, samples.train, samples.normalize, settings, schedule, seed, device, _progress,
            checkpoint,
        )  # fmt: skip
        stored, report = finish_students(
            students, samples.validation, samples.normalize, settings, device, options.out.name
        )
        scores = {name: _accuracy(students, getattr(samples, name), samples, device) for name in ("validation", "test")}
    save_students(options.out, stored)
    checkpoint.remove()
    serve = f"python -m client serve-student --model {student_file(options.out, 1)} --address 127.0.0.1:0"
    report = {"exits": scores, "partition": found.parts, **report, **decided}
    _conclude(options.out, report, f"next, on each device: {serve}")
    return 0


def own_split(source: TrainTest, seed: int) -> tuple[SampleSet, SampleSet]:
    """Return training and validation images of a server on its own: the set's, else parts of its training set."""
    if source.validation is not None:
        return source.train, source.validation
    split = client_split(np.arange(len(source.train)), VALIDATION, seed, 0)
    return source.train.subset(split.train), source.train.subset(split.validation)


def _lacks_to_serve(device: Capacity, costs: StudentCosts, number: int) -> str:
    """Return what a device lacks to hold a student and one image's activations, or nothing."""
    return lacking(device, costs.table(number).forward_memory(batch_size=1), macs=0, bits=0)


def _prepare(options: argparse.Namespace) -> tuple[RunConfig, Samples, Schedule, torch.device]:
    config = read_config(read_overrides(options))
    allow_plugins(config)
    refuse_unread(options, READ[options.verb], OPTIONS)
    read = read_section(
        Schedule, epochs=options.epochs, lr=options.lr, augment=not options.no_augmentation, autocast=options.autocast
    )
    if read.problems:
        raise UserError("; ".join(read.problems).replace("schedule.", "--"))
    if config.data.is_text:
        raise UserError(f"data.name {config.data.name!r} holds texts, students need images: choose another data.name")
    set_kernels(fast=config.run.fast)
    keep_memory()
    return config, _samples(config), read.section, pick_device(config.server.device)


def _make_folder(folder: Path) -> None:
    """Make the folder of the results, which may hold the checkpoint of a training that was killed.

    Raises `UserError` if it cannot be made or written, or has other contents.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(CHECKPOINT not in path.name for path in folder.iterdir())
        TemporaryFile(dir=folder).close()  # an existing folder may not be writable
    except OSError as error:
        raise UserError(f"--out {folder} cannot be used as a folder: {error.strerror}; name another") from error
    if used:
        raise UserError(f"--out {folder} is not empty: name a new folder")


def _checkpoint(options: argparse.Namespace, decided: dict[str, Any], network: str) -> Checkpoint:
    """Return the checkpoint of a training of this network."""
    about = {"verb": options.verb, **decided, "network": network}
    return Checkpoint(options.out / CHECKPOINT, json.dumps(about, sort_keys=True))


def _settings(options: argparse.Namespace, config: RunConfig, schedule: Schedule, seed: int) -> dict[str, Any]:
    """Return what decides a training's result beside its images and, of students, their teacher."""
    read = {key: value for key, value in config.flat().items() if key in READ[options.verb]}
    return {"read": read, "schedule": schedule.model_dump(), "seed": seed}


def _samples(config: RunConfig) -> Samples:
    source = load(config.data, paths.cache_root())
    train, validation = own_split(source, config.run.seed)
    if not len(validation):
        problem = (
            f"data.name {config.data.name!r} has {len(source.train)} training images here, too few to hold some out"
        )
        raise UserError(f"{problem} for validation: add images, or raise data.limit")
    section = config.network
    spec = NetworkSpec(
        section.name, len(source.classes), source.input_shape, section.exits, section.tiers, section.width,
        lora_rank=section.lora_rank, pretrained=section.pretrained, norm=section.norm,
    )  # fmt: skip
    check_outside(spec, config.run.seed)
    normalize = normalizer(config.data, source.input_shape[0])
    return Samples(train, validation, source.test, normalize, spec)


def _progress(epoch: int, loss: float, seconds: float) -> None:
    print(f"epoch {epoch}: loss {loss:.4f}, {seconds:.0f} s", flush=True)


def _accuracy(network: nn.Module, images: SampleSet, samples: Samples, device: torch.device) -> list[float]:
    """Return the accuracy of every exit."""
    accuracy: list[float] = anytime_accuracy(
        *collect_logits(network, image_batches(images, samples.normalize, device))
    ).tolist()
    return accuracy


def _conclude(folder: Path, report: dict[str, Any], next_: str) -> None:
    """Write the report beside the models; print the accuracies and the next command."""
    write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    for name, exits in report["exits"].items():
        print(f"{name} accuracy per exit: {', '.join(f'{100 * a:.1f} %' for a in exits)}")
    print(next_)
