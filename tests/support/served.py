"""Real processes that serve students, and what processes say first."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from strategies.distree.model.stored import student_file


@dataclass(frozen=True)
class Served:
    """Where students answer."""

    arguments: list[str]
    """What `python -m server infer` takes to ask them."""
    processes: dict[int, subprocess.Popen[str]]


def said(process: "subprocess.Popen[str]") -> str:
    """Return the next line that a process prints; if it ends without one, fail with what became of it."""
    assert process.stdout
    line = process.stdout.readline()
    # what it wrote on stderr is in pytest's report of the test, or of its set-up
    assert line, f"it ended with {process.wait(60)}, see its last words on stderr: {process.args}"
    return line


@contextmanager
def served(folder: Path, extra: Sequence[str] = ()) -> Iterator[Served]:
    """Serve the students 1 and 2 of a folder; `extra`: further arguments of the second."""
    token, found = folder / "token", Served([], {})
    with ExitStack() as stack:
        for number in (1, 2):
            command = [
                sys.executable, "-m", "client", "serve-student", "--address", "127.0.0.1:0", "--token-file", str(token),
                "--model", str(student_file(folder, number)), *(extra if number == 2 else ()),
            ]  # fmt: skip
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            )
            stack.callback(process.kill)
            found.processes[number] = process
        for number, process in found.processes.items():
            found.arguments.extend(["--student", f"{number}={said(process).split()[-1]}"])
        found.arguments.extend(["--token-file", str(token)])
        yield found
