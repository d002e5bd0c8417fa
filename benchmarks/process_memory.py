"""How much memory this process takes; without torch, for processes that must not import it."""

from pathlib import Path


def memory(field: str) -> int:
    """Return the bytes that this process holds (VmRSS), or held at most (VmHWM).

    `getrusage` also counts those of its parent before `exec`.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
