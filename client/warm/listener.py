"""Where a process that stays beside a SuperNode is found: a socket in a folder that only this user can enter.

Whoever finds nobody there starts one. Standard library only: `spawner` imports it before every message.
"""

import fcntl
import os
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select

BACKLOG = 8
PAUSE = 1.0  # seconds between two looks at whether to leave


@dataclass(frozen=True)
class Door:
    """The outside: how to get in."""

    path: Path  # a short one: a socket's may not exceed 100 bytes

    @classmethod
    def named(cls, name: str) -> "Door":
        """Return the door of this name; raises `OSError` if there cannot be one."""
        return cls(_private_folder() / f"{name}.sock")

    def enter(self, command: Sequence[str], env: Mapping[str, str]) -> socket.socket:
        """Return a connection; if nobody is there, start this command, with socket, path and parent as arguments.

        Whoever connects waits in the queue while the process that was started gets ready. It stays in this process's
        group, so that what ends the node's processes ends it, too.
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

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep others from connecting, starting or leaving meanwhile."""
        with (self.path.parent / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _start(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            self.path.chmod(0o600)
            listener.listen(BACKLOG)
            descriptor = listener.fileno()
            subprocess.Popen(
                [*command, str(descriptor), str(self.path)],
                env=env, stdin=subprocess.DEVNULL, pass_fds=[descriptor],
            )  # fmt: skip


@dataclass
class Keeper:
    """The inside: lets in one after another until it is time to leave."""

    listener: socket.socket
    door: Door
    parent: int  # process beside which it stays
    idle: float  # seconds without anybody after which it leaves

    @classmethod
    def of(cls, descriptor: str, path: str, parent: int, idle: float) -> "Keeper":
        """Return the keeper of the socket that was handed down."""
        return cls(socket.socket(fileno=int(descriptor)), Door(Path(path)), parent, idle)

    def serve(self, admit: Callable[[socket.socket], None]) -> None:
        """Let in whoever comes until `leave` was called, nobody came for long, or the parent process has gone."""
        last = time.monotonic()
        while self.listener.fileno() >= 0:
            if select([self.listener], [], [], PAUSE)[0]:
                connection, _ = self.listener.accept()
                with connection:
                    admit(connection)
                last = time.monotonic()
            elif not _alive(self.parent) or time.monotonic() - last > self.idle:
                self.leave(unless_asked=True)

    def leave(self, *, unless_asked: bool = False) -> None:
        """Close the door for good; on request not if somebody came in this moment."""
        with self.door.lock():
            if unless_asked and select([self.listener], [], [], 0)[0]:
                return
            self.door.path.unlink(missing_ok=True)
            self.listener.close()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _private_folder() -> Path:
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"earlybloom-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder that only this user can enter (mode 700)")
    return folder
