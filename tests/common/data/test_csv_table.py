from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data import DataConfig, load
from common.data.text import token_ids
from common.errors import UserError

# AG News' own columns, its labels and a description that breaks its line
AG = 'label,title,text\n3,Wall St. Bears,"Short-sellers, again\nand again"\n1,"Peace, maybe",Talks\n4,7,Chips\n'


def write(root: Path, train: str = AG, test: str | None = "label,title,text\n4,New phones,x\n") -> Path:
    (root / "train.csv").write_text(train)
    if test is not None:
        (root / "test.csv").write_text(test)
    return root


def read(root: Path, cache: Path | None = None, **options):
    return load(DataConfig(name="text", root=str(root), length=6, vocabulary=99, **options), cache)


def ids(text: str) -> list[int]:
    return token_ids(text, 99, 6).tolist()


def test_csv_gives_texts_and_classes(tmp_path):
    data = read(write(tmp_path))
    assert data.classes == ("1", "3", "4")
    assert data.train.labels.tolist() == [1, 0, 2]
    assert data.test.labels.tolist() == [2]
    assert data.train.inputs.tolist() == [ids("short - sellers , again and"), ids("talks"), ids("chips")]


def test_another_column_may_hold_the_text(tmp_path):
    data = read(write(tmp_path), tmp_path / "cache", text="title")
    assert data.train.inputs.tolist() == [ids("wall st . bears"), ids("peace , maybe"), ids("7")]
    assert data.test.inputs.tolist() == [ids("new phones")]


def test_labels_may_be_names_and_the_test_file_absent(tmp_path):
    rows = "".join(f"text {i},{'ham' if i % 2 else 'spam'},user{i % 3}\n" for i in range(20))
    data = read(write(tmp_path, "text,label,who\n" + rows, None), partitioner="natural", column="who")
    assert data.classes == ("ham", "spam")
    assert (len(data.train), len(data.test)) == (16, 4)
    assert set(data.natural.tolist()) == {"user0", "user1", "user2"}


def test_client_test_merges_both_files(tmp_path):
    data = read(write(tmp_path), client_test=0.25)
    assert data.train.labels.tolist() == [1, 0, 2, 2]
    assert data.test.inputs.shape == (0, 6)


def test_parquet_files_are_preferred(tmp_path):
    for name, texts in (("train", ["a", "b"]), ("test", ["b"])):
        pq.write_table(pa.table({"text": texts, "label": list(range(len(texts)))}), tmp_path / f"{name}.parquet")
    data = read(write(tmp_path))
    assert np.array_equal(data.train.inputs.numpy(), [ids("a"), ids("b")])


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (AG, {"text": "body"}, "no column 'body': set data.text to one of label, title, text"),
        (AG, {"label": "class"}, "no label column class"),
        ("label,text\n1,a,b\n", {}, r"train\.csv, line 2: the row has 3 fields, but the file has 2 columns"),
        ("label,text\n1,a\n,b\n", {}, "1 values of column 'label' are missing"),
    ],
)
def test_mistake_is_reported_in_one_line(tmp_path, train, options, message):
    with pytest.raises(UserError, match=message) as caught:
        read(write(tmp_path, train, None), **options)
    assert "\n" not in str(caught.value)


def test_missing_files_and_missing_texts_are_reported(tmp_path):
    with pytest.raises(UserError, match=r"neither train\*\.parquet files nor train\.csv"):
        read(tmp_path)
    pq.write_table(pa.table({"text": ["a", None], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="of type string with 1 missing values"):
        read(tmp_path)
    pq.write_table(pa.table({"text": [1, 2], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="of type int64 with 0 missing values"):
        read(tmp_path)
