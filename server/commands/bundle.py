"""The app's own files in a folder of their own, for `flwr run`.

Flower looks at every file of the folder that it bundles. In a clone that is the virtual environment and all runs too,
which takes longer than all else until a run starts.
"""

import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.flower.processes import PROJECT

BESIDE = ("pyproject.toml", "LICENSE")


@contextmanager
def app_files(beside: Path) -> Iterator[Path]:
    """Yield a folder below `beside` with a copy of the app; it goes at the end."""
    packages = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    with tempfile.TemporaryDirectory(prefix="app-", dir=beside) as folder:
        for package in packages["packages"]:
            shutil.copytree(PROJECT / package, Path(folder) / package, ignore=shutil.ignore_patterns("__pycache__"))
        for name in BESIDE:
            shutil.copy(PROJECT / name, folder)
        yield Path(folder)
