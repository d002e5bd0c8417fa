"""A simulation's process, `python -m server.simulation`: the server's app beside Flower's Simulation Runtime.

`flwr run` starts such a process by a SuperLink and a SuperExec, which a run that ends with its command does not need.

The first line of the standard input is a `Request`. When the run has ended, the standard output has an `Answer`. What
the run prints goes to the standard error. The process ends soon after its standard input, and so after its launcher.
"""

import json
import os
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypedDict

from common.flower.processes import PROJECT

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

GRACE = 5.0  # seconds that Ray has to stop
WRAPPERS = ("An error was encountered", "Simulation Runtime crashed")  # Flower's, around the error that ended a run


class Request(TypedDict):
    """What the launcher asks for."""

    settings: Mapping[str, Any]  # configuration keys
    workers: int
    resources: Mapping[str, float]  # of each worker, `num_cpus` and `num_gpus`
    ray: Mapping[str, Any]  # arguments of `ray.init`


class Answer(TypedDict):
    """How the run has ended."""

    failure: str  # the reason; "": the run completed


def simulate(request: Request) -> None:
    """Run a simulation to its end; raises the server's error, or Flower's."""
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from common.flower.ray_pool import look_often, prepare_workers
    from server.app import main as rounds

    look_often()
    server, completed = ServerApp(), Event()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        prepare_workers()
        context.run_config = dict(request["settings"])
        rounds(grid, context)
        completed.set()

    backend = {"client_resources": dict(request["resources"]), "init_args": dict(request["ray"])}
    run_simulation(server, client_app(), request["workers"], backend_config=backend)
    if not completed.is_set():  # Flower raises nothing when the app's thread exits
        raise RuntimeError("the server's app ended before its last round")


def client_app() -> "ClientApp":
    """Return the project's ClientApp, which Flower finds by the same name."""
    components = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["components"]
    module, _, name = components["clientapp"].partition(":")
    found: ClientApp = getattr(import_module(module), name)
    return found


def reason(error: BaseException) -> str:
    """Return an error as text; of those that Flower wraps around another, the other."""
    while str(error).startswith(WRAPPERS) and error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def main() -> None:
    """Serve one request, then end this process."""
    request: Request = json.loads(sys.stdin.readline())
    Thread(target=_end_with_input, daemon=True).start()
    output = os.dup(1)
    os.dup2(2, 1)
    answer = Answer(failure="")
    try:
        simulate(request)
    except BaseException as error:  # Ray exits on SIGTERM
        answer["failure"] = reason(error)
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(output, "w") as file:
        json.dump(answer, file)
    # the interpreter would wait for the app's thread, and take half a second to free what torch has imported
    os._exit(0)


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    stopping = Thread(target=_stop_ray, daemon=True)
    stopping.start()
    stopping.join(GRACE)
    os._exit(130)


def _stop_ray() -> None:
    with suppress(Exception):  # Ray may not be imported yet, or only in part
        sys.modules["ray"].shutdown()  # two processes of a Ray of its own would go on


if __name__ == "__main__":
    main()
