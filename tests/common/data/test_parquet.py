import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data import DataConfig, load
from common.data.dataset import TrainTest
from common.data.fingerprint import look_again
from common.errors import UserError

pa = pytest.importorskip("pyarrow", reason="Parquet files need the simulation extra")
pq = pytest.importorskip("pyarrow.parquet")

SIDE = 4


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, labels: list, image: str = "image", label: str = "label", **columns: list) -> None:
    images = [{"bytes": _png(i), "path": None} for i in range(len(labels))]
    pq.write_table(pa.table({image: images, label: labels, **columns}), path)


def _load_from(root: Path, **options: str | int) -> TrainTest:
    return load(DataConfig(name="folder", root=str(root), **options), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "third"),
    [
        ("cifar10", (3, 32, 32), 10, "bird"),
        ("cifar100", (3, 32, 32), 100, "baby"),
        ("fashion_mnist", (1, 28, 28), 10, "Pullover"),
    ],
)
def test_real_sets_are_read(data_root: Path, name: str, shape: tuple[int, ...], classes: int, third: str) -> None:
    data = load(DataConfig(name=name, root=str(data_root / f"{name}_tiny")), None)
    assert (len(data.train), len(data.test), data.input_shape) == (500, 100, shape)
    assert (len(data.classes), data.classes[2]) == (classes, third)
    assert data.train.labels.bincount().tolist() == [500 // classes] * classes


def test_real_pixels_have_the_known_values(data_root: Path) -> None:
    """The first CIFAR-10 training image is the frog whose first pixel is (59, 62, 63)."""
    data = load(DataConfig(name="cifar10", root=str(data_root / "cifar10_tiny")), None)
    assert data.classes[data.train.labels[0]] == "frog"
    assert data.train.inputs[0, :, 0, 0].tolist() == [59, 62, 63]


def test_another_label_column_is_read(data_root: Path) -> None:
    config = DataConfig(name="cifar100", root=str(data_root / "cifar100_tiny"), label="coarse_label")
    data = load(config, None)
    assert data.train.labels.max() == 19
    assert len(data.classes) == 20


def test_shards_are_read_in_order_and_a_fifth_is_for_testing(tmp_path: Path) -> None:
    _write(tmp_path / "train-00001-of-00002.parquet", [1] * 5)
    _write(tmp_path / "train-00000-of-00002.parquet", [0] * 5)
    data = _load_from(tmp_path)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert data.test.labels.tolist() == [0, 1]
    assert data.classes == ("0", "1")


def test_text_labels_are_numbered_by_name(tmp_path: Path) -> None:
    _write(tmp_path / "train.parquet", ["dog", "cat", "eel", "dog"])
    _write(tmp_path / "val.parquet", ["eel"])
    data = _load_from(tmp_path)
    assert data.classes == ("cat", "dog", "eel")
    assert data.train.labels.tolist() == [1, 0, 2, 1]
    assert data.test.labels.tolist() == [2]


def test_natural_column_follows_limit(tmp_path: Path) -> None:
    _write(tmp_path / "train.parquet", [1, 0, 1], writer=["ann", "bob", "ann"])
    _write(tmp_path / "test.parquet", [1], writer=["zoe"])
    data = _load_from(tmp_path, partitioner="natural", column="writer", limit=2)
    assert data.natural.tolist() == ["ann", "bob"]
    with pytest.raises(UserError, match="no column 'user': choose one of image, label, writer"):
        _load_from(tmp_path, partitioner="natural", column="user")


def test_natural_values_survive_the_cache(tmp_path: Path) -> None:
    _write(tmp_path / "train.parquet", [1, 0], writer=["ann", "bob"])
    _write(tmp_path / "test.parquet", [1], writer=["zoe"])
    config = DataConfig(name="folder", root=str(tmp_path), partitioner="natural", column="writer")
    data = load(config, tmp_path / "cache")
    assert data.natural is not None
    assert data.natural.tolist() == ["ann", "bob"]


def test_merged_samples_keep_their_natural_clients(tmp_path: Path) -> None:
    _write(tmp_path / "train.parquet", [1, 0, 1], writer=["ann", "bob", "ann"])
    _write(tmp_path / "test.parquet", [1], writer=["zoe"])
    data = _load_from(tmp_path, partitioner="natural", column="writer", limit=2, client_test=0.25)
    assert data.natural.tolist() == ["ann", "bob", "zoe"]
    assert data.train.labels.tolist() == [1, 0, 1]
    _write(tmp_path / "test.parquet", [1])
    with pytest.raises(UserError, match="no column 'writer'"):
        _load_from(tmp_path, partitioner="natural", column="writer", limit=3, client_test=0.25)


def test_truncated_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    _write(file, [0, 1])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"train\.parquet cannot be read as Parquet .*again") as caught:
        _load_from(tmp_path)
    assert "\n" not in str(caught.value)


def test_truncated_image_is_named(tmp_path: Path) -> None:
    images = [{"bytes": _png(0), "path": None}, {"bytes": _png(1)[:40], "path": None}]
    pq.write_table(pa.table({"img": images, "label": [0, 0]}), tmp_path / "train.parquet")
    _write(tmp_path / "test.parquet", [0])
    with pytest.raises(UserError, match="train image 1 cannot be read as an image"):
        _load_from(tmp_path)


def test_splits_may_name_the_image_column_differently(tmp_path: Path) -> None:
    _write(tmp_path / "train.parquet", [0, 1], image="img")
    _write(tmp_path / "test.parquet", [1], image="image")
    assert _load_from(tmp_path).test.inputs.shape == (1, 1, SIDE, SIDE)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": "target"}, r"no label column label, fine_label, labels: set data\.label to one of image, target"),
        ({"image": "picture"}, "no image column.*picture"),
    ],
)
def test_wrong_columns_are_reported(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    _write(tmp_path / "train.parquet", [0, 1], **columns)
    with pytest.raises(UserError, match=message):
        _load_from(tmp_path)


def test_labels_beyond_the_class_names_are_reported(tmp_path: Path) -> None:
    table = pa.table({"img": [{"bytes": _png(0), "path": None}], "label": [7]})
    features = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="labels from 7 to 7, but the set has 2 classes"):
        _load_from(tmp_path)


def test_damaged_images_are_refused_or_skipped_with_their_rows(tmp_path: Path) -> None:
    images = [{"bytes": b"no image" if i in (1, 4) else _png(i), "path": None} for i in range(6)]
    pq.write_table(
        pa.table({"image": images, "label": [0, 1] * 3, "writer": list("abcdef")}), tmp_path / "train.parquet"
    )
    _write(tmp_path / "test.parquet", [0, 1])
    with pytest.raises(
        UserError, match=r"^2 images cannot be read: train image 1 \(unknown file type\), train image 4 "
    ):
        _load_from(tmp_path)
    data = _load_from(tmp_path, skip_damaged=True, partitioner="natural", column="writer")
    assert data.train.inputs[:, 0, 0, 0].tolist() == [0, 2, 3, 5]
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.natural is not None
    assert data.natural.tolist() == ["a", "c", "d", "f"]
    assert data.notes == ("left out: 2 images that cannot be read (train image 1, train image 4)",)


def test_missing_values_are_reported(tmp_path: Path) -> None:
    _write(tmp_path / "train.parquet", [0, None])
    with pytest.raises(UserError, match="1 values of column 'label' are missing"):
        _load_from(tmp_path)


def test_shards_of_different_sets_are_reported(tmp_path: Path) -> None:
    _write(tmp_path / "train-0.parquet", [0])
    _write(tmp_path / "train-1.parquet", [0], label="labels")
    with pytest.raises(UserError, match="differ in their columns") as caught:
        _load_from(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_must_be_named_by_split(tmp_path: Path) -> None:
    _write(tmp_path / "data.parquet", [0])
    with pytest.raises(UserError, match=r"none is named train\*\.parquet"):
        _load_from(tmp_path)


def _table(labels: list, **columns: list) -> "pa.Table":
    return pa.table(
        {"image": [{"bytes": _png(i), "path": None} for i in range(len(labels))], "label": labels, **columns}
    )


def _named(table: "pa.Table", *names: str) -> "pa.Table":
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(features)})


def test_shards_may_store_integers_in_other_widths(tmp_path: Path) -> None:
    for shard, kind in enumerate((pa.int8(), pa.uint32())):
        table = _table([0, 1], note=[str(shard), None] if shard else [1, 2])
        table = table.set_column(1, "label", table.column("label").cast(kind))
        pq.write_table(table, tmp_path / f"train-{shard}-of-2.parquet")
    _write(tmp_path / "test.parquet", [1])
    data = _load_from(tmp_path)
    assert (data.train.labels.tolist(), data.classes, data.notes[1:]) == ([0, 1, 0, 1], ("0", "1"), ())


def test_class_names_must_agree(tmp_path: Path) -> None:
    pq.write_table(_named(_table([0, 1]), "cat", "dog"), tmp_path / "train.parquet")
    pq.write_table(_table([1]), tmp_path / "test.parquet")
    assert _load_from(tmp_path).classes == ("cat", "dog")
    pq.write_table(_named(_table([1]), "dog", "cat"), tmp_path / "test.parquet")
    look_again()
    with pytest.raises(UserError, match=r"train\.parquet and test\.parquet name the classes .* differently"):
        _load_from(tmp_path)


def test_repeated_column_names_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([0]), pa.array([1])], names=["label", "label"])
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet: several columns have the name 'label': rename"):
        _load_from(tmp_path)


def test_texts_that_are_not_utf8_are_one_sentence(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"text": texts, "label": [1]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet cannot be read as Parquet .*UTF8"):
        load(DataConfig(name="text", root=str(tmp_path)), None)


def test_empty_tables_are_one_sentence(tmp_path: Path) -> None:
    pq.write_table(_table([0, 1]).slice(0, 0), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="has no training samples: add some"):
        _load_from(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pq_int_train_float_test", "'label' holds integers in train-.* and decimal numbers in test-"),
        ("pq_list_labels", "'label' holds values of type list<"),
        ("pq_ragged_labels", "'label' holds values of type list<"),
        ("pq_nan_labels", "4 values of column 'label' are missing"),
        ("pq_unseen_test_class", r"labels that no training sample has \(zebra \(6\)\)"),
        ("pq_shard_missing", r"1 of the 3 shards of 'train' are absent \(train-00001-of-00003\.parquet\)"),
    ],
)
def test_misleading_tables_are_refused(cases_root: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _load_from(cases_root / name)


@pytest.mark.parametrize(
    ("name", "classes"), [("pq_from_one", ("1", "2")), ("pq_id_labels", ("50001", "50002")), ("pq_plain", ("0", "1"))]
)
def test_numbers_of_classes_are_compacted(cases_root: Path, name: str, classes: tuple[str, ...]) -> None:
    data = _load_from(cases_root / name)
    assert (data.classes, len(data.train), len(data.test), data.notes) == (classes, 24, 8, ())
