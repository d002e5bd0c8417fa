"""Stands in for Flower's command `flwr-clientapp`, which spends a second on importing Flower before every message.

A process stays beside the SuperNode with Flower imported and nothing of any app. The stand-in, which is first on the
SuperNode's PATH (see `environment`), hands its arguments to that process, which forks a process to run Flower's own
function. If this fails, the stand-in becomes Flower's command.
"""

import json
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

ROOT = str(Path(__file__).resolve().parents[2])
if __name__ == "__main__":  # run by its path, so that no more than this is imported
    sys.path.insert(0, ROOT)

from client.warm.listener import Address, Listener  # noqa: E402

COMMAND = "flwr-clientapp"
PACED = ("flower-supernode", "flower-superexec")  # commands that `pace` runs
IDLE = 900.0  # seconds without a message after which the process leaves
PATIENCE = 5.0  # seconds to wait for the arguments
LIMIT = 2**16  # bytes of arguments
HOLD = 0.25  # seconds: a request for objects that the SuperNode is still fetching has to wait for a second
POLL = 0.1  # seconds between two polls for messages by Flower's SuperExec, whose default is 1


def environment(env: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return an environment in which a SuperNode starts messages fast; the stand-ins are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).resolve()
    # -I -S: neither the user's settings nor installed packages, which would take longer than all the rest
    _write_command(folder / COMMAND, f'-I -S "{here}"')
    for name in PACED:
        _write_command(folder / name, f'-P "{here.with_name("pace.py")}" {name}')
    path = os.pathsep.join(filter(None, [str(folder), env.get("PATH")]))
    return {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(POLL), **env, "PATH": path}


def _write_command(file: Path, python: str) -> None:
    command = file.with_name(f".{file.name}.{os.getpid()}")
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {python} "$@"\n')
    command.chmod(0o755)
    command.replace(file)  # another device's SuperNode may run it at this moment


def ask(arguments: list[str]) -> None:
    """Have Flower's function run with these arguments; raises `ValueError` or `OSError` if that fails."""
    parent = arguments[arguments.index("--parent-pid") + 1]
    command = [sys.executable, "-P", __file__, "--serve", parent]
    with Address.named(f"flower-{int(parent)}").connect(command, os.environ) as connection:
        connection.sendall(json.dumps(arguments).encode() + b"\n")
        if connection.recv(1) != b"+":
            raise ConnectionError("no process accepted the arguments")


def serve(listener: Listener) -> None:
    """Fork a process for each message."""
    from flwr.supernode.cli import flwr_clientapp

    sys.path.remove(ROOT)

    def handle(connection: socket.socket) -> None:
        _reap()
        connection.settimeout(PATIENCE)
        try:
            arguments = [str(word) for word in json.loads(connection.makefile().readline(LIMIT))]
        except (OSError, ValueError, TypeError) as error:
            print(f"flower_shim rejected a connection: {error}", file=sys.stderr)
            return
        if os.fork() == 0:
            listener.sock.close()
            connection.sendall(b"+")
            connection.close()
            _become(arguments, flwr_clientapp)

    listener.serve(handle)


def _reap() -> None:
    """Collect processes that have ended, as Flower does: when the next one starts."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _become(arguments: list[str], function: Callable[[], None]) -> NoReturn:
    """Run Flower's function as its command would."""
    code: object = 1
    try:
        random.seed()
        # the app's packages have the same names as those that this process has imported to listen
        for name in [name for name in sys.modules if name.partition(".")[0] == "client"]:
            del sys.modules[name]
        sys.argv = [str(Path(sys.executable).parent / COMMAND), *arguments]
        time.sleep(HOLD)
        function()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def main() -> None:
    """Run the stand-in, or with `--serve` the process that it asks."""
    words = sys.argv[1:]
    if words[:1] == ["--serve"]:
        _, parent, descriptor, path = words
        serve(Listener.inherited(descriptor, path, int(parent), IDLE))
        return
    try:
        ask(words)
    except (OSError, ValueError, IndexError) as error:
        print(f"starting Flower's own {COMMAND}: {error}", file=sys.stderr)
        real = str(Path(sys.executable).parent / COMMAND)
        os.execv(real, [real, *words])


if __name__ == "__main__":
    main()
