import unicodedata
from pathlib import Path
from shutil import copytree

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


def _load_from(root: Path, **options: float) -> TrainTest:
    return load(DataConfig(name="folder", root=str(root), **options), None)  # type: ignore[arg-type]


def _notes(data: TrainTest) -> tuple[str, ...]:
    """Return the notes on the folder, without the one on a missing test split."""
    return tuple(note for note in data.notes if not note.startswith("no test split"))


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


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("test", ["test", "Testing", "VAL", "valid", "Validation"])
def test_usual_names_of_splits_are_taken(tmp_path: Path, train: str, test: str) -> None:
    for split, count in ((train, 3), (test, 2)):
        _paint(tmp_path / split / "cat", count)
        _paint(tmp_path / split / "dog", count, 100)
    data = _load_from(tmp_path)
    assert (data.classes, len(data.train), len(data.test), data.validation) == (("cat", "dog"), 6, 4, None)
    assert [note.partition(" (")[0] for note in data.notes] == ([] if "est" in test else [f"{test}/"])


def test_validation_folder_beside_a_test_folder_is_the_servers(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split, value in (("train", 0), ("test", 50), ("val", 100)):
        _paint(root / split / "cat", 2, value)
    for cache in (None, tmp_path / "cache"):
        data = load(DataConfig(name="folder", root=str(root)), cache)
        assert data.validation is not None
        assert data.test.inputs[:, 0, 0, 0].tolist() == [50, 51]
        assert data.validation.inputs[:, 0, 0, 0].tolist() == [100, 101]
        assert data.notes == (
            "the validation split (2 samples) is the server's; clients hold out data.validation still",
        )


def test_validation_folder_is_dealt_where_clients_test(tmp_path: Path) -> None:
    for split, value in (("train", 0), ("test", 50), ("val", 100)):
        _paint(tmp_path / split / "cat", 2, value)
    data = _load_from(tmp_path, client_test=0.25)
    assert (data.validation, len(data.test)) == (None, 0)
    assert data.notes == ("the validation split (2 samples) is dealt to clients too",)
    assert data.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 50, 51, 100, 101]


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    _paint(tmp_path / "train" / "cat", 1)
    _paint(tmp_path / "Training" / "cat", 1)
    with pytest.raises(UserError, match="two folders for one split, Training and train: merge them"):
        _load_from(tmp_path)


def test_split_without_class_folders_is_left_out_or_refused(tmp_path: Path) -> None:
    _paint(tmp_path / "one" / "train" / "cat", 5)
    _paint(tmp_path / "one" / "test", 2)
    assert _notes(_load_from(tmp_path / "one")) == ("left out: 1 folder beside train (test with 2 images)",)
    _paint(tmp_path / "two" / "train", 3)
    _paint(tmp_path / "two" / "test", 3)
    with pytest.raises(UserError, match="test and train hold images without class folders"):
        _load_from(tmp_path / "two")


def test_test_folder_without_a_training_folder_is_refused(tmp_path: Path) -> None:
    _paint(tmp_path / "Test" / "cat", 1)
    _paint(tmp_path / "cat", 1)
    with pytest.raises(UserError, match="has Test/ with class folders, but no train/"):
        _load_from(tmp_path)


def test_train_may_be_a_class(tmp_path: Path) -> None:
    _paint(tmp_path / "train", 5)
    _paint(tmp_path / "bus", 5, 100)
    assert _load_from(tmp_path).classes == ("bus", "train")


def test_all_that_is_left_out_is_named(tmp_path: Path) -> None:
    _paint(tmp_path / "train" / "cat", 2)
    _paint(tmp_path / "train" / ".trash", 1)
    (tmp_path / "train" / "dog").mkdir()
    _paint(tmp_path / "test" / "cat", 1)
    _paint(tmp_path / "unlabelled", 3)
    for name in ("a.png", "train/b.png", "test/notes.txt"):
        (tmp_path / name).touch()
    assert _notes(_load_from(tmp_path)) == (
        "left out: 1 file without an image's suffix (1 .txt)", "left out: 1 hidden or system item (train/.trash)",
        "left out: 1 image outside class folders (train/b.png)", "left out: 1 folder without images (train/dog)",
        "left out: 1 image outside class folders (a.png)",
        "left out: 1 folder beside test, train (unlabelled with 3 images)",
    )  # fmt: skip


def test_classes_without_test_images_are_named(tmp_path: Path) -> None:
    for name, count in (("cat", 5), ("dog", 2), ("eel", 1)):
        _paint(tmp_path / name, count)
    assert _notes(_load_from(tmp_path)) == ("classes without test samples: dog, eel",)


def test_splits_inside_classes_are_refused(tmp_path: Path) -> None:
    for name in ("cat/Train", "cat/val", "dog/Train", "dog/val"):
        _paint(tmp_path / name, 2)
    with pytest.raises(UserError, match=r"cat has folders for splits \(Train, val\): put classes into splits"):
        _load_from(tmp_path)


def test_class_names_have_one_unicode_form(tmp_path: Path) -> None:
    composed, taken_apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    _paint(tmp_path / "one" / "train" / taken_apart, 2)
    _paint(tmp_path / "one" / "test" / composed, 1)
    data = _load_from(tmp_path / "one")
    assert (data.classes, len(data.test)) == ((composed,), 1)
    for name in (composed, taken_apart):
        _paint(tmp_path / "two" / name, 1)
    with pytest.raises(UserError, match="two class folders named café, in two Unicode spellings"):
        _load_from(tmp_path / "two")


def test_class_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    _paint(tmp_path / "cat\udcff", 1)
    with pytest.raises(UserError, match=r"name is not UTF-8 \(cat\?\): rename it"):
        _load_from(tmp_path)


def test_damaged_images_are_refused_or_skipped(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split in ("train", "test"):
        _paint(root / split / "cat", 3)
        _paint(root / split / "dog", 2, 100)
        (root / split / "cat" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^2 images cannot be read: .*train/cat/1\.png .*test/cat/1\.png"):
        _load_from(root)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        data = load(DataConfig(name="folder", root=str(root), skip_damaged=True), cache)
        assert data.train.inputs[:, 0, 0, 0].tolist() == [0, 2, 100, 101]
        assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 0, 1, 1], [0, 0, 1, 1])
        assert data.notes[0].startswith("left out: 2 images that cannot be read")


@pytest.mark.parametrize(
    ("name", "classes", "sizes", "notes"),
    [
        ("plain", ("box", "cross"), (32, 8), []),
        ("path with spaces, ümläut & 'quote'", ("box", "cross"), (32, 8), []),
        ("grey16", ("box", "cross"), (32, 8), ["40 images with grey levels scaled so that 65535"]),
        ("alpha_shape", ("box", "cross"), (32, 8), ["40 images with transparent parts, laid on white"]),
        ("training_testing", ("box", "cross"), (40, 16), []),
        ("Train_Test", ("box", "cross"), (40, 16), []),
        ("train_validation", ("box", "cross"), (40, 16), ["validation/ (16 images) is the test set"]),
        ("tif_class", ("box", "cross", "ring", "ring2"), (64, 16), []),
        ("checkpoints", ("box", "cross"), (32, 8), ["left out: 1 hidden or system item (box/.ipynb_checkpoints)"]),
        ("apple", ("box", "cross"), (32, 8), ["left out: 3 hidden or system items (box/._000.png, "]),
        ("macosx", ("box", "cross"), (32, 8), ["left out: 1 hidden or system item (__MACOSX)"]),
    ],
)
def test_misleading_folders_are_read_as_meant(
    cases_root: Path, name: str, classes: tuple[str, ...], sizes: tuple[int, int], notes: list[str]
) -> None:
    data = _load_from(cases_root / name)
    assert (data.classes, (len(data.train), len(data.test))) == (classes, sizes)
    assert len(_notes(data)) == len(notes)
    assert all(found.startswith(start) for found, start in zip(_notes(data), notes, strict=True))
    assert len(data.train.inputs.unique()) > 30


def test_linked_folders_are_read(cases_root: Path, tmp_path: Path) -> None:
    copytree(cases_root / "symlinks" / "real", tmp_path / "real")
    (tmp_path / "set" / "cross").mkdir(parents=True)
    (tmp_path / "set" / "box").symlink_to("../real/box")
    (tmp_path / "set" / "cross" / "more").symlink_to("../../real/cross")
    data = _load_from(tmp_path / "set")
    assert (data.classes, data.train.labels.bincount().tolist()) == (("box", "cross"), [16, 16])
    assert _notes(data) == ("folders inside class folders belong to the class (cross/more)",)


def test_folder_above_the_classes_is_named(cases_root: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^flowers/ is the only class folder in .* has only folders inside \(box, cross\): .* to .*/flowers$",
    ):
        _load_from(cases_root / "one_level_deeper")


def test_every_damaged_file_of_a_folder_is_named(cases_root: Path) -> None:
    with pytest.raises(
        UserError, match=r"^3 images .*box/003\.jpg .*box/009\.jpg .*cross/005\.jpg .*skip-damaged=true"
    ):
        _load_from(cases_root / "corrupt")
    data = _load_from(cases_root / "corrupt", skip_damaged=True)
    assert len(data.train) + len(data.test) == 37
