"""The Ray cluster that a simulation joins: how many workers it has room for."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from common.errors import UserError
from server.commands import gpus

LOCAL = "local"  # in RAY_ADDRESS: start a cluster for the run alone, whatever else runs on this machine
ANSWER = 60.0  # seconds in which a cluster answers

# in its own process: a process has one Ray session, and Ray changes its signal handlers
RESOURCES = """
import json, sys, ray
ray.init(address=sys.argv[1], include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]))
"""


def worker_count(text: str) -> int:
    """Return the value of `--workers`; raises `argparse.ArgumentTypeError` below 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers: give a whole number from 1")
    return int(text)


def at_once() -> int:
    """Return how many workers Flower keeps busy at once; more would only wait."""
    return min(32, (os.cpu_count() or 1) + 4)


def resources(address: str, env: Mapping[str, str]) -> list[Mapping[str, float]]:
    """Return the resources of every node of the cluster at this address; raises `UserError` if it does not answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", RESOURCES, address], cwd=env["FLWR_HOME"], env=dict(env), capture_output=True,
            text=True, check=False, timeout=ANSWER,
        )  # fmt: skip
        problem = (done.stderr.strip().splitlines() or ["no answer"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"no answer within {ANSWER:.0f} s"
    if problem:
        raise UserError(
            f"the Ray cluster {address} cannot be joined: {problem}. Check the address (`ray status`), the token, and "
            "that `ray start` runs on this machine too"
        )
    found: list[Mapping[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def even_share(nodes: Sequence[Mapping[str, float]]) -> float:
    """Return the share of a GPU per worker with which every GPU serves all cores of its machine; 0.0 without GPUs."""
    shares = (gpus.even_share(node.get("CPU", 0), node["GPU"]) for node in nodes if node.get("GPU"))
    return min(shares, default=0.0)


def workers_on(nodes: Sequence[Mapping[str, float]], share: float, cap: int) -> int:
    """Return how many workers of one core and this share of a GPU fit on the nodes, `cap` (0: no cap) at most.

    Raises `UserError` if not one of them fits.
    """

    def on(node: Mapping[str, float]) -> int:
        cores = int(node.get("CPU", 0))
        return min(cores, gpus.room(node.get("GPU", 0), share)) if share else cores

    fit = sum(map(on, nodes))
    if not fit:
        cores, cards = (sum(n.get(kind, 0) for n in nodes) for kind in ("CPU", "GPU"))
        raise UserError(
            f"no worker fits on the Ray cluster: it has {cores:g} cores and {cards:g} GPUs, and a worker takes one "
            f"core and {share:g} GPUs of one machine; give a smaller --gpus"
        )
    return min(fit, cap or fit, at_once())
