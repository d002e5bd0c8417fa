import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import device_data
from common.data.device import own_folder
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


def test_class_folders_match_in_any_unicode_form(tmp_path: Path) -> None:
    composed, taken_apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    _save(tmp_path / taken_apart, "a.png", np.zeros((8, 8), np.uint8))
    for name in (composed, taken_apart):
        assert device_data(tmp_path, (name, "tea"), (1, 8, 8), 0.0, seed=1).train.labels.tolist() == [0]


def test_damaged_images_of_a_device_are_refused_or_skipped(tmp_path: Path) -> None:
    for number in range(4):
        _save(tmp_path / "cat", f"{number}.png", np.full((8, 8), number, np.uint8))
        _save(tmp_path / "bag", f"{number}.png", np.full((8, 8), 100 + number, np.uint8))
    for name in ("bag/0.png", "cat/2.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^2 images cannot be read: .*bag/0\.png .*cat/2\.png"):
        device_data(tmp_path, CLASSES, (1, 8, 8), 0.0, seed=1)
    own = device_data(tmp_path, CLASSES, (1, 8, 8), 0.0, seed=1, skip_damaged=True)
    assert own.train.inputs[:, 0, 0, 0].tolist() == [101, 102, 103, 0, 1, 3]
    assert own.train.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert [note.partition(" (")[0] for note in own.notes] == ["left out: 2 images that cannot be read"]


def test_what_a_device_leaves_out_is_named(tmp_path: Path) -> None:
    _save(tmp_path / "cat", "a.png", np.full((8, 8), 500, np.uint16))
    _save(tmp_path, "loose.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "bag").mkdir()
    (tmp_path / "cat" / "b.heic").touch()
    assert device_data(tmp_path, CLASSES, (1, 8, 8), 0.0, seed=1).notes == (
        "left out: 1 file without an image's suffix (1 .heic)",
        "left out: 1 image outside class folders (loose.png)",
        "left out: 1 folder without images (bag)",
        "1 image with grey levels scaled so that 65535 becomes 255",
    )


def test_folder_of_many_images_is_shown_without_keeping_their_pixels(tmp_path: Path) -> None:
    for number in range(40):
        _save(tmp_path / "cat", f"{number}.png", np.full((256, 256), number, np.uint8))
    tracemalloc.start()
    summary = own_folder(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (summary.shape, summary.counts) == ((1, 256, 256), {"images": (40,)})
    assert peak < 20 * 256 * 256


def test_device_images_of_one_constant_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        _save(tmp_path / "cat", f"{number}.png", np.full((8, 8), 9, np.uint8))
    with pytest.raises(UserError, match="all pixels of all 3 training images have the value 9"):
        device_data(tmp_path, CLASSES, (1, 8, 8), 0.0, seed=1)
