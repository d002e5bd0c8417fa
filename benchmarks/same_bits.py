"""Show that a refactor changed nothing: `python -m benchmarks.same_bits COMMIT`.

Every method of the registry runs for two rounds on small data on the in-process grid, in this tree and in a work tree
of COMMIT, each in a process of its own. Final weights and everything that clients keep must be equal bit for bit,
the rounds' metrics to the last digit. What the clock decides (seconds) and what the names on the wire decide (bytes)
is left out. Exits with 1 if anything differs, or is missing on one side.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
RECORDER = Path(__file__).with_name("same_bits_record.py")
# Names that a refactor changed: as older commits write them -> as this tree does, "" if it no longer does.
RENAMED = {"by_depth": "by_part", "half": ""}
ADDED = ("format", "server_half")  # what older commits do not write
SHOWN = 5  # differences of a method that are printed


@contextmanager
def work_tree(commit: str) -> Iterator[Path]:
    """Check a commit out beside this tree, for as long as the block runs; raises `SystemExit` for an unknown one."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        done = subprocess.run(
            ["git", "-C", str(PROJECT), "worktree", "add", "--detach", str(tree), commit],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"error: {commit!r} cannot be checked out: {done.stderr.strip()}")
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", str(PROJECT), "worktree", "remove", "--force", str(tree)], check=False)


def record(tree: Path, methods: str) -> dict[str, dict[str, Any]]:
    """Run the methods with the code of a tree; return method -> name of a value -> value, or a tensor's digest."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        # -P: this file's folder must not provide modules; the tree does
        command = [sys.executable, "-P", str(RECORDER), str(out), *methods.split()]
        env = os.environ | {"PYTHONPATH": str(tree), "FLWR_HOME": f"{folder}/.flwr", "FLWR_TELEMETRY_ENABLED": "0"}
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"error: the methods do not run in {tree}:\n{done.stderr[-4000:]}")
        found: dict[str, dict[str, Any]] = json.loads(out.read_text())
        return found


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return values under the names that this tree gives them; a name is a part of a key between two slashes."""
    moved = {"/".join(names.get(part, part) for part in key.split("/")): value for key, value in values.items()}
    return {key: value for key, value in moved.items() if "" not in key.split("/")}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for every value that differs or that only one side has."""
    lines = [f"{key}: only before" for key in sorted(before.keys() - after.keys())]
    lines += [f"{key}: only now" for key in sorted(after.keys() - before.keys())]
    common = sorted(before.keys() & after.keys())
    return lines + [f"{key}: {before[key]} -> {after[key]}" for key in common if before[key] != after[key]]


def compare(before: Mapping[str, dict[str, Any]], after: Mapping[str, dict[str, Any]]) -> bool:
    """Print a line per method and its first differences; return whether all methods that were there are equal."""
    equal = True
    for method in sorted(before.keys() | after.keys()):
        if method not in before:
            print(f"{method:28} new: nothing to compare it with")
            continue
        old, new = (renamed(side.get(method, {}), RENAMED | dict.fromkeys(ADDED, "")) for side in (before, after))
        wrong = differences(old, new)
        counts = ", ".join(
            f"{sum(key.startswith(f'{kind}/') for key in new)} {kind}" for kind in ("weights", "metrics", "kept")
        )
        print(f"{method:28} {'DIFFERS' if wrong else 'equal'}: {counts}", flush=True)
        for line in wrong[:SHOWN]:
            print(f"    {line[:300]}")
        if len(wrong) > SHOWN:
            print(f"    and {len(wrong) - SHOWN} more")
        equal &= not wrong
    return equal


def main() -> int:
    """Compare this tree with a commit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_bits", description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="what this tree is compared with")
    parser.add_argument("--methods", default="", help="names between blanks (default: all of the registry)")
    options = parser.parse_args()
    with work_tree(options.commit) as tree:
        return 0 if compare(record(tree, options.methods), record(PROJECT, options.methods)) else 1


if __name__ == "__main__":
    sys.exit(main())
