"""The socket of a process that stays beside a SuperNode, in a folder that only this user can enter.

A client that finds no process there starts one. Standard library only: `flower_shim` imports it before every message.
"""

import fcntl
import os
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Protocol

BACKLOG = 8
PAUSE = 1.0  # seconds between two checks whether to leave
LONGEST = 107 - len("/worker-0123456789abcdef.sock")  # bytes of a folder's path: a socket's has 107 at most


class Source(Protocol):
    """What a process serves beside its socket."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when `handle` has work."""

    def handle(self) -> None:
        """Do one piece of work."""

    def busy(self) -> bool:
        """Return whether the process must stay."""


@dataclass(frozen=True)
class Address:
    """The client's side: where the process listens, and how to reach it."""

    path: Path  # short: a socket's path may not exceed 100 bytes

    @classmethod
    def named(cls, name: str) -> "Address":
        """Return the address of this name; raises `OSError` if its folder cannot be private."""
        return cls(_private_folder() / f"{name}.sock")

    def connect(self, command: Sequence[str], env: Mapping[str, str]) -> socket.socket:
        """Return a connection; if no process listens, start this command with the socket's descriptor and path added.

        The connection waits in the socket's queue while the new process gets ready. That process stays in this
        process's group, so that what ends the node's processes ends it, too.
        """
        with self.lock():
            connection = socket.socket(socket.AF_UNIX)
            try:
                try:
                    connection.connect(str(self.path))
                except (FileNotFoundError, ConnectionRefusedError):
                    self._start(command, env)
                    connection.connect(str(self.path))
            except BaseException:
                connection.close()
                raise
            return connection

    def inode(self) -> int:
        """Return the number of the socket's file; 0 if there is none."""
        try:
            return self.path.stat().st_ino
        except FileNotFoundError:
            return 0

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from connecting, starting or leaving meanwhile."""
        with (self.path.parent / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _start(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.path))
            self.path.chmod(0o600)
            listening.listen(BACKLOG)
            descriptor = listening.fileno()
            subprocess.Popen(
                [*command, str(descriptor), str(self.path)],
                env=env, stdin=subprocess.DEVNULL, pass_fds=[descriptor],
            )  # fmt: skip


@dataclass
class Listener:
    """The process's side: serves one connection after another until it is time to leave."""

    sock: socket.socket
    address: Address
    parent: int  # process beside which it stays
    idle: float  # seconds without a connection after which it leaves

    def __post_init__(self) -> None:
        """Remember which file is this process's socket."""
        self._inode = self.address.inode()

    @classmethod
    def inherited(cls, descriptor: str, path: str, parent: int, idle: float) -> "Listener":
        """Return a listener on the socket that the starting process opened."""
        return cls(socket.socket(fileno=int(descriptor)), Address(Path(path)), parent, idle)

    def serve(self, handle: Callable[[socket.socket], None], other: "Source | None" = None) -> None:
        """Handle connections until `leave` is called, none comes for `idle` seconds, or the parent process ends.

        Also handles what comes from the other source, which keeps the process while it is busy.
        """
        last = time.monotonic()
        sources: list[socket.socket | Source] = [self.sock, *([other] if other else [])]
        while self.sock.fileno() >= 0:
            ready = select(sources, [], [], PAUSE)[0]
            if other and other in ready:
                other.handle()
            if self.sock in ready:
                connection, _ = self.sock.accept()
                with connection:
                    handle(connection)
            if ready or (other and other.busy()):
                last = time.monotonic()
            if not ready and (not alive(self.parent) or time.monotonic() - last > self.idle):
                self.leave(unless_pending=True)

    def leave(self, *, unless_pending: bool = False) -> None:
        """Stop listening for good; with `unless_pending` only if no connection waits."""
        with suppress(FileNotFoundError), self.address.lock():  # the folder may have been cleaned away
            if unless_pending and select([self.sock], [], [], 0)[0]:
                return
            if self.address.inode() == self._inode:  # then another process may listen there
                self.address.path.unlink(missing_ok=True)
        self.sock.close()


def alive(process: int) -> bool:
    """Return whether a process runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _private_folder() -> Path:
    name = f"earlybloom-{os.getuid()}"
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / name
    if len(os.fsencode(folder)) > LONGEST:
        folder = Path("/tmp") / name
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder that only this user can enter (mode 700)")
    return folder
