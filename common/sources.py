"""The app's own version: a digest of its packages' sources, and the name of the machine that has them."""

import hashlib
import platform
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("client", "common", "server", "strategies")


@cache
def digest(root: Path = ROOT) -> str:
    """Return a digest of all sources below `root`, the same wherever the same version is installed."""
    total = hashlib.sha256()
    for file in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        total.update(f"{file.relative_to(root).as_posix()} {file.stat().st_size}\n".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def machine() -> str:
    """Return this machine's name."""
    return platform.node()
