import gc
import io
import pickle
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from common.messages.npy import read_npy

ARRAYS = [
    np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)), np.array([True]),
    np.zeros(0, np.float16), np.zeros((0, 3)), np.array(3), np.array([np.nan, -np.inf], np.float32),
]  # fmt: skip


def written(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def announcing(text: str, body: bytes = bytes(24)) -> bytes:
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
def test_arrays_of_numbers_are_read_back(array):
    got = read_npy(written(array))
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert np.array_equal(got, array, equal_nan=array.dtype.kind == "f")


def test_array_is_a_read_only_view():
    data = written(np.arange(3.0))
    assert not read_npy(data).flags.writeable
    assert np.shares_memory(read_npy(data), np.frombuffer(data, np.uint8))


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


GOOD = "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        pickle.dumps(Bomb()),
        written(np.array([Bomb()], dtype=object)),
        written(np.array(["text"])),
        written(np.zeros(2, complex)),
        written(np.zeros(2, [("a", "f4")])),
        written(np.zeros(3))[:-1],
        written(np.zeros(3)) + b"x",
        b"\x93NUMPY\x02\x00" + announcing(GOOD)[8:],
        announcing(GOOD.replace("(3,)", f"({10**13},)")),
        announcing(GOOD.replace("(3,)", f"({2**32}, {2**32})")),
        announcing(GOOD.replace("(3,)", "(-3, -1)")),
        announcing(GOOD.replace("(3,)", "(3.0,)")),
        announcing(GOOD.replace("<f8", "O")),
        announcing(GOOD.replace("<f8", "V0")),
        announcing(GOOD.replace("(3,)", "-" * 60 + "3")),
        announcing(GOOD.replace("(3,)", "(3)")),
        announcing(GOOD.replace("<f8", "<f16")),
        announcing(GOOD.replace("<f8", "<f1")),
        announcing(GOOD.replace("(3,)", "(" + "9" * 5000 + ",)")),
        announcing(GOOD.replace("(3,)", "(" + "1, " * 100 + "3)")),
        announcing(GOOD + "(" * 2000),
        announcing(GOOD)[:9],
        announcing("__import__('os')"),
    ],
)
def test_other_content_raises_value_error(data):
    assert read_npy(announcing(GOOD)).shape == (3,)
    with pytest.raises(ValueError):
        read_npy(data)


def test_announced_size_takes_no_memory():
    data = announcing(GOOD.replace("(3,)", f"({10**8},)"))
    tracemalloc.start()
    with pytest.raises(ValueError, match="an array of 24 bytes announces shape"):
        read_npy(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_threads_read_at_the_same_time():
    data = [written(np.full((2, 3), number, np.float32)) for number in range(3)]

    class Collected:
        """Its collection runs Python code, where threads switch: also within Python's parser."""

        def __del__(self):
            for _ in range(20):
                pass

    def read(number):
        for _ in range(10_000):
            cycle = Collected()
            cycle.itself = cycle
            assert read_npy(data[number])[0, 0] == number

    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5, 2, 2)
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(read, range(3)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
