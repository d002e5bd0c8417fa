"""The samples to classify: limits, class names and sizes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.console.samples import Takes, find_images, from_dataset, from_folder, spread
from common.data import DataConfig, load
from common.errors import UserError
from common.plugins import VARIABLE

DIGITS = tuple("0123456789")
SHAPE = (1, 8, 8)
LETTERS = """
import numpy as np
from pathlib import Path
from common.data.raw import RawSet, RawSplit

def letters(config):
    assert Path(config.root).is_dir()
    split = RawSplit([np.full((4, 4), n, np.uint8) for n in range(2)], np.arange(2))
    return RawSet(split, split, ("a", "b"))
"""


def test_limit_is_spread_over_all_items() -> None:
    assert spread(range(10), 0) == spread(range(10), 10) == spread(range(10), 99) == list(range(10))
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread("abc", 1) == ["a"]
    assert spread([], 3) == []


def test_data_set_yields_batches_with_labels() -> None:
    test = load(DataConfig(), None).test
    batches = list(from_dataset("digits", DIGITS, Takes(SHAPE), 7, 20))
    assert [len(batch) for batch in batches] == [7, 7, 6]
    rows = [int(name) for batch in batches for name in batch.names]
    assert rows == spread(range(len(test)), 20)
    assert np.array_equal(np.concatenate([batch.inputs for batch in batches]), test.inputs[rows])
    assert [truth for batch in batches for truth in batch.truths] == [str(n) for n in test.labels[rows].tolist()]
    assert sum(len(batch) for batch in from_dataset("digits", DIGITS, Takes(SHAPE), 100, 0)) == len(test)


def test_image_folder_is_resized_for_the_network(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, shade in (("dark", 10), ("light", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (20, 20), shade).save(tmp_path / split / name / "a.png")
    (batch,) = from_dataset(f"folder:{tmp_path}", ("dark", "light"), Takes((1, 12, 12)), 4, 0)
    assert (batch.truths, batch.inputs.shape) == (["dark", "light"], (2, 1, 12, 12))
    assert np.unique(batch.inputs).tolist() == [10, 200]


def test_truth_is_the_deepest_class_folder(tmp_path: Path) -> None:
    for folder in ("3/7", "3/other", "none"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / folder / "a.png")
    (batch,) = from_folder(tmp_path, find_images(tmp_path), DIGITS, SHAPE, 9)
    assert dict(zip(batch.names, batch.truths, strict=True)) == {
        "3/7/a.png": "7", "3/other/a.png": "3", "none/a.png": None
    }  # fmt: skip


def test_images_are_read_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "3").mkdir()
    for name, level in (("dark", 200), ("bright", 51400)):
        Image.fromarray(np.full((8, 8), level, np.int32)).save(tmp_path / "3" / f"{name}.tif")
    Image.fromarray(np.full((8, 8), 5140, np.uint16)).save(tmp_path / "3" / "half.png")
    (tmp_path / "3" / "torn.png").write_bytes(b"no image")
    (tmp_path / "3" / "._torn.png").write_bytes(b"no image")
    skipped: dict[str, str] = {}
    Image.fromarray(np.full((8, 8), -3, np.float32)).save(tmp_path / "3" / "negative.tif")
    (batch,) = from_folder(
        tmp_path, find_images(tmp_path), DIGITS, SHAPE, 9, lambda path, reason: skipped.update({str(path): reason})
    )
    assert (batch.inputs[:, 0, 0, 0].tolist(), batch.truths) == ([200, 1, 20], ["3"] * 3)
    (alone,) = from_folder(tmp_path, [tmp_path / "3" / "dark.tif"], DIGITS, SHAPE, 9)
    assert alone.inputs[0, 0, 0, 0] == 1
    assert list(skipped) == ["3/negative.tif", "3/torn.png"]
    assert "its grey levels go from -3 to -3, must be from 0 to 1" in skipped["3/negative.tif"]
    assert skipped["3/torn.png"].endswith("torn.png cannot be read as an image (unknown file type)")
    assert capsys.readouterr().err.splitlines() == [
        "note: left out: 1 hidden or system item (3/._torn.png)",
        "note: 3 images with grey levels scaled so that 65535 becomes 255",
        "note: 1 image with grey levels scaled so that 65535 becomes 255",
    ]


def test_a_functions_set_is_allowed_as_it_is_typed(
    plugin: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugin("mine_letters", LETTERS)
    monkeypatch.setenv(VARIABLE, "")
    (batch,) = from_dataset(f"mine_letters:letters:{tmp_path}", ("a", "b"), Takes((1, 4, 4)), 4, 0)
    assert (batch.truths, batch.inputs[:, 0, 0, 0].tolist()) == (["a", "b"], [0, 1])
    with pytest.raises(UserError, match="has no 'digit'"):
        from_dataset("mine_letters:digit", ("a", "b"), Takes((1, 4, 4)), 4, 0)


@pytest.mark.parametrize(
    ("text", "classes", "shape", "message"),
    [
        ("digit", DIGITS, (1, 8, 8), "--dataset is 'digit', must be one of digits"),
        ("bbc_news", DIGITS, (1, 8, 8), "--dataset bbc_news holds no images"),
        ("devices", DIGITS, (1, 8, 8), "--dataset"),
        ("folder", DIGITS, (1, 8, 8), "--dataset NAME:FOLDER is missing: --dataset 'folder'"),
        ("digits", ("cat", "dog"), (1, 8, 8), "has the class '0', the model does not"),
        ("digits", DIGITS, (3, 8, 8), r"has images of \(1, 8, 8\)"),
    ],
)
def test_unsuitable_data_set_is_refused(
    text: str, classes: tuple[str, ...], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        from_dataset(text, classes, Takes(shape), 1, 0)
