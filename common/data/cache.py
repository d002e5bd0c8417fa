"""A folder per piece of work, written once by the first process and read by all."""

import glob
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from common.data.support import one_line
from common.errors import UserError

T = TypeVar("T")
ABANDONED = 24 * 3600.0  # seconds after which no process still fills a folder
Json = str | int | float | list["Json"] | tuple["Json", ...] | None


def content_key(kind: str, *parts: Json) -> str:
    """Return a folder name that changes with every part."""
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"{kind}-{digest[:32]}"


def cached(cache: Path, key: str, fill: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """Return read(cache / key), after fill(folder) has written that folder if it does not exist.

    The folder is filled under another name and renamed when complete, so that a reader never sees half of it. Of two
    processes that fill it at once, the later one uses the folder of the earlier one. A damaged folder is written anew.
    Raises `UserError` if the cache cannot be written.
    """
    folder = cache / key
    if folder.is_dir():
        try:
            return read(folder)
        except (OSError, ValueError, KeyError, EOFError):
            shutil.rmtree(folder, ignore_errors=True)
    draft = cache / f".{key}-{uuid4().hex}"
    try:
        draft.mkdir(parents=True)
        _remove_abandoned(cache, key)
        fill(draft)
        _publish(draft, folder)
    except OSError as error:
        raise UserError(
            f"prepared data cannot be written into {cache} ({one_line(error)}): free some space or use another folder"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return read(folder)


def _remove_abandoned(cache: Path, key: str) -> None:
    """Remove what processes that were killed while they filled this folder have left."""
    for draft in cache.glob(f".{glob.escape(key)}-*"):
        with suppress(FileNotFoundError):  # another process has removed or renamed it
            if time.time() - draft.stat().st_mtime > ABANDONED:
                shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was quicker: its folder holds the same
            raise


def write_rows(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], rows: Iterable[NDArray[np.generic]]
) -> None:
    """Write `rows` of one type one after another as a .npy of `shape`, without holding them all in memory.

    Fewer rows than announced are an array of so many rows.
    Plain writes instead of a memory map: a full disk is an OSError for a write and a crash for a memory map.
    """
    with path.open("wb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        number = 0
        for row in rows:
            file.write(row.tobytes())
            number += 1
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (number, *shape[1:])})  # of the same length
