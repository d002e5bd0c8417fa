"""The embedded digits, read without scikit-learn's code."""

from importlib.util import find_spec

import numpy as np
import pytest

from common.data import support
from common.data.digits import read_digits
from common.errors import UserError


def test_digits_are_those_of_scikit_learn() -> None:
    expected = pytest.importorskip("sklearn.datasets").load_digits()
    found = read_digits()
    assert np.array_equal(np.stack(found.train.samples), np.rint(expected.images * (255 / 16)).astype(np.uint8))
    assert np.array_equal(found.train.labels, expected.target)
    assert found.classes == tuple(map(str, expected.target_names))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    with pytest.raises(UserError, match=r"'digits' needs the package 'sklearn', .*: pip install -e '\.\[simulation\]'"):
        read_digits()
