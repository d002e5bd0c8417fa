"""The label column of a set's tables -> class names and class numbers."""

from __future__ import annotations

import unicodedata
from collections import Counter
from decimal import Decimal, InvalidOperation

import numpy as np
from numpy.typing import NDArray

from common.data.columns import Column, Value
from common.data.support import listed
from common.errors import UserError

UNLABELLED = -1  # in sets of the Hugging Face hub
SIGNS = {-1, 1}  # the two classes of sets for support vector machines
NONE = "None"


def number_labels(
    name: str, column: Column, train: int, names: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], list[NDArray[np.int64]], tuple[str, ...]]:
    """Return class names, each table's class numbers and notes.

    Without given names every value is a class, in sorted order: labels 1 to K are K classes, and so are any K numbers.

    Args:
        name: the column's.
        column: its values, those of the training tables first.
        train: the number of training tables; the others are for testing.
        names: class names in the order of integer labels from 0; () if the source has none.
        where: the source's name in an error.

    Raises:
        UserError: labels without a name, negative labels, and test labels that no training sample has.
    """
    counts = [
        Counter(value for part in parts for value in part) for parts in (column.values[:train], column.values[train:])
    ]
    whole = counts[0] + counts[1]
    named = bool(names) and all(isinstance(value, int) and not isinstance(value, bool) for value in whole)
    values: list[Value] = list(range(len(names))) if named else sorted(whole)
    _refuse_negative(name, whole, where)
    if named and (unnamed := sorted(set(whole) - set(values))):
        raise UserError(
            f"{where}: column {name!r} holds labels from {unnamed[0]} to {unnamed[-1]}, but the set has "
            f"{len(names)} classes: name another column in data.label"
        )
    classes = tuple(unicodedata.normalize("NFC", text) for text in names) if named else tuple(map(str, values))
    if unseen := sorted(set(counts[1]) - set(counts[0])):
        texts = [f"{classes[values.index(value)]} ({counts[1][value]})" for value in unseen]
        raise UserError(
            f"{where}: column {name!r} of the test samples has labels that no training sample has ({listed(texts)}): "
            f"add training samples of these classes, or remove the test samples"
        )
    position = {value: number for number, value in enumerate(values)}
    numbers = [np.asarray([position[value] for value in part], dtype=np.int64) for part in column.values]
    return classes, numbers, (*column.notes, *_notes(name, classes, whole, where))


def _refuse_negative(name: str, counts: Counter[Value], where: str) -> None:
    negative = {value: count for value, count in counts.items() if not isinstance(value, str) and value < 0}
    if negative and set(counts) != SIGNS:
        found = listed([str(value) for value in sorted(negative)])
        meaning = ", which usually means unlabelled" if UNLABELLED in negative else ""
        raise UserError(
            f"{where}: {sum(negative.values())} labels of column {name!r} are negative ({found})"
            f"{meaning}: remove these rows, or number the classes from 0"
        )


def _notes(name: str, classes: tuple[str, ...], counts: Counter[Value], where: str) -> list[str]:
    notes, folded, spelled = list[str](), dict[str, str](), dict[Decimal, str]()
    for text in classes:
        if (other := folded.setdefault(text.casefold(), text)) != text:
            notes.append(f"column {name!r}: {other!r} and {text!r} differ only in upper and lower case, and are two")
        number = _number(text)
        if number is not None and (other := spelled.setdefault(number, text)) != text:
            raise UserError(
                f"{where}: column {name!r} holds the texts {other!r} and {text!r}, which are one number: spell it alike"
            )
    if len(set(classes)) < len(classes):
        twice = sorted(text for text, times in Counter(classes).items() if times > 1)
        notes.append(f"several classes have the same name: {listed(twice)}")
    if 0 < len(spelled) < len(classes):
        numbers = listed([text for text in classes if _number(text) is not None])
        notes.append(f"column {name!r}: some classes are numbers ({numbers}) and the others names")
    if NONE in classes and counts[NONE]:
        notes.append(f"column {name!r}: {NONE!r} counts as a class ({counts[NONE]} samples), not as a missing value")
    return notes


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
