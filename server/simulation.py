"""A simulation's process, `python -m server.simulation`: the server's app beside Flower's Simulation Runtime.

`flwr run` starts such a process by a SuperLink and a SuperExec. They compute for five seconds, for a run that ends with
its command.

The first line of the standard input is a `Request`. When the run has ended, the standard output has an `Answer`. What
the run prints goes to the standard error. The process ends with its standard input, so not later than its launcher.
"""

import json
import os
import sys
from collections.abc import Mapping
from threading import Thread
from typing import Any, TypedDict


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

    from client.app import app as clients
    from common.flower.ray_pool import look_often
    from server.app import main as rounds

    look_often()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config = dict(request["settings"])
        rounds(grid, context)

    backend = {"client_resources": dict(request["resources"]), "init_args": dict(request["ray"])}
    run_simulation(server, clients, request["workers"], backend_config=backend)


def reason(error: BaseException) -> str:
    """Return the error behind those that Flower wraps around it."""
    while error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def main() -> None:
    """Serve one request."""
    request: Request = json.loads(sys.stdin.readline())
    Thread(target=_end_with_input, daemon=True).start()
    output = os.dup(1)
    os.dup2(2, 1)
    answer = Answer(failure="")
    try:
        simulate(request)
    except Exception as error:
        answer["failure"] = reason(error)
    with os.fdopen(output, "w") as file:
        json.dump(answer, file)
    os._exit(0)  # the interpreter would take half a second to free what torch has imported


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    if ray := sys.modules.get("ray"):
        ray.shutdown()  # two processes of a Ray of its own would go on
    os._exit(130)


if __name__ == "__main__":
    main()
