"""Flower's processes: their environment, free ports, and child processes that end with this one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from common.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# a socket's path has 107 bytes at most, and Ray adds /ray/session_DATE_TIME_PROCESS/sockets/plasma_store, 68 of them
LONGEST_RAY = 39
GRACE = 7.0  # seconds that a child has to end before it is killed: less than the 10 s that Docker gives
AFTERWARDS = 2.0  # seconds that the processes which it leaves have
LOOK = 0.2  # seconds between two looks for a signal
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed, or ssh lost its connection

# Asks Linux for SIGTERM when the launcher dies (1: PR_SET_PDEATHSIG), then becomes the command if the launcher lives.
TIE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def flower_home(state: Path | None) -> Path:
    """Return Flower's home: in the user's folder `state`, else `$FLWR_HOME`, else in the project's folder."""
    if state:
        return state.absolute() / ".flwr"
    if known := os.environ.get("FLWR_HOME"):
        return Path(known).absolute()
    # packages that were installed elsewhere are where no user keeps files
    return (PROJECT if (PROJECT / "pyproject.toml").is_file() else Path.home()) / ".flwr"


def environment(home: Path) -> dict[str, str]:
    """Return the environment that every Flower process needs; `home` is Flower's home folder."""
    binaries = str(Path(sys.executable).parent)
    return (
        os.environ
        | _no_proxy()
        | _ray_folder()
        | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else every run installs its dependencies anew
            "RAY_ADDRESS": os.environ.get("RAY_ADDRESS") or "local",  # else Ray joins any cluster of the same user
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a share of a GPU sees none
            "RAY_DEDUP_LOGS": "0",
            "PYTHONIOENCODING": "utf-8",  # Flower prints what an ASCII terminal cannot show
            "PATH": binaries + os.pathsep + os.environ.get("PATH", ""),
        }
    )


def _no_proxy() -> dict[str, str]:
    """Return the variables by which a proxy is not asked for loopback, where Flower's processes talk to each other."""
    names = [name for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy") if os.environ.get(name)]
    found = {name: os.environ[name] for name in names} or {"no_proxy": ""}
    if "*" in found.values():
        return {}
    hosts = {name: [host.strip() for host in value.split(",") if host.strip()] for name, value in found.items()}
    return {name: ",".join(dict.fromkeys([*known, *LOOPBACK])) for name, known in hosts.items()}


def _ray_folder() -> dict[str, str]:
    """Return the variable that gives Ray a folder with a path short enough for its sockets, if TMPDIR is too long.

    Raises `UserError` where RAY_TMPDIR is too long itself.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR", "")
    if len(os.fsencode(folder)) <= LONGEST_RAY:
        return {}
    if os.environ.get("RAY_TMPDIR"):
        limit = f"{LONGEST_RAY} characters at most"
        raise UserError(f"RAY_TMPDIR is {folder}, too long for Ray's sockets: set it to a folder of {limit}, as /tmp")
    return {"RAY_TMPDIR": "/tmp"}


def check_free(host: str, port: int, option: str) -> None:
    """Raise `UserError`, which names the option to change, unless this process can listen there."""
    name = host.strip("[]")
    try:
        with socket.create_server((name, port), family=socket.AF_INET6 if ":" in name else socket.AF_INET):
            pass
    except OSError as error:
        raise UserError(f"cannot listen at {host}:{port}: {error.strerror or error}; give another {option}") from error


def free_port() -> int:
    """Return a loopback port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(host: str, port: int, process: "subprocess.Popen[bytes]", seconds: float = 120.0) -> bool:
    """Return whether a process starts to listen at the port within so many seconds and before it ends."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection((host, port), timeout=0.5).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False


def tied(command: Sequence[str]) -> Sequence[str]:
    """Return a command for a child that, on Linux, gets SIGTERM even when this process is killed (SIGKILL).

    Start it from the main thread: the child ends with the thread that started it.
    """
    return [sys.executable, "-ISc", TIE, str(os.getpid()), *command] if sys.platform == "linux" else command


class Child:
    """A running child process, and whether this process has got a signal to stop since."""

    def __init__(self, process: "subprocess.Popen[bytes]", stopped: Callable[[], bool]) -> None:
        self.process, self._stopped = process, stopped

    @property
    def stopped(self) -> bool:
        """Whether one of `SIGNALS` came, which was passed on to the child."""
        return self._stopped()

    def wait(self) -> int:
        """Return the child's exit code; 0 if it ended by a signal that was passed on, or had to be killed after one."""
        while (code := self.process.poll()) is None:
            if self.stopped:
                kill_after_grace(self.process)
            time.sleep(LOOK)  # `wait` with a timeout looks fifty times a second, as long as a device lives
        return 0 if self.stopped and code < 0 else code


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Turn the first of `SIGNALS` into a KeyboardInterrupt inside, so that children end with this process.

    After it only SIGINT interrupts: a process that ends with its parent may get SIGTERM twice. Inside another such
    block this one does nothing.
    """
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        yield
        return
    with _handled(SIGNALS, _interrupt):
        yield


def _interrupt(number: int, _: object) -> None:
    interrupt()


def interrupt() -> NoReturn:
    """Raise `KeyboardInterrupt` as the first signal inside `interrupted_by_signals` does."""
    for later in SIGNALS[1:]:
        signal.signal(later, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yield a list that collects `SIGNALS` while this block lasts, as a child would get them; they do nothing else."""
    noted: list[int] = []
    with _handled(SIGNALS, lambda number, _: noted.append(_first(number))):
        yield noted


@contextmanager
def child(
    command: Sequence[str], env: Mapping[str, str], folder: Path, noted: list[int] | None = None
) -> Iterator[Child]:
    """Run a process in a folder while this block lasts, and pass SIGINT and SIGTERM on to it, and SIGHUP as SIGTERM.

    The process has its own session: otherwise a terminal would send it Ctrl-C as well, and Flower does not end cleanly
    after a second one. Signals in `noted`, from `noted_signals`, came before the start and are passed on too.
    """
    started: list[subprocess.Popen[bytes]] = []
    noted = [] if noted is None else noted

    def pass_on(number: int, _: object) -> None:
        noted.append(passed := _first(number))
        for process in started:
            if process.poll() is None:
                process.send_signal(passed)

    # handled before the start: a signal during the start would end this process and leave the child running
    with _handled(SIGNALS, pass_on):
        process = subprocess.Popen(tied(command), cwd=folder, env=dict(env), start_new_session=True)
        started.append(process)
        try:
            for number in noted:
                process.send_signal(number)
            yield Child(process, lambda: bool(noted))
        finally:
            end(process)
            end_group(process.pid)


def _first(number: int) -> int:
    """Return the signal to pass on: SIGTERM for the first SIGHUP, since Flower ends cleanly only with SIGTERM."""
    if number != signal.SIGHUP:
        return number
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the shell sends one, and the system another when the shell ends
    return signal.SIGTERM


@contextmanager
def _handled(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    # `nohup` makes a process ignore SIGHUP, so that it outlives its terminal
    heard = [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def end(process: "subprocess.Popen[Any]") -> None:
    """Terminate a running process, and kill it if it does not end in time."""
    if process.poll() is None:
        process.terminate()
    kill_after_grace(process)


def kill_after_grace(process: "subprocess.Popen[Any]") -> None:
    """Wait for a process that is about to end, and kill it if it does not end in time."""
    try:
        process.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_group(group: int) -> None:
    """End what a child has started and left in its process group: workers, and processes of Flower's or Ray's."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        for _ in range(round(AFTERWARDS / LOOK)):
            os.killpg(group, 0)
            time.sleep(LOOK)
        os.killpg(group, signal.SIGKILL)
