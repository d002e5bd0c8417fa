"""Data sets from outside this app: a function that `data.name` names returns the images (README of this folder)."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np

from common import plugins
from common.data.raw import RawSet, RawSplit
from common.errors import UserError
from common.sections.data import DataConfig

KEY = "data.name"


def read_outside(config: DataConfig) -> RawSet:
    """Return what the named function makes of the section `data`.

    Raises `UserError` if the function cannot be had, fails, or returns something else than a set of labelled images.
    """
    raw = plugins.call(KEY, config.name, config)
    if not isinstance(raw, RawSet):
        _refuse(config.name, f"it returns {type(raw).__name__}, must return common.data.raw.RawSet")
    classes = tuple(raw.classes)
    if not classes or not all(isinstance(name, str) and name for name in classes) or len({*classes}) < len(classes):
        _refuse(config.name, f"its classes are {classes}, must be distinct names")

    def checked(word: str, split: RawSplit) -> RawSplit:
        return _checked(config.name, word, split, len(classes))

    return replace(
        raw,
        train=checked("train", raw.train),
        test=None if raw.test is None else checked("test", raw.test),
        validation=None if raw.validation is None else checked("validation", raw.validation),
        classes=classes,
        notes=tuple(raw.notes),
    )


@cache  # an imported module does not change
def code_digest(name: str) -> str:
    """Return a digest of the sources of the package that the named function belongs to; raises `UserError`."""
    plugins.find(KEY, name)
    path = name.partition(":")[0]
    package = sys.modules[path.partition(".")[0]]
    folders = [Path(folder) for folder in getattr(package, "__path__", ())]
    files = sorted(file for folder in folders for file in folder.rglob("*.py")) or [Path(str(package.__file__))]
    total = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        total.update(f"{file.name} {len(content)}\n".encode() + content)
    return total.hexdigest()


def _checked(name: str, word: str, split: RawSplit, classes: int) -> RawSplit:
    """Return a split with int64 labels and a list of samples; raises `UserError` for what cannot be one."""
    if not isinstance(split, RawSplit):
        _refuse(name, f"its {word} split is {type(split).__name__}, must be common.data.raw.RawSplit")
    if not isinstance(split.samples, Sequence | np.ndarray) or isinstance(split.samples, str | bytes):
        _refuse(name, f"its {word} samples are {type(split.samples).__name__}, must be a list or an array of images")
    samples, labels = list(split.samples), np.asarray(split.labels)
    if labels.shape != (len(samples),) or (samples and not np.issubdtype(labels.dtype, np.integer)):
        found = f"{labels.dtype} labels of shape {labels.shape}"
        _refuse(name, f"its {word} split has {len(samples)} samples and {found}, must have a whole number for each")
    if len(outside := labels[(labels < 0) | (labels >= classes)]):
        _refuse(name, f"its {word} split has the label {outside[0]}, but {classes} classes, numbered from 0")
    if split.natural is not None and np.shape(split.natural) != labels.shape:
        _refuse(name, f"its {word} split has {np.shape(split.natural)} natural clients for {len(samples)} samples")
    for number, sample in enumerate(samples):
        if problem := _problem(sample):
            _refuse(name, f"its {word} sample {number} is {problem}")
    natural = None if split.natural is None else np.asarray(split.natural)
    return RawSplit(samples, labels.astype(np.int64), natural)


def _problem(sample: object) -> str:
    """Return what a sample is that is no image; empty for one."""
    if isinstance(sample, bytes | Path):
        return ""
    if isinstance(sample, np.ndarray):
        good = sample.dtype == np.uint8 and (sample.ndim == 2 or (sample.ndim == 3 and sample.shape[2] == 3))
        return "" if good else f"{sample.dtype} of shape {sample.shape}, must be uint8 (H, W) or (H, W, 3)"
    if isinstance(sample, str):
        return "a text: a function gives images; for texts set data.name to text, with CSV or Parquet in data.root"
    return f"{type(sample).__name__}, must be a file's bytes, its Path, or a uint8 array"


def _refuse(name: str, problem: str) -> NoReturn:
    raise UserError(f"{KEY} {name!r}: {problem}")
