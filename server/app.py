"""The ServerApp.

Importing it does not import torch: in a simulation the workers start first, and import it beside the server.
"""

import sys
from logging import ERROR
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import log

from common.errors import UserError
from common.flower.ray_pool import prepare_workers

SIMULATION = "flwr-simulation"  # the command of a simulation by `flwr run`

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds; a `UserError` is logged and ends the run as failed."""
    if Path(sys.argv[0]).name == SIMULATION:
        prepare_workers()
    from server.execution import prepare, start

    try:
        strategy = prepare(context.run_config)
    except UserError as error:
        log(ERROR, "%s", error)
        raise
    start(strategy, grid)
