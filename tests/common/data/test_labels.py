import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.data.columns import Column, read_column
from common.data.labels import number_labels
from common.errors import UserError


def _table(labels: Any) -> pa.Table:
    return pa.table({"label": labels})


def _numbered(
    train: Any, test: Any = None, names: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], list[list[int]], str]:
    tables = [("train", _table(train))] + ([("test", _table(test))] if test is not None else [])
    classes, numbers, notes = number_labels("label", read_column("label", tables), 1, names, "set")
    return classes, [part.tolist() for part in numbers], "; ".join(notes)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([1, 2, 1], ("1", "2"), [0, 1, 0]),
        ([50002, 50001], ("50001", "50002"), [1, 0]),
        ([10, 9, 2], ("2", "9", "10"), [2, 1, 0]),
        ([-1, 1], ("-1", "1"), [0, 1]),
        (pa.array([2**64 - 1, 0], pa.uint64()), ("0", "18446744073709551615"), [1, 0]),
        (["dog", "cat"], ("cat", "dog"), [1, 0]),
        ([True, False], ("False", "True"), [1, 0]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b"), [1, 0, 1]),
        (pa.array(["b", "a"], pa.large_string()), ("a", "b"), [1, 0]),
    ],
)
def test_every_value_is_a_class(labels: Any, classes: tuple[str, ...], numbers: list[int]) -> None:
    assert _numbered(labels) == (classes, [numbers], "")


@pytest.mark.parametrize(
    ("labels", "classes", "note"),
    [
        ([0.0, 1.0], ("0", "1"), "whole numbers of a decimal type: they count as integers"),
        (["a", "b", "b ", " b"], ("a", "b"), "2 values have blanks at their ends .*' b', 'b '"),
        (["é", "e\u0301", "x"], ("x", "é"), "1 values have blanks at their ends or another Unicode form"),
        (["Sport", "sport"], ("Sport", "sport"), "'Sport' and 'sport' differ only in upper and lower case"),
        (["None", "flu"], ("None", "flu"), r"'None' counts as a class \(1 samples\), not as a missing value"),
        (["1", "cat"], ("1", "cat"), r"some classes are numbers \(1\) and the others names"),
    ],
)
def test_doubtful_labels_are_noted(labels: Any, classes: tuple[str, ...], note: str) -> None:
    found, _, notes = _numbered(labels)
    assert found == classes
    assert re.search(note, notes)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1], [0.0, 1.0], "'label' holds integers in train and decimal numbers in test: write all"),
        ([0, 1], ["0", "1"], "'label' holds integers in train and texts in test"),
        ([True], [1], "'label' holds booleans in train and integers in test"),
        ([0.5, 1.0], None, "'label' holds the number 0.5: give every row an integer or a text"),
        ([float("inf")], None, "holds the number inf"),
        ([0, None], None, "1 values of column 'label' are missing"),
        ([0.0, float("nan"), None], None, "2 values of column 'label' are missing"),
        (["a", " ", "nan", "NA", None], None, "4 values of column 'label' are missing"),
        (pa.nulls(2), None, "2 values of column 'label' are missing"),
        ([[0], [1]], None, r"values of type list<.*>: give every row one integer or one text"),
        ([{"a": 1}], None, "values of type struct<"),
        ([b"a"], None, "values of type binary"),
        (pa.array([1], pa.date32()), None, "values of type date32"),
        ([0, 1, -1, -1], None, r"2 labels of column 'label' are negative \(-1\), which usually means unlabelled"),
        ([-3, 1], None, r"1 labels of column 'label' are negative \(-3\): remove"),
        (["1", "1.0"], None, "the texts '1' and '1.0', which are one number"),
        (["01", "1"], None, "the texts '01' and '1', which are one number"),
        (["a", "b"], ["b", "z", "z"], r"labels that no training sample has \(z \(2\)\)"),
        ([0, 1], [2], r"labels that no training sample has \(2 \(1\)\)"),
    ],
)
def test_wrong_labels_are_one_sentence(train: Any, test: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _numbered(train, test)
    assert "\n" not in str(caught.value)


def test_given_names_keep_the_order_of_labels() -> None:
    assert _numbered([2, 0], [2], ("frog", "cat", "ant")) == (("frog", "cat", "ant"), [[2, 0], [2]], "")
    with pytest.raises(UserError, match="2 labels of column 'label' are negative"):
        _numbered([-1, 0, -1], None, ("frog", "cat"))
    with pytest.raises(UserError, match="labels from 7 to 7, but the set has 2 classes"):
        _numbered([0, 7], None, ("frog", "cat"))
    assert _numbered([0, 1], None, ("cat", "cat"))[2] == "several classes have the same name: cat"


def test_column_of_clients_is_integers_or_text() -> None:
    column = read_column("label", [("a", _table([3, 4])), ("b", _table([5]))])
    assert (column.array(slice(1)).tolist(), column.array(slice(1, None)).tolist()) == ([3, 4], [5])
    assert np.issubdtype(Column((["ann", "bob"],)).array(slice(None)).dtype, np.str_)
    with pytest.raises(UserError, match="a has no column 'writer': choose one of label"):
        read_column("writer", [("a", _table([1]))])
