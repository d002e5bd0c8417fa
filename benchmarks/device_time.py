"""Simulated device time beside measured one: a SuperLink and two SuperNodes on loopback.

Every node probes its speed (`capacity=auto`) and trains another depth. Three runs per case:

    measured    the deployment by the measured clock
    deployed    the same by the simulated clock: each node's profile is what it has probed
    in process  the same two clients in one process, with these profiles in `clients.profiles`

The last two must agree to the microsecond. Loopback has no declared bandwidth, so the simulated link takes no time. Run
`python -m benchmarks.device_time`; about ten minutes on a busy machine.
"""

import os
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import Records, save
from client.app import app
from common.flower.local_grid import LocalGrid
from common.profiles import Profile
from common.storage.files import read_tensors
from common.storage.run_files import read_events
from strategies.configuration import read_config
from strategies.factory import make_strategy
from tests.support.deployment import Deployment

ROUNDS = 6  # the first one is not counted: torch is imported, data are decoded
PARTS = (1, 4)  # depths of the two nodes
SETTINGS = {
    "run.strategy": "eefl", "run.rounds": ROUNDS, "clients.count": 2, "clients.per-round": 2, "clients.mix": "1,0,0,1",
    "clients.device": "cpu", "server.device": "cpu", "server.evaluate-every": 0, "round.min-nodes": 2,
}  # fmt: skip
DATA = Path(os.environ.get("EARLYBLOOM_DATA", "../shared/data")).resolve() / "cifar10"
CASES: Mapping[str, Mapping[str, Any]] = {
    "digits": {"network.name": "resnet_slim", "train.epochs": 5},
    "CIFAR-10": {"network.name": "resnet_slim", "data.name": "cifar10", "data.root": str(DATA), "data.limit": 1500},
    "CIFAR-10, wide": {
        "network.name": "resnet_slim", "network.width": 64, "data.name": "cifar10", "data.root": str(DATA),
        "data.limit": 300,
    },
}  # fmt: skip


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return, by clock, the medians of a case's rounds, and what the nodes have probed."""
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder) / "deployment")
        try:
            for node, part in enumerate(PARTS):
                deployment.node(f"node-{node}", f'client-id={node} depth={part} capacity="auto"')
            measured = _deployed(deployment, "measured", {**SETTINGS, **settings})
            simulated = _deployed(deployment, "simulated", {**SETTINGS, **settings, "clients.clock": "simulated"})
        finally:
            deployment.close()
        profiles = _profiles(deployment.folder / "runs" / "simulated")
        own = _in_process({**SETTINGS, **settings}, profiles, Path(folder))
    if [event["device"] for event in simulated] != own:
        raise RuntimeError("the simulated clock of the deployment and of the simulation differ")
    return {
        "probed_gflops": [profile.compute / 1e9 for profile in profiles],
        "measured": medians([event["device"] for event in measured]),
        "simulated": medians(own),
        "load": round(os.getloadavg()[0], 1),
    }


def _deployed(deployment: Deployment, name: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    status, details = deployment.wait(deployment.run({**settings, "run.name": name}), 400)
    if status != "finished:completed":
        raise RuntimeError(details)
    events = read_events(deployment.folder / "runs" / name / "metrics.jsonl")
    return [event for event in events if event["event"] == "round"]


def _profiles(folder: Path) -> list[Profile]:
    """Return each client's profile from a run's last checkpoint."""
    checkpoint = max((folder / "checkpoints").glob("round-*.safetensors"))
    reports = {report["client"]: report for report in read_tensors(checkpoint)[1]["reports"]}
    return [Profile(**reports[client]["profile"]) for client in sorted(reports)]


def _in_process(settings: Mapping[str, Any], profiles: list[Profile], folder: Path) -> list[dict[str, Any]]:
    """Run the same clients in this process with these profiles; return what the rounds took on the devices."""
    file = folder / "profiles.toml"
    file.write_text("".join(
        f'[node{number}]\ncompute = "{profile.compute!r}"\nbandwidth = "1000000000Tbps"\n'
        for number, profile in enumerate(profiles)
    ))  # fmt: skip
    kept = Records()
    own = {
        "run.name": "own", "clients.store": str(folder / "clients"), "clients.clock": "simulated",
        "clients.devices": ",".join(f"node{number}:1" for number in range(len(profiles))),
        "clients.profiles": str(file), "round.min-nodes": 1,
    }  # fmt: skip
    strategy = make_strategy(read_config({**settings, **own}), [kept])
    strategy.start(LocalGrid(app, [{"partition-id": 0}]))
    return [_as_read(record.device) for record in kept.records]


def _as_read(device: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round's device time as JSON has it."""
    return {**device, "by_part": {str(part): dict(sums) for part, sums in device["by_part"].items()}}


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the rounds but the first: of a round's seconds, and per depth of computing and the link."""
    counted = rounds[1:]
    by_part = {
        part: {
            "compute": statistics.median(r["by_part"][part]["busy"] - r["by_part"][part]["link"] for r in counted),
            "link": statistics.median(r["by_part"][part]["link"] for r in counted),
        }
        for part in map(str, PARTS)
    }
    return {"seconds": statistics.median(r["seconds"] for r in counted), "by_part": by_part}


def main() -> None:
    """Measure all cases."""
    result = {}
    for case, settings in CASES.items():
        result[case] = measure(settings)
        print(case, result[case], flush=True)
    save("device_time", {"rounds": ROUNDS - 1, "cases": result})


if __name__ == "__main__":
    main()
