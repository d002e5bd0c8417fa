"""Run the app in a simulation on Ray: start its process, show its progress, and return how the run ended."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from common.flower.processes import end_group, interrupted_by_signals, kill_after_grace
from server.commands import cluster, gpus
from server.commands.bundle import app_files
from server.commands.launch import COMPLETED, FAILED, Outcome, commit, run_folder, watched
from server.simulation import Answer, Request

LOOK = 0.2  # seconds between two looks at the metrics, and for the process's end
LOGS = "logs"  # folder in Flower's home
KEPT = 50  # logs of earlier runs


def simulate(
    overrides: Mapping[str, Any],
    root: Path,
    env: Mapping[str, str],
    *,
    ray: Mapping[str, str] | None = None,
    workers: int = 0,
    share: float | None = None,
    show: bool = True,
) -> Outcome:
    """Run the project in a simulation and wait for its end.

    Args:
        overrides: configuration keys, with `run.name` unless a run is resumed.
        root: the folder of all runs, unless `run.root` names another.
        env: Flower's environment. Without `ray` the run joins the cluster of its `RAY_ADDRESS`, or starts its own Ray.
        ray: the variables with which the run joins the Ray of `ray_head`, which has room for its workers.
        workers: worker processes, by default one per core; on a cluster at most, by default as many as fit.
        share: of a GPU per worker; None: an even one.
        show: the progress, and Flower's log goes to a file; otherwise the log goes to the standard error.

    Raises:
        UserError: there are not such GPUs, they contradict `clients.device`, or the cluster does not answer.
    """
    settings = {"run.root": str(root), "run.commit": commit(), **overrides}
    start: dict[str, Any] = {"log_to_driver": False}
    device = str(overrides.get("clients.device", "auto"))
    if (address := env["RAY_ADDRESS"]) == cluster.LOCAL:
        share, workers = gpus.local_share(share, workers or os.cpu_count() or 1, device)
        if not ray:
            start["num_cpus"] = workers  # Ray refuses it for a cluster that runs already
    else:
        share = gpus.wanted_share(share, device)
        nodes = cluster.resources(address, env)
        share = cluster.even_share(nodes) if share is None else share
        workers = cluster.workers_on(nodes, share, workers)
        settings.setdefault("clients.state", "shared" if overrides.get("clients.store") else "server")
    request = Request(settings=settings, workers=workers, resources={"num_cpus": 1, "num_gpus": share}, ray=start)
    return _run(request, run_folder(overrides, root), {**env, **(ray or {})}, show)


@interrupted_by_signals()
def _run(request: Request, folder: Path, env: Mapping[str, str], show: bool) -> Outcome:
    home = Path(env["FLWR_HOME"])
    log = home / LOGS / f"{folder.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    _remove_old(log.parent)
    with (
        app_files(Path(tempfile.gettempdir()), compiled=True) as app,
        tempfile.TemporaryFile() as output,
        log.open("ab") if show else nullcontext() as errors,
        watched(folder, show) as watch,
        subprocess.Popen(
            # in a session of its own: a terminal would send it Ctrl-C, too
            [sys.executable, "-m", "server.simulation"], cwd=home, env={**env, "PYTHONPATH": _path(app, env)},
            stdin=subprocess.PIPE, stdout=output, stderr=errors, start_new_session=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdin
        try:
            with suppress(BrokenPipeError):  # it has ended already
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            while process.poll() is None:
                watch.look()
                time.sleep(LOOK)
            watch.look()
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()  # which ends it
            kill_after_grace(process)
            end_group(process.pid)
        output.seek(0)
        answer = output.read()
    return _outcome(folder, answer, process.returncode, f"; its log is {log}" if show else "")


def _remove_old(logs: Path) -> None:
    with suppress(FileNotFoundError):  # another run removes them at the same time
        for old in sorted(logs.glob("*.log"), key=lambda log: log.stat().st_mtime)[:-KEPT]:
            old.unlink()


def _path(app: Path, env: Mapping[str, str]) -> str:
    return os.pathsep.join([str(app), *filter(None, [env.get("PYTHONPATH")])])


def _outcome(folder: Path, output: bytes, code: int, where: str) -> Outcome:
    if not output:
        how = "was killed, out of memory?" if code < 0 else "ended without an answer"
        return Outcome(folder, FAILED, f"its process {how} (exit code {code}){where}")
    answer: Answer = json.loads(output)
    if answer["failure"]:
        return Outcome(folder, FAILED, answer["failure"] + where)
    return Outcome(folder, COMPLETED, "")
