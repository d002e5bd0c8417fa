"""How much memory a process may still take, in a container too."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import psutil


class ControlGroup(NamedTuple):
    """Where a version of Linux's control groups keeps a container's memory, in bytes."""

    folder: Path
    limit: str
    used: str
    cache: str  # key in memory.stat of what can be taken back


ROOT = Path("/sys/fs/cgroup")
CONTROL_GROUPS = (
    ControlGroup(ROOT, "memory.max", "memory.current", "inactive_file"),
    ControlGroup(ROOT / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory() -> float:
    """Return the bytes that this process may still take: of the machine's, or of its container's limit if that is less.

    Both versions of Linux's control groups are read; the page cache in them counts as available, as on the machine.
    """
    free = float(psutil.virtual_memory().available)
    for group in CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):  # absent, or "max": no limit
            limit, used = (float((group.folder / name).read_text()) for name in (group.limit, group.used))
            stat = dict(line.split() for line in (group.folder / "memory.stat").read_text().splitlines())
            free = min(free, limit - used + float(stat[group.cache]))
    return max(free, 0.0)
