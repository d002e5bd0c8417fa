from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data import DataConfig, load
from common.data.dataset import TrainTest
from common.errors import UserError


def _paint(folder: Path, count: int, value: int = 0) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((6, 6, 3), value + i, np.uint8)).save(folder / f"{i}.png")


def _load_from(root: Path, **options: int) -> TrainTest:
    return load(DataConfig(name="folder", root=str(root), **options), None)  # type: ignore[arg-type]


def test_train_and_test_folders_are_read(tmp_path: Path) -> None:
    _paint(tmp_path / "train" / "dog", 2, 100)
    _paint(tmp_path / "train" / "cat", 3)
    _paint(tmp_path / "test" / "dog", 1, 50)
    data = _load_from(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101]
    assert data.test.labels.tolist() == [1]
    assert data.test.inputs.unique().tolist() == [50]


def test_without_a_split_a_fifth_of_each_class_is_for_testing(tmp_path: Path) -> None:
    _paint(tmp_path / "cat", 10)
    _paint(tmp_path / "dog", 5)
    data = _load_from(tmp_path)
    assert data.train.labels.bincount().tolist() == [8, 4]
    assert data.test.labels.bincount().tolist() == [2, 1]


def test_limit_keeps_every_class(tmp_path: Path) -> None:
    for name in ("cat", "dog", "eel"):
        _paint(tmp_path / "train" / name, 5)
        _paint(tmp_path / "test" / name, 1)
    assert _load_from(tmp_path, limit=6).train.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_different_sizes_need_image_size(tmp_path: Path) -> None:
    _paint(tmp_path / "train" / "cat", 1)
    Image.fromarray(np.ones((9, 3), np.uint8)).save(tmp_path / "train" / "cat" / "tall.png")
    _paint(tmp_path / "test" / "cat", 1)
    with pytest.raises(UserError, match=r"tall\.png has 3x9 pixels.*data\.image-size"):
        _load_from(tmp_path)
    assert _load_from(tmp_path, image_size=5).train.inputs.shape == (2, 3, 5, 5)


def test_unknown_class_in_test_split_is_reported(tmp_path: Path) -> None:
    _paint(tmp_path / "train" / "cat", 1)
    _paint(tmp_path / "test" / "kat", 1)
    with pytest.raises(UserError, match=r"classes that .*train lacks \(kat\)"):
        _load_from(tmp_path)


def test_empty_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no images")
    with pytest.raises(UserError, match=r"holds neither train\*\.parquet files nor images") as caught:
        _load_from(tmp_path)
    assert "\n" not in str(caught.value)
