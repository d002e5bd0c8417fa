"""How much of the machine goes into the clients' training, in a simulation of 1000 clients, 50 a round.

    bare        a PyTorch loop that does the same local steps in one process
    flower      Flower's FedAvg with a node per client
    local       this project on the in-process grid
    ray         this project on Ray, one node per worker

Every case trains the same exits of the same network on the same 50 images a client, batches of 10, one torch thread per
process. Run `python -m benchmarks.simulation`: each case runs in a process of its own, in turn, and reports clients
per CPU-second and seconds per round after a warm-up round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.common import RESULTS, Meter, save
from client.app import app as our_client
from common.config import RunConfig
from common.data.batches import batches
from common.data.clients import Population, shared_data
from common.flower.local_grid import LocalGrid
from common.networks import NetworkSpec, build
from common.objectives import make_objective
from common.seeding import generator
from strategies.callbacks.base import Callback
from strategies.configuration import read_config
from strategies.engine.rounds import Record
from strategies.factory import make_strategy

WIDTHS = {"lenet": 6, "1.6M": 34}  # of the LeNet backbone: 51 k and 1.6 M parameters
CLIENTS, COHORT = 1000, 50
SETTINGS = {
    "run.name": "benchmark", "run.strategy": "eefl", "clients.count": CLIENTS, "clients.per-round": COHORT,
    "clients.mix": "0,0,1", "clients.device": "cpu", "network.name": "lenet", "train.batch-size": 10,
    "data.name": "cifar10", "data.validation": 0.0, "server.evaluate-every": 0,
}  # fmt: skip


def settings(workload: str, **changes: Any) -> RunConfig:
    """Return the run's configuration; the images are in the folder EARLYBLOOM_DATA."""
    root = Path(os.environ.get("EARLYBLOOM_DATA", "../shared/data")).resolve() / "cifar10"
    return read_config({**SETTINGS, "data.root": str(root), "network.width": WIDTHS[workload], **changes})


class Local:
    """The local steps in plain PyTorch."""

    def __init__(self, config: RunConfig) -> None:
        section = config.network
        self.config, self.population = config, Population(config.data, CLIENTS, config.run.seed)
        self.model = build(NetworkSpec(section.name, 10, (3, 32, 32), width=section.width), seed=1)
        self.objective = make_objective(config.objective, 3, seed=0)

    def train(self, client: int, round_: int, start: dict[str, torch.Tensor]) -> int:
        """Train one client from `start`; return its number of samples."""
        self.model.load_state_dict(start)
        images, section = shared_data(self.population, client, torch.device("cpu")), self.config.train
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay
        )
        for batch in batches(len(images.y), section.batch_size, generator(1, "batches", round_, client)):
            optimizer.zero_grad()
            self.objective.loss(self.model, images.x[batch], images.y[batch]).total.backward()
            optimizer.step()
        return len(images.y)


def bare(workload: str, rounds: int) -> list[tuple[float, float]]:
    """Average the cohort's models in one process, without any framework."""
    local, laps = Local(settings(workload)), []
    state = {key: value.clone() for key, value in local.model.state_dict().items()}
    meter = Meter()
    for round_ in range(rounds + 1):
        sums, samples = {key: torch.zeros_like(value) for key, value in state.items()}, 0
        chosen = torch.randperm(CLIENTS, generator=generator(1, "cohort", round_))[:COHORT].tolist()
        for client in chosen:
            number = local.train(client, round_, state)
            samples += number
            for key, value in local.model.state_dict().items():
                sums[key] += value * number
        state = {key: (value / samples).to(state[key].dtype) for key, value in sums.items()}
        laps.append(meter.lap())
    return laps[1:]


def flower(workload: str, rounds: int) -> list[tuple[float, float]]:
    """Run Flower's own FedAvg, a node per client, as its quick start does."""
    client_app, laps = ClientApp(), []

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        local = Local(settings(workload))
        start = message.content["arrays"].to_torch_state_dict()
        number = local.train(
            int(context.node_config["partition-id"]), int(message.content["config"]["server-round"]), start
        )
        content = RecordDict(
            {"arrays": ArrayRecord(local.model.state_dict()), "metrics": MetricRecord({"num-examples": number})}
        )
        return Message(content, reply_to=message)

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        meter = Meter()
        strategy = FedAvg(fraction_train=COHORT / CLIENTS, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
        strategy.start(
            grid, ArrayRecord(Local(settings(workload)).model.state_dict()), num_rounds=rounds + 1,
            evaluate_fn=lambda round_, arrays: laps.append(meter.lap()),
        )  # fmt: skip

    run_simulation(server_app, client_app, CLIENTS, backend_config=_backend())
    return laps[2:]  # without the start and the first round


def local(workload: str, rounds: int) -> list[tuple[float, float]]:
    """Run this project in one process."""
    return _ours(
        settings(workload, **{"run.rounds": rounds + 1}), lambda run: run(LocalGrid(our_client, [_node(0, 1)]))
    )


def ray(workload: str, rounds: int) -> list[tuple[float, float]]:
    """Run this project on Ray, one node per worker."""
    return _ours(settings(workload, **{"run.rounds": rounds + 1}), _on_ray)


def noop(workload: str, rounds: int) -> list[tuple[float, float]]:
    """Run this project on Ray with all 1000 clients a round and no training step."""
    changes = {"run.rounds": rounds + 1, "clients.per-round": CLIENTS, "train.epochs": 0}
    return _ours(settings(workload, **changes), _on_ray)


class Laps(Callback):
    """Notes the seconds of every round."""

    def __init__(self) -> None:
        self.meter, self.laps = Meter(), list[tuple[float, float]]()

    def on_round(self, strategy: Any, record: Record) -> None:
        """Note this round's seconds."""
        self.laps.append(self.meter.lap())


def _ours(config: RunConfig, run: Any) -> list[tuple[float, float]]:
    laps = Laps()
    strategy = make_strategy(config, [laps])
    run(strategy.start)
    return laps.laps[1:]


def _on_ray(run: Any) -> None:
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        run(grid)

    run_simulation(server_app, our_client, _workers(), backend_config=_backend())


def _workers() -> int:
    return os.cpu_count() or 1


def _node(partition: int, number: int) -> dict[str, int]:
    return {"partition-id": partition, "num-partitions": number}


def _backend() -> dict[str, Any]:
    resources = {"num_cpus": 1, "num_gpus": 0.0}
    return {
        "client_resources": resources,
        "init_args": {"num_cpus": _workers(), "logging_level": "ERROR", "log_to_driver": False},
    }


CASES = {"bare": bare, "flower": flower, "local": local, "ray": ray, "noop": noop}


def measure(case: str, workload: str, rounds: int) -> dict[str, float]:
    """Run a case in a process of its own; return medians over its rounds."""
    with tempfile.TemporaryDirectory() as home:
        env = os.environ | {"FLWR_HOME": f"{home}/.flwr", "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        env |= {"OMP_NUM_THREADS": "1", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        command = [sys.executable, "-m", "benchmarks.simulation", "--case", case, "--workload", workload]
        done = subprocess.run(
            [*command, "--rounds", str(rounds)], env=env, capture_output=True, text=True, check=False, timeout=900
        )
    if done.returncode:
        raise RuntimeError(f"{case} on {workload} failed:\n{done.stderr[-2000:]}")
    laps = json.loads(done.stdout.splitlines()[-1])
    clients = CLIENTS if case == "noop" else COHORT
    wall, cpu = (statistics.median(column) for column in zip(*laps, strict=True))
    return {"seconds_per_round": wall, "clients_per_cpu_second": clients / cpu, "clients_per_second": clients / wall}


def main() -> None:
    """Measure every case side by side, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--workload", choices=WIDTHS, default="lenet")
    parser.add_argument("--workloads", default=",".join(WIDTHS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(1)
        print(json.dumps(CASES[options.case](options.workload, options.rounds)))
        return
    path = RESULTS / "simulation.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result |= {"clients": CLIENTS, "cohort": COHORT, "workers": _workers()}
    for workload in options.workloads.split(","):
        runs = [{c: measure(c, workload, options.rounds) for c in CASES} for _ in range(options.repeats)]
        median = {c: {k: statistics.median(r[c][k] for r in runs) for k in runs[0][c]} for c in CASES}
        result[workload] = median | {
            "of_bare_per_cpu_second": {
                c: statistics.median(r[c]["clients_per_cpu_second"] / r["bare"]["clients_per_cpu_second"] for r in runs)
                for c in ("flower", "local", "ray")
            },
            "ray_speed_over_bare": statistics.median(
                r["ray"]["clients_per_second"] / r["bare"]["clients_per_second"] for r in runs
            ),
        }
        result[workload]["repeats"] = options.repeats
        print(workload, json.dumps(result[workload], indent=1))
        save("simulation", result)


if __name__ == "__main__":
    main()
