"""What the user can say about data."""

import math
from dataclasses import dataclass
from pathlib import Path

from common.data.catalogue import DEVICES, EMBEDDED, FOLDER, NAMES, NEWS, TEXT, TEXT_SETS
from common.settings import Settings

PARTITIONERS: tuple[str, ...] = ("iid", "dirichlet", "shards", "natural")
# Outside this range numpy's Dirichlet sampler underflows or overflows; 0.001 is one client per class, 1e6 is IID.
ALPHA_RANGE = (1e-3, 1e6)
LARGEST_IMAGE = 4096
LONGEST_TEXT = 4096
LARGEST_VOCABULARY = 2**24


@dataclass(frozen=True)
class DataConfig(Settings):
    """Which images or texts, and how they are dealt to clients.

    name               a set known by name, `folder` for your own images in `root`, `text` for your own texts there, or
                       `devices`: every device brings its own images (node configuration data="/folder") and the server
                       has none
    root               absolute folder with train-*.parquet and test-*.parquet, or train/<class>/ and test/<class>/
                       images, or <class>/ images (a fifth of each class then becomes the test set), or, for texts,
                       train.csv and test.csv; "" = the hub
    partitioner        iid, dirichlet (label skew), shards (few classes per client), natural (by a column)
    alpha              concentration of the Dirichlet distribution; smaller = more skewed
    shards_per_client  label-sorted shards that each client gets (McMahan et al., AISTATS 2017)
    column             the column that names each sample's client (natural)
    label              the label column; "" = the first of label, fine_label, labels
    image_size         side in pixels that images are resized to; 0 = the set's own size
    validation         share of a client's own training data kept for validation, in [0, 1)
    client_test        share of a client's own samples kept as its own test split, in [0, 1), before `validation` takes
                       its share of the rest. Above 0 the set's train and test samples are merged and dealt together
                       and the server has no test set, as in personalised federated learning (75:25 is usual)
    limit              use only so many training samples, the first ones, before any merging; 0 = all
    classes, channels  with `devices`: the class names, comma-separated, and 1 (grey) or 3 (RGB)
    mean, std          comma-separated constants per channel, of images in [0, 1]; "" = the set's own, or 0.5
    text               of texts: the column that holds them
    length             of texts: the tokens kept of each. A title has about ten and attention's cost grows with the
                       square, so the default holds a title and a sentence; CAFEDistill (arXiv 2601.10015) keeps 200
    vocabulary         of texts: the number of token ids that words are hashed into (32,000 as there)
    """

    SECTION = "data"

    name: str = EMBEDDED
    root: str = ""
    partitioner: str = "iid"
    alpha: float = 0.5
    shards_per_client: int = 2
    column: str = ""
    label: str = ""
    image_size: int = 0
    validation: float = 0.2
    client_test: float = 0.0
    limit: int = 0
    classes: tuple[str, ...] = ()
    channels: int = 3
    mean: str = ""
    std: str = ""
    text: str = "text"
    length: int = 32
    vocabulary: int = 32_000

    @property
    def is_text(self) -> bool:
        """Whether samples are texts."""
        return self.name in TEXT_SETS

    def problems(self) -> list[str]:
        """Return one message for everything that is wrong; an empty list if nothing is."""
        low, high = ALPHA_RANGE
        checks = (
            (self.name in NAMES, f"data.name: no set is called {self.name!r}; choose from {', '.join(NAMES)}"),
            (
                self.name not in (FOLDER, TEXT) or self.root != "",
                f"data.root: name the absolute folder of your samples when data.name is {self.name!r}",
            ),
            (
                self.name != DEVICES or (len(set(self.classes)) > 1 and self.image_size > 0),
                f"data.classes, data.image-size: with data.name {DEVICES!r} name at least two classes and a size",
            ),
            (self.channels in (1, 3), f"data.channels: must be 1 or 3, got {self.channels}"),
            (
                self.name not in (EMBEDDED, NEWS) or self.root == "",
                f"data.root: the set {self.name!r} is embedded: set data.name to {FOLDER!r} or {TEXT!r} for your own",
            ),
            (
                self.root == "" or Path(self.root).is_absolute(),
                f"data.root: must be an absolute path, got {self.root!r}",
            ),
            (
                self.partitioner in PARTITIONERS,
                f"data.partitioner: must be one of {', '.join(PARTITIONERS)}, got {self.partitioner!r}",
            ),
            (low <= self.alpha <= high, f"data.alpha: must be from {low} to {high:.0f}, got {self.alpha}"),
            (
                self.shards_per_client >= 1,
                f"data.shards-per-client: must be at least 1, got {self.shards_per_client}",
            ),
            (
                self.partitioner != "natural" or self.column != "",
                "data.column: name the column that tells whose sample it is when data.partitioner is 'natural'",
            ),
            (
                0 <= self.image_size <= LARGEST_IMAGE,
                f"data.image-size: must be from 0 (the set's own) to {LARGEST_IMAGE}, got {self.image_size}",
            ),
            (0 <= self.validation < 1, f"data.validation: must be in [0, 1), got {self.validation}"),
            (0 <= self.client_test < 1, f"data.client-test: must be in [0, 1), got {self.client_test}"),
            (self.limit >= 0, f"data.limit: must be 0 (all) or more, got {self.limit}"),
            (1 <= self.length <= LONGEST_TEXT, f"data.length: must be from 1 to {LONGEST_TEXT}, got {self.length}"),
            (
                2 <= self.vocabulary <= LARGEST_VOCABULARY,
                f"data.vocabulary: must be from 2 to {LARGEST_VOCABULARY}, got {self.vocabulary}",
            ),
        )
        return [message for holds, message in checks if not holds] + self._constant_problems()

    def _constant_problems(self) -> list[str]:
        problems = []
        for key, text in (("mean", self.mean), ("std", self.std)):
            try:
                values = constants(text)
            except ValueError:
                problems.append(f"data.{key}: must be comma-separated numbers such as '0.5,0.5,0.5', got {text!r}")
                continue
            if not all(math.isfinite(value) for value in values):
                problems.append(f"data.{key}: must be finite numbers, got {text!r}")
            elif key == "std" and not all(value > 0 for value in values):
                problems.append(f"data.std: must be above 0, got {text!r}")
        return problems


def constants(text: str) -> tuple[float, ...]:
    """Return the numbers of a comma-separated text; () for an empty one. Raises ValueError if it is not numbers."""
    return tuple(float(part) for part in text.split(",")) if text.strip() else ()
