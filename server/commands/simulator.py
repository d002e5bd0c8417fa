"""How simulations run: on Ray, or in this process."""

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.flower.processes import environment, flower_home, interrupted_by_signals
from server.commands.cluster import LOCAL, worker_count
from server.commands.gpus import gpu_share, local_share
from server.commands.launch import Outcome
from server.commands.ray_head import ray_head
from server.commands.simulate import simulate

STORE = Path(".cache", "clients")  # in `run.root`; no run has a name with a leading dot


@dataclass(frozen=True)
class Simulator:
    """Runs simulations, in the process that asks."""

    env: Mapping[str, str] | None = None  # Flower's; None: the runs are in this process
    ray: Mapping[str, str] = field(default_factory=dict)  # see `simulate`; without it each run starts or joins its own
    workers: int = 0  # Ray's; 0: one per core
    share: float | None = None  # of a GPU per worker; None: an even one

    @property
    def here(self) -> bool:
        """Whether all workers are on this machine."""
        return self.env is None or self.env["RAY_ADDRESS"] == LOCAL

    def run(self, overrides: Mapping[str, Any], root: Path, *, show: bool = True) -> Outcome:
        """Run a simulation and wait for its end; arguments as `simulate` takes them.

        On this machine a new run below a `run.root` of its own keeps its clients' states there, too: they are stored by
        the run's name, which a run below another root may have.
        """
        if self.here and overrides.get("run.root"):
            overrides = {"clients.store": str(Path(str(overrides["run.root"])) / STORE)} | dict(overrides)
        if self.env is not None:
            return simulate(overrides, root, self.env, ray=self.ray, workers=self.workers, share=self.share, show=show)
        from server.commands.in_process import simulate_here  # imports torch

        with interrupted_by_signals():
            return simulate_here(overrides, root)


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the options of `simulator`."""
    parser.add_argument(
        "--workers", type=worker_count, default=0, help="worker processes of a run, at most (default: one per core)"
    )
    parser.add_argument(
        "--gpus", type=gpu_share,
        help="share of a GPU per worker, 0 for none (default: all GPUs, divided evenly among the workers)",
    )  # fmt: skip
    parser.add_argument("--ray", metavar="ADDRESS", help="join this Ray cluster (default: $RAY_ADDRESS, else none)")
    parser.add_argument(
        "--in-process", action="store_true", help="train in one process, without starting others: for small runs"
    )


@contextmanager
def simulator(options: argparse.Namespace, at_once: int = 1) -> Iterator[Simulator]:
    """Yield what runs simulations, so many at once.

    Args:
        options: from `add_resources`.
        at_once: runs that share this machine's cores.

    Raises:
        UserError: the options do not go together, or Ray is not installed.
    """
    home = flower_home(None)
    if options.in_process:
        if options.workers or options.gpus is not None or options.ray:
            raise UserError("--in-process has no workers: remove --workers, --gpus and --ray")
        with interrupted_by_signals():
            yield Simulator()
        return
    from common.data.support import package_folder  # imports pydantic, which `--help` does not need

    package_folder("ray", "a simulation without --in-process")
    if options.ray:
        os.environ["RAY_ADDRESS"] = options.ray
    elsewhere = (os.environ.get("RAY_ADDRESS") or LOCAL) != LOCAL
    # runs at once cannot share a Ray on this machine: each would take all of its cores
    head = at_once == 1 and not elsewhere
    workers = options.workers
    if at_once > 1 or head:
        workers = workers or max(1, (os.cpu_count() or 1) // at_once)
    if head and options.gpus:
        _, workers = local_share(options.gpus, workers, "auto")
    with interrupted_by_signals(), ray_head(home, workers if head else 0) as ray:
        yield Simulator(environment(home), ray, workers, options.gpus)
