"""Ray on this machine for all runs of a command: it starts while the first run's process starts, and runs join it.

Left to itself every run starts a Ray of its own, which takes some seconds at its start and some at its end.
"""

import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread, main_thread

from common.errors import UserError
from common.flower.processes import end, end_group, environment, free_port
from server.commands.cluster import LOCAL

LOG = "ray.log"
# in its own process, which ends with this one, even if this one is killed: then its standard input ends; without the
# processes of Ray that serve an autoscaler, a dashboard and logs on the console, each of which computes for a second
HEAD = """
import sys, ray
try:
    from ray._private.node import Node
    Node.start_monitor = Node.start_log_monitor = Node.start_api_server = lambda node, **options: None
except ImportError:  # of another release; then they start
    pass
ray.init(
    address="local", num_cpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False, logging_level="ERROR"
)
sys.stdin.read()
"""


@contextmanager
def ray_head(home: Path, workers: int) -> Iterator[dict[str, str]]:
    """Start Ray with room for so many workers of one core; yields the variables with which a process joins it.

    Ray may still be starting: a process that joins waits for it, for minutes if need be. So if Ray ends, the block is
    interrupted, and `UserError` raised. Use it inside `interrupted_by_signals`. For 0 workers nothing starts, and there
    are no variables. `home` is Flower's home folder.
    """
    if not workers:
        yield {}
        return
    port = str(free_port())
    # a token of its own: without one Ray makes a token that no other process can know
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # runs get workers with an environment of their own: those that Ray starts in advance would serve none
    own = {"RAY_ADDRESS": LOCAL, "RAY_GCS_SERVER_PORT": port, "RAY_prestart_worker_first_driver": "0"}
    command, env = [sys.executable, "-c", HEAD, str(workers)], environment(home) | token | own
    with (home / LOG).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    ending, ended = Event(), Event()

    def watch() -> None:
        process.wait()
        if not ending.is_set():
            ended.set()
            signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM)

    Thread(target=watch, daemon=True).start()
    try:
        yield token | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    except KeyboardInterrupt:
        if not ended.is_set() or abs(process.returncode) == signal.SIGTERM:  # which came to all processes
            raise
        raise UserError(f"Ray on this machine has ended (exit code {process.returncode}): see {home / LOG}") from None
    finally:
        ending.set()
        end(process)
        end_group(process.pid)  # what it had started when it was not ready to end
