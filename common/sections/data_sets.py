"""The data sets known by name: their copies on the Hugging Face hub and their normalisation constants."""

from dataclasses import dataclass
from typing import Annotated

from common.settings import Name

EMBEDDED = "digits"
NEWS = "bbc_news"  # embedded texts
FOLDER = "folder"
TEXT = "text"  # a folder of texts
DEVICES = "devices"  # every device brings its own images; the server has none


@dataclass(frozen=True)
class HubSet:
    """One set on the Hugging Face hub."""

    repository: str
    subset: str | None = None
    test_split: str = "test"
    mean: tuple[float, ...] = ()  # per channel, of the training images scaled to [0, 1]; empty: 0.5
    std: tuple[float, ...] = ()  # likewise
    texts: bool = False  # samples are texts, not images


HUB_SETS: dict[str, HubSet] = {
    "cifar10": HubSet("uoft-cs/cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "cifar100": HubSet("uoft-cs/cifar100", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    "fashion_mnist": HubSet("zalando-datasets/fashion_mnist"),
    # The labels of Tiny ImageNet's own test images were never published: its validation images serve as the test set.
    "tiny_imagenet": HubSet("zh-plus/tiny-imagenet", test_split="valid"),
    "svhn": HubSet("ufldl-stanford/svhn", subset="cropped_digits"),
    "stl10": HubSet("tanganke/stl10"),
    "ag_news": HubSet("fancyzhx/ag_news", texts=True),
}

TEXT_SETS: tuple[str, ...] = (NEWS, TEXT, *(name for name, known in HUB_SETS.items() if known.texts))
NAMES: tuple[str, ...] = (EMBEDDED, NEWS, *HUB_SETS, FOLDER, TEXT, DEVICES)

SetName = Annotated[str, Name(NAMES)]
