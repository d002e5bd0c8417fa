"""What a folder holds, by names, sizes and times: a process that stays sees by it that files have changed."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=64)
def fingerprint(folder: str, *, deep: bool = True) -> str:
    """Return a digest that differs once a visible file has been added, removed or changed.

    Later calls in this process return the same digest until `look_again`: looking at 50,000 files takes half a second,
    too long for every client of a round.

    Args:
        folder: linked folders below it are followed; nothing is read if it does not exist.
        deep: whether files in folders below it count too.
    """
    root, total, seen = os.path.realpath(folder), hashlib.sha256(), set[tuple[int, int]]()
    for path, folders, files in os.walk(root, followlinks=True):
        status = Path(path).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep else []
        visible = sorted(name for name in files if not name.startswith("."))
        total.update(os.fsencode("".join(f"{path}/{name} {_facts(f'{path}/{name}')}\n" for name in visible)))
    return total.hexdigest()


def look_again() -> None:
    """Look at every folder anew when it is next used: called at the start of a run, on the server and on each node."""
    fingerprint.cache_clear()


def _facts(file: str) -> str:
    try:
        status = Path(file).stat()
    except OSError:  # a link to nothing
        return "absent"
    # the time of change differs even where a copy keeps the time of modification
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
