"""The section `data` of the configuration: which samples, and how clients get them."""

import math
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field

from common.sections.data_sets import DEVICES, EMBEDDED, FOLDER, NEWS, TEXT, TEXT_SETS, SetName
from common.settings import DistinctWords, Settings

LARGEST_IMAGE = 4096
LONGEST_TEXT = 4096
LARGEST_VOCABULARY = 2**24


class DataConfig(Settings):
    """Which images or texts, and how they are dealt to clients."""

    SECTION = "data"

    # `folder`: own images in `root`; `text`: own texts there; `devices`: every device brings its own images (node
    # configuration data="/folder") and the server has none
    name: SetName = EMBEDDED
    """the data set, folder (own images), text (own texts), devices (each device's images), or a function's"""
    # train-*.parquet and test-*.parquet, or train/<class>/ and test/<class>/ images (also Training, testing; val or
    # validation is the test set, or the server's validation set beside a test folder), or <class>/ images (a fifth of
    # each class then becomes the test set), or, for texts, train.csv and test.csv
    root: str = ""
    """absolute folder of the samples, as Parquet, class folders of images, or CSV; empty: the hub"""
    partitioner: Literal["iid", "dirichlet", "shards", "natural"] = "iid"
    """how samples are dealt: dirichlet (label skew), shards (few classes per client), natural (by a column)"""
    # outside this range numpy's Dirichlet sampler underflows or overflows; 0.001 is one client per class, 1e6 is IID
    alpha: float = Field(0.5, ge=0.001, le=1_000_000)
    """concentration of the Dirichlet distribution; smaller: more skewed"""
    shards_per_client: int = Field(2, ge=1)
    """label-sorted shards that each client gets (McMahan et al., AISTATS 2017)"""
    column: str = ""
    """natural: the column that names each sample's client"""
    label: str = ""
    """the label column; empty: the first of label, fine_label, labels"""
    image_size: int = Field(0, ge=0, le=LARGEST_IMAGE)
    """side in pixels that images are resized to; 0: the set's own size"""
    validation: float = Field(0.2, ge=0, lt=1)
    """share of a client's own training data kept for validation"""
    # Above 0 the set's train and test samples are merged and dealt together and the server has no test set, as in
    # personalised federated learning (75:25 is usual)
    client_test: float = Field(0.0, ge=0, lt=1)
    """share of a client's own samples kept as its own test split, before validation takes its share of the rest"""
    skip_damaged: bool = False
    """leave out images that cannot be read, with a note, instead of refusing the set"""
    limit: int = Field(0, ge=0)
    """use only so many training samples, the first ones, before any merging; 0: all"""
    classes: DistinctWords = ()
    """devices: the class names"""
    channels: int = 3
    """devices: 1 (grey) or 3 (RGB)"""
    mean: str = ""
    """constants per channel to subtract, of images in [0, 1]; empty: the set's own, or 0.5"""
    std: str = ""
    """constants per channel to divide by, likewise"""
    text: str = "text"
    """texts: the column that holds them"""
    # A title has about ten and attention's cost grows with the square, so the default holds a title and a sentence;
    # CAFEDistill (arXiv 2601.10015) keeps 200
    length: int = Field(32, ge=1, le=LONGEST_TEXT)
    """texts: the tokens kept of each"""
    vocabulary: int = Field(32_000, ge=2, le=LARGEST_VOCABULARY)
    """texts: the number of token ids that words are hashed into (CAFEDistill: 32,000)"""

    @property
    def is_text(self) -> bool:
        """Whether samples are texts."""
        return self.name in TEXT_SETS

    def other_mistakes(self) -> list[str]:
        """Check what the set needs, and the constants."""
        found = []
        if self.channels not in (1, 3):
            found.append(f"data.channels is {self.channels}, must be 1 (grey) or 3 (RGB)")
        if self.partitioner == "natural" and not self.column:
            found.append("data.column is missing: data.partitioner 'natural' needs the column of each sample's client")
        return found + self._source_mistakes() + self._constant_mistakes("mean") + self._constant_mistakes("std")

    def _source_mistakes(self) -> list[str]:
        found = []
        if self.name in (FOLDER, TEXT) and not self.root:
            found.append(f"data.root is missing: data.name {self.name!r} needs the absolute folder of your samples")
        if self.name == DEVICES and (len(self.classes) < 2 or self.image_size <= 0):
            found.append(f"data.name {DEVICES!r} needs two class names or more in data.classes, and data.image-size")
        folders = Counter(map(folder_name, self.classes))
        if shared := [name for name in self.classes if folders[folder_name(name)] > 1]:
            found.append(
                f"data.classes has {' and '.join(map(repr, shared))}, which would share a folder on a device: rename "
                f"them so that they differ in more than '/' and '-'"
            )
        if self.name in (EMBEDDED, NEWS) and self.root:
            found.append(
                f"data.root is {self.root!r}, but the set {self.name!r} is embedded: "
                f"set data.name to {FOLDER!r} or {TEXT!r} for your own samples"
            )
        if self.root and not Path(self.root).is_absolute():
            found.append(f"data.root is {self.root!r}, must be an absolute path")
        return found

    def _constant_mistakes(self, name: Literal["mean", "std"]) -> list[str]:
        text = getattr(self, name)
        try:
            values = constants(text)
        except ValueError:
            return [f"data.{name} is {text!r}, must be comma-separated numbers such as 0.5,0.5,0.5"]
        if not all(math.isfinite(value) for value in values):
            return [f"data.{name} is {text!r}, must be finite numbers"]
        if name == "std" and min(values, default=1.0) <= 0:
            return [f"data.std is {text!r}, must be above 0"]
        return []


def folder_name(name: str) -> str:
    """Return how a class's folder on a device is named, in the one Unicode form in which names are compared."""
    return unicodedata.normalize("NFC", name.replace("/", "-"))


def constants(text: str) -> tuple[float, ...]:
    """Return the numbers of a comma-separated text; () for an empty one. Raises ValueError if it is not numbers."""
    return tuple(float(part) for part in text.split(",")) if text.strip() else ()
