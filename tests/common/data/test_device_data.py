from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import device_data
from common.errors import UserError

CLASSES = ("ankle / boot", "bag", "cat")


def _save(folder: Path, name: str, pixels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def test_labels_follow_the_run_and_images_fit_the_network(tmp_path: Path) -> None:
    for i in range(4):
        _save(tmp_path / "cat", f"{i}.png", np.full((9, 7), i, np.uint8))
    _save(tmp_path / "ankle - boot", "a.webp", np.full((5, 5, 3), 200, np.uint8))
    train, validation, *_ = device_data(tmp_path, CLASSES, (3, 8, 8), 0.2, seed=1)
    assert (len(train), len(validation)) == (4, 1)
    assert train.shape == validation.shape == (3, 8, 8)
    assert sorted(torch.cat([train.labels, validation.labels]).tolist()) == [0, 2, 2, 2, 2]
    assert train.classes == CLASSES
    again = device_data(tmp_path, CLASSES, (3, 8, 8), 0.2, seed=1)
    assert torch.equal(again[0].inputs, train.inputs)


def test_colour_becomes_grey_for_a_grey_network(tmp_path: Path) -> None:
    _save(tmp_path / "bag", "a.jpg", np.full((8, 8, 3), 90, np.uint8))
    train, validation, *_ = device_data(tmp_path, CLASSES, (1, 8, 8), 0.5, seed=1)
    assert train.inputs.unique().tolist() == [90]
    assert len(validation) == 0


def test_unknown_classes_and_the_allowed_ones_are_named(tmp_path: Path) -> None:
    _save(tmp_path / "kat", "a.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match=r"\(kat\).*ankle - boot, bag, cat") as caught:
        device_data(tmp_path, CLASSES, (1, 8, 8), 0.2, seed=1)
    assert "\n" not in str(caught.value)


def test_long_list_of_classes_is_cut(tmp_path: Path) -> None:
    _save(tmp_path / "kat", "a.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match="c18, c19 and 80 more"):
        device_data(tmp_path, tuple(f"c{i}" for i in range(100)), (1, 8, 8), 0.2, seed=1)


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png cannot be read"):
        device_data(tmp_path, CLASSES, (1, 8, 8), 0.2, seed=1)


def test_missing_and_empty_folders_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        device_data(tmp_path / "nowhere", CLASSES, (1, 8, 8), 0.2, seed=1)
    with pytest.raises(UserError, match="holds no images"):
        device_data(tmp_path, CLASSES, (1, 8, 8), 0.2, seed=1)
