"""The app's own files in a folder of their own, for a run: it does not change with the files that are worked on.

Flower looks at every file of the folder that it bundles. In a clone that is the virtual environment and all runs too,
which takes longer than all else until a run starts.
"""

import compileall
import fcntl
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError
from common.flower.processes import PROJECT

BESIDE = ("pyproject.toml", "LICENSE")
PREFIX = "earlybloom-app-"  # of a copy's name
UNLOCKED = 600.0  # seconds after which a copy without a lock counts as one whose process was killed


@contextmanager
def app_files(beside: Path, *, compiled: bool = False) -> Iterator[Path]:
    """Yield a folder below `beside` with a copy of the app; it goes at the end, and copies of killed processes before.

    With `compiled` it has Python's compiled files, too: otherwise every process that imports the copy compiles it.
    """
    description = PROJECT / "pyproject.toml"
    if not description.is_file():
        raise UserError(
            f"{PROJECT} is not the project's folder, of which a run takes a copy: install it with `pip install -e .` "
            "in a clone"
        )
    packages = tomllib.loads(description.read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    # Python writes a compiled file under a name that goes on before it has its own
    ignore = shutil.ignore_patterns("*.pyc.*" if compiled else "__pycache__")
    _remove_abandoned(beside)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=beside) as folder, _opened(Path(folder)) as lock:
        with suppress(OSError):  # a file system without locks, where no copy is removed either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for package in packages["packages"]:
            if compiled and not sys.dont_write_bytecode:
                compileall.compile_dir(PROJECT / package, quiet=2)  # only what has changed; a failure costs time alone
            shutil.copytree(PROJECT / package, Path(folder) / package, ignore=ignore)
        for name in BESIDE:
            shutil.copy(PROJECT / name, folder)
        yield Path(folder)


def _remove_abandoned(beside: Path) -> None:
    for folder in beside.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is locked, another user's, or gone
            if time.time() - folder.stat().st_mtime > UNLOCKED:
                with _opened(folder) as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Yield a folder's descriptor; its lock ends with this process, since no other process inherits it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
