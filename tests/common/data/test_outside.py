"""Sets of a function that `data.name` names: read as any other set, or refused with the reason."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import DataConfig, load
from common.data.arrays import _fingerprint, _load
from common.data.fingerprint import look_again
from common.data.outside import code_digest
from common.errors import UserError

README = Path(__file__).resolve().parents[3] / "common" / "data" / "README.md"
HEAD = """
import io
from pathlib import Path
import numpy as np
from PIL import Image
from common.data.raw import RawSet, RawSplit

def grey(number):
    return np.full((4, 6), number, dtype=np.uint8)

def png(number):
    file = io.BytesIO()
    Image.fromarray(grey(number)).save(file, "PNG")
    return file.getvalue()

"""
SET = """
def made(config):
    samples = [grey(n) if n % 2 else png(n) for n in range(20)]
    return RawSet(RawSplit(samples, np.arange(20) % 2), None, ("even", "odd"), ("from a function",))
"""
NAME = "mine_set:made"


@pytest.fixture
def mine(plugin):
    """Make the module `mine_set` with this body; the process starts anew."""

    def make(body=SET):
        plugin("mine_set", HEAD + body)
        _load.cache_clear()
        code_digest.cache_clear()

    return make


def test_set_is_decoded_and_split_as_any_other(mine, tmp_path):
    mine()
    for cache in (None, tmp_path):
        data = load(DataConfig(name=NAME), cache)
        assert data.classes == ("even", "odd")
        assert data.input_shape == (1, 4, 6)
        assert (len(data.train), len(data.test)) == (16, 4)
        assert torch.equal(data.train.inputs[:, 0, 0, 0] % 2, data.train.labels.to(torch.uint8))
        assert data.train.inputs.dtype == torch.uint8
        assert "from a function" in data.notes
        assert len(data.digest) == 64
    assert len(load(DataConfig(name=NAME, limit=5), tmp_path).train) == 5
    assert load(DataConfig(name=NAME, image_size=8), tmp_path).input_shape == (1, 8, 8)
    assert len(load(DataConfig(name=NAME, client_test=0.2), tmp_path).train) == 20


def test_function_gets_the_section_and_its_splits_count(mine, tmp_path):
    mine(
        "def made(config):\n"
        "    writers = np.array(['a', config.column])\n"
        "    one = RawSplit(np.stack([grey(1), grey(2)]), np.array([0, 1], dtype=np.int32), writers)\n"
        "    other = RawSplit([grey(len(config.root)), grey(9)], [0, 1])\n"
        "    return RawSet(one, other, ['x', 'y'], validation=other)\n"
    )
    data = load(DataConfig(name=NAME, root=str(tmp_path), partitioner="natural", column="writer"), None)
    assert data.natural.tolist() == ["a", "writer"]
    assert data.test.inputs[0, 0, 0, 0] == len(str(tmp_path))
    assert len(data.validation) == 2
    assert data.classes == ("x", "y")


def test_colours_stay(mine):
    mine(
        "def made(config):\n    samples = [np.full((4, 4, 3), (n, 2, 3), dtype=np.uint8) for n in range(10)]\n"
        "    return RawSet(RawSplit(samples, np.arange(10) % 2), None, ('a', 'b'))\n"
    )
    data = load(DataConfig(name=NAME), None)
    assert data.input_shape == (3, 4, 4)
    assert data.train.inputs[0, 1:, 0, 0].tolist() == [2, 3]


def test_cached_set_is_made_once_until_code_or_files_change(mine, tmp_path):
    calls, root, cache = tmp_path / "calls", tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    body = f"def made(config):\n    open({str(calls)!r}, 'a').write('x')\n" + SET.split("\n", 2)[2]

    def read():
        _load.cache_clear()
        look_again()
        load(DataConfig(name=NAME, root=str(root)), cache)
        return len(calls.read_text())

    mine(body)
    assert [read(), read()] == [1, 1]
    (root / "more.txt").write_text("a file of the function's")
    assert [read(), read()] == [2, 2]
    mine(body + "\n# another version\n")
    assert [read(), read()] == [3, 3]


def test_files_below_count_where_a_table_lies_on_top(mine, tmp_path):
    mine()
    (tmp_path / "below").mkdir()
    (tmp_path / "train.parquet").touch()
    before = _fingerprint(DataConfig(name=NAME, root=str(tmp_path)))
    (tmp_path / "below" / "more.txt").write_text("a file of the function's")
    look_again()
    assert _fingerprint(DataConfig(name=NAME, root=str(tmp_path))) != before


def test_code_of_a_whole_package_counts(monkeypatch, tmp_path):
    package = tmp_path / "mine_sets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sets.py").write_text("def made(config): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EARLYBLOOM_PLUGINS", "mine_sets")
    digests = []
    for text in ("", "A = 1\n", "A = 2\n"):
        (package / "helper.py").write_text(text)
        code_digest.cache_clear()
        digests.append(code_digest("mine_sets.sets:made"))
    assert len({*digests}) == 3


def ret(train, classes="('a', 'b')", test="None"):
    return f"def made(config):\n    return RawSet({train}, {test}, {classes})\n"


TWO = "RawSplit([grey(1), grey(2)], np.array([0, 1]))"
REFUSED = {
    "error": ("def made(config):\n    return 1 / 0\n", "'mine_set:made' fails: ZeroDivisionError: division by zero"),
    "type": ("def made(config):\n    return [1, 2]\n", r"it returns list, must return common\.data\.raw\.RawSet"),
    "split": (ret("[1, 2]"), "its train split is list, must be"),
    "classes": (ret(TWO, "('a', 'a')"), r"its classes are \('a', 'a'\), must be distinct names"),
    "class names": (ret(TWO, "(0, 1)"), r"its classes are \(0, 1\), must be distinct names"),
    "no classes": (ret(TWO, "()"), r"its classes are \(\)"),
    "label": (ret("RawSplit([grey(1), grey(2)], np.array([0, 2]))"), "has the label 2, but 2 classes, numbered from 0"),
    "negative": (ret("RawSplit([grey(1), grey(2)], np.array([0, -1]))"), "has the label -1"),
    "labels": (ret("RawSplit([grey(1), grey(2)], np.array([0]))"), r"2 samples and int64 labels of shape \(1,\)"),
    "float labels": (ret("RawSplit([grey(1), grey(2)], np.array([0.0, 1.0]))"), "float64 labels"),
    "test split": (ret(TWO, test="RawSplit([grey(1)], np.array([5]))"), "its test split has the label 5"),
    "samples": (ret("RawSplit('ab', np.array([0, 1]))"), "its train samples are str, must be a list"),
    "dtype": (ret("RawSplit([grey(1) / 2.0, grey(2)], np.array([0, 1]))"), r"sample 0 is float64 of shape \(4, 6\)"),
    "shape": (ret("RawSplit([grey(1), grey(2)[None]], np.array([0, 1]))"), r"sample 1 is uint8 of shape \(1, 4, 6\)"),
    "texts": (ret("RawSplit(['good', 'bad'], np.array([0, 1]))"), "sample 0 is a text: .* set data.name to text"),
    "objects": (ret("RawSplit([1, 2], np.array([0, 1]))"), "sample 0 is int, must be a file's bytes"),
    "natural": (
        ret("RawSplit([grey(1), grey(2)], np.array([0, 1]), np.array(['a']))"),
        r"\(1,\) natural clients for 2",
    ),
    "empty": (ret("RawSplit([], np.array([]))"), "has no training samples"),
    "damaged": (
        ret("RawSplit([b'no image', *map(grey, range(9))], np.arange(10) % 2)"),
        "0 cannot be read as an image",
    ),
    "one colour": (ret("RawSplit([grey(3)] * 10, np.arange(10) % 2)"), "nothing can be learnt"),
}


@pytest.mark.parametrize(("body", "message"), REFUSED.values(), ids=REFUSED)
def test_function_that_makes_no_set_is_refused(mine, body, message, tmp_path):
    mine(body)
    with pytest.raises(UserError, match=message):
        load(DataConfig(name=NAME), tmp_path)


def test_damaged_samples_are_left_out_on_request(mine):
    mine(ret("RawSplit([b'no image', *[grey(n) for n in range(19)]], np.arange(20) % 2)"))
    data = load(DataConfig(name=NAME, skip_damaged=True), None)
    assert len(data.train) + len(data.test) == 19
    assert any("left out: 1 image" in note for note in data.notes)


def test_module_that_is_not_allowed_is_refused(mine, monkeypatch):
    mine()
    monkeypatch.setenv("EARLYBLOOM_PLUGINS", "")
    with pytest.raises(UserError, match=r"may not import 'mine_set' for data\.name 'mine_set:made'"):
        load(DataConfig(name=NAME), None)


def test_readme_set_is_read(plugin, tmp_path):
    (body,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    plugin("mine_readme", body)
    x, y = np.arange(9 * 16, dtype=np.uint8).reshape(9, 4, 4), np.arange(9) % 3
    np.savez(tmp_path / "letters.npz", train_x=x, train_y=y, test_x=x[:3], test_y=y[:3])
    data = load(DataConfig(name="mine_readme:letters", root=str(tmp_path)), None)
    assert torch.equal(data.train.inputs[:, 0], torch.from_numpy(x))
    assert (data.classes, len(data.test)) == (("a", "b", "c"), 3)


def test_arrays_of_numpy_are_samples(mine):
    mine("def made(config):\n    x = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)\n"
         "    return RawSet(RawSplit(x, np.arange(20) % 2), None, ('a', 'b'))\n")  # fmt: skip
    data = load(DataConfig(name=NAME), None)
    assert len(data.train) == 16
    assert data.input_shape == (1, 4, 4)
