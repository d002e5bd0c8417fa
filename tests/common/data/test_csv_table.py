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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'label,text\n1,a\n2,"b\n1,c\n2,d\n', r"train\.csv, line 3: the quotes of the row that begins here"),
        (b'label,text\n1,"a\n2,"b"\n1,c\n', r"line 2: the quotes of the row that begins here .*close every quote"),
        (b'label,text\n1,"said \\"hi\\""\n', "line 2: the quotes of the row that begins here"),
        (b'label,text\n1,"a\nb"\n2\n', r"line 4: the row has 1 fields, but the file has 2 columns"),
        (b"label,text\n1,a,\n", r"line 2: the row has 3 fields"),
        (b"label,text,text\n1,a,b\n", r"train\.csv: several columns have the name 'text'"),
        (b"label,text\n1,a\n2,\xe9\n", r"line 3: the text is not UTF-8: save the file as UTF-8"),
        ("label,text\n1,a\n".encode("utf-16"), r"line 1: the text is not UTF-8"),
        (b"", r"train\.csv is empty: write a row of column names"),
        (b"\n\n", r"train\.csv is empty"),
        (b"label,text\n", "has no training samples: add some"),
        (b"label,text\n1,a\n ,b\n", "1 values of column 'label' are missing"),
        (b"label,text\n1.5,a\n2,b\n", "holds the number 1.5"),
    ],
)
def test_damaged_file_is_one_sentence(tmp_path, content, message):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_unusual_files_are_read(tmp_path):
    long = "word " * 40_000  # above the limit of Python's reader
    (tmp_path / "Training.csv").write_bytes(
        b'\xef\xbb\xbflabel, text\r\n10,"a ""quoted"", one"\r\n\r\n9,5" disk\r\n9,\r\n10,' + long.encode()
    )
    (tmp_path / "val.csv").write_text("text,label\nb,9\n")
    (tmp_path / "extra.tsv").write_text("x")
    data = read(tmp_path)
    assert (data.classes, data.train.labels.tolist(), data.test.labels.tolist()) == (("9", "10"), [1, 0, 0, 1], [0])
    assert data.train.inputs.tolist()[:2] == [ids('a "quoted", one'), ids('5" disk')]
    assert data.notes == (
        f"1 other files or folders in {tmp_path} are not used: extra.tsv",
        "column 'text': 1 of 5 texts are empty",
        "classes without test samples: 10",
    )


def test_long_numbers_and_leading_zeros_stay_apart(tmp_path):
    rows = "".join(f"{label},x\n" for label in ("12345678901234567890", "12345678901234567891", "007") * 5)
    assert len(read(write(tmp_path, "label,text\n" + rows, None)).classes) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("csv_empty_labels", "6 values of column 'label' are missing"),
        ("csv_int_then_float_test", r"integers in train\.csv and decimal numbers in test\.csv"),
        ("csv_dup_columns", "several columns have the name 'text'"),
    ],
)
def test_misleading_files_are_refused(cases_root, name, message):
    with pytest.raises(UserError, match=message):
        read(cases_root / name)


def test_stray_blanks_are_stripped_and_reported(cases_root):
    data = read(cases_root / "csv_space_labels")
    assert data.classes == ("Sport", "politics", "sport")
    assert "6 values have blanks at their ends" in data.notes[0]
    assert "'Sport' and 'sport' differ only in upper and lower case" in data.notes[1]
