"""Images for devices that cannot hold the teacher."""

from pathlib import Path

import pytest
import torch

from common.data import DataConfig, load
from common.errors import UserError
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.client import UNKNOWN
from strategies.distree.training.public import public_images

DIGITS = load(DataConfig(), None).train


def settings(public: str, samples: int = 40) -> DistrEESettings:
    return DistrEESettings(without_teacher="public", public=public, public_samples=samples)


def test_public_images_depend_on_the_seed_and_keep_labels() -> None:
    found = public_images(settings("digits"), DIGITS, seed=1)
    again, other = (public_images(settings("digits"), DIGITS, seed=seed) for seed in (1, 2))
    assert torch.equal(found.inputs, again.inputs)
    assert not torch.equal(found.inputs, other.inputs)
    assert (len(found), found.shape) == (40, DIGITS.shape)
    rows = [(DIGITS.inputs == image).all((1, 2, 3)).nonzero()[0, 0] for image in found.inputs]
    assert torch.equal(DIGITS.labels[torch.stack(rows)], found.labels)


def test_labels_follow_class_names_or_are_unknown() -> None:
    turned = DIGITS.subset(range(10))
    renamed = type(turned)(turned.inputs, turned.labels, tuple(reversed(turned.classes)))
    mapped = public_images(settings("digits"), renamed, seed=1)
    assert torch.equal(mapped.labels, 9 - public_images(settings("digits"), DIGITS, seed=1).labels)
    strange = type(turned)(turned.inputs, turned.labels, tuple("abcdefghij"))
    assert public_images(settings("digits"), strange, seed=1).labels.unique().tolist() == [UNKNOWN]


def test_other_sizes_are_resized_and_other_channels_refused(data_root: Path) -> None:
    tiny = f"folder:{data_root / 'cifar10_tiny'}"
    colour = type(DIGITS)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("a", "b"))
    found = public_images(settings(tiny, 10), colour, seed=1)
    assert (len(found), found.shape) == (10, (3, 8, 8))
    with pytest.raises(UserError, match=r"distree\.public has images \(3, 8, 8\), this run \(1, 8, 8\)"):
        public_images(settings(tiny), DIGITS, seed=1)
