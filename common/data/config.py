"""The section `data` of the configuration: which samples, and how clients get them."""

import math
from dataclasses import dataclass
from pathlib import Path

from common.data.catalogue import DEVICES, EMBEDDED, FOLDER, NAMES, NEWS, TEXT, TEXT_SETS
from common.settings import Settings, at_least, at_most, key, one_of

PARTITIONERS: tuple[str, ...] = ("iid", "dirichlet", "shards", "natural")
# Outside this range numpy's Dirichlet sampler underflows or overflows; 0.001 is one client per class, 1e6 is IID.
ALPHA_RANGE = (1e-3, 1e6)
LARGEST_IMAGE = 4096
LONGEST_TEXT = 4096
LARGEST_VOCABULARY = 2**24


@dataclass(frozen=True)
class DataConfig(Settings):
    """Which images or texts, and how they are dealt to clients."""

    SECTION = "data"

    # a set known by name; `folder`: your own images in `root`; `text`: your own texts there; `devices`: every device
    # brings its own images (node configuration data="/folder") and the server has none
    name: str = EMBEDDED
    # absolute folder with train-*.parquet and test-*.parquet, or train/<class>/ and test/<class>/ images (also
    # Training, testing; val or validation is the test set, or the server's validation set beside a test folder), or
    # <class>/ images (a fifth of each class then becomes the test set), or, for texts, train.csv and test.csv; empty:
    # the hub
    root: str = ""
    partitioner: str = "iid"  # iid, dirichlet (label skew), shards (few classes per client), natural (by a column)
    alpha: float = 0.5  # concentration of the Dirichlet distribution; smaller = more skewed
    shards_per_client: int = 2  # label-sorted shards that each client gets (McMahan et al., AISTATS 2017)
    column: str = ""  # natural: the column that names each sample's client
    label: str = ""  # the label column; empty: the first of label, fine_label, labels
    image_size: int = 0  # side in pixels that images are resized to; 0: the set's own size
    validation: float = 0.2  # share of a client's own training data kept for validation, in [0, 1)
    # share of a client's own samples kept as its own test split, in [0, 1), before `validation` takes its share of the
    # rest. Above 0 the set's train and test samples are merged and dealt together and the server has no test set, as in
    # personalised federated learning (75:25 is usual)
    client_test: float = 0.0
    skip_damaged: bool = False  # leave out images that cannot be read, with a note, instead of refusing the set
    limit: int = 0  # use only so many training samples, the first ones, before any merging; 0: all
    classes: tuple[str, ...] = ()  # `devices` only: the class names
    channels: int = 3  # `devices` only: 1 (grey) or 3 (RGB)
    mean: str = ""  # comma-separated constants per channel, of images in [0, 1]; empty: the set's own, or 0.5
    std: str = ""  # likewise
    text: str = "text"  # texts only: the column that holds them
    # texts only: the tokens kept of each. A title has about ten and attention's cost grows with the square, so the
    # default holds a title and a sentence; CAFEDistill (arXiv 2601.10015) keeps 200
    length: int = 32
    vocabulary: int = 32_000  # texts only: the number of token ids that words are hashed into (32,000 as there)

    @property
    def is_text(self) -> bool:
        """Whether samples are texts."""
        return self.name in TEXT_SETS

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        low, high = ALPHA_RANGE
        found = one_of(self, name=NAMES, partitioner=PARTITIONERS)
        found += at_least(self, alpha=low, shards_per_client=1, image_size=0, limit=0, length=1, vocabulary=2)
        found += at_most(self, alpha=high, image_size=LARGEST_IMAGE, length=LONGEST_TEXT, vocabulary=LARGEST_VOCABULARY)
        for name, share in (("validation", self.validation), ("client_test", self.client_test)):
            if not 0 <= share < 1:
                found.append(f"{key(self.SECTION, name)} is {share}, must be at least 0 and below 1")
        if self.channels not in (1, 3):
            found.append(f"data.channels is {self.channels}, must be 1 (grey) or 3 (RGB)")
        if self.partitioner == "natural" and not self.column:
            found.append("data.column is missing: data.partitioner 'natural' needs the column of each sample's client")
        return found + self._source_problems() + self._constant_problems("mean") + self._constant_problems("std")

    def _source_problems(self) -> list[str]:
        found = []
        if self.name in (FOLDER, TEXT) and not self.root:
            found.append(f"data.root is missing: data.name {self.name!r} needs the absolute folder of your samples")
        if self.name == DEVICES and (len(set(self.classes)) < 2 or self.image_size <= 0):
            found.append(f"data.name {DEVICES!r} needs two class names or more in data.classes, and data.image-size")
        if self.name in (EMBEDDED, NEWS) and self.root:
            found.append(
                f"data.root is {self.root!r}, but the set {self.name!r} is embedded: "
                f"set data.name to {FOLDER!r} or {TEXT!r} for your own samples"
            )
        if self.root and not Path(self.root).is_absolute():
            found.append(f"data.root is {self.root!r}, must be an absolute path")
        return found

    def _constant_problems(self, name: str) -> list[str]:
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


def constants(text: str) -> tuple[float, ...]:
    """Return the numbers of a comma-separated text; () for an empty one. Raises ValueError if it is not numbers."""
    return tuple(float(part) for part in text.split(",")) if text.strip() else ()
