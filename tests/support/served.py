"""Real processes that serve students, and reading the lines that processes print."""

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
    """Running student processes by number."""

    arguments: list[str]  # options of `python -m server infer` that reach them
    processes: dict[int, subprocess.Popen[str]]


def read_line(process: "subprocess.Popen[str]") -> str:
    """Return the next line that a process prints; fail with its exit code if it ends without one."""
    assert process.stdout
    line = process.stdout.readline()
    # pytest's report of the test or its set-up shows the stderr
    assert line, f"the process ended with exit code {process.wait(60)} (see stderr): {process.args}"
    return line


@contextmanager
def served(folder: Path, extra: Sequence[str] = ()) -> Iterator[Served]:
    """Serve students 1 and 2 of a folder; `extra`: more arguments for student 2."""
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
            found.arguments.extend(["--student", f"{number}={read_line(process).split()[-1]}"])
        found.arguments.extend(["--token-file", str(token)])
        yield found
