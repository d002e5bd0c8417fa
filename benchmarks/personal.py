"""What personal networks gain: CAFEDistill beside its baselines, on each client's own test split, over seeds.

CIFAR-10 with Dirichlet 0.1 on 20 clients, 5 a round, the ConvNet of CAFEDistill (Liu et al., arXiv 2601.10015) at half
its width. Hyper-parameters are the published ones and the same for all methods: 5 local epochs, batches of 64, learning
rate 0.1 x 0.99^t, (1/m) sum of the exits' cross-entropies. "cafedistill light" has the weight of the distillation that
did best on validation data, with another seed, a narrower network and no test data (`results/personal_tuning.json`).
Exit thresholds are chosen on each client's validation split. Runs that the result file already has are skipped.
"""

import argparse
import json
import statistics
import time
from typing import Any

from benchmarks.common import RESULTS, run_on_cifar10, save

SETTINGS: dict[str, Any] = {
    "data.name": "cifar10", "data.limit": 5000, "data.client-test": 0.25, "data.partitioner": "dirichlet",
    "data.alpha": 0.1, "data.mean": "0.5", "data.std": "0.5", "clients.count": 20, "clients.per-round": 5,
    "clients.mix": "0,0,1", "network.name": "convnet", "network.width": 64, "run.rounds": 40, "train.epochs": 5,
    "objective.exit-weights": "0.3333,0.3333,0.3333", "train.batch-size": 64, "train.lr": 0.1,
    "server.clients-evaluate-every": 10, "server.evaluate-every": 0,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "cafedistill": {"run.strategy": "cafedistill"},
    "cafedistill light": {"run.strategy": "cafedistill", "cafedistill.kd-weight": 0.1},  # see personal_tuning.json
    "fedper": {"run.strategy": "fedper"},
    "local": {"run.strategy": "local"},
    "eefl": {"run.strategy": "eefl"},
    "fedavg_ft": {"run.strategy": "fedavg_ft"},
    "fedrep": {"run.strategy": "fedrep"},
    "fedbabu": {"run.strategy": "fedbabu"},
    "ditto": {"run.strategy": "ditto"},
    "fedprox": {"run.strategy": "fedprox"},
    "own teacher": {"run.strategy": "cafedistill", "cafedistill.alpha": 1e-6},
    "no distillation": {"run.strategy": "cafedistill", "cafedistill.kd-weight": 0.0},
    "published code": {
        "run.strategy": "cafedistill", "cafedistill.legacy-offset": True, "cafedistill.conflict-penalty": True,
    },
}  # fmt: skip


def run(variant: str, seed: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Run one variant in this process; return its clients' accuracies and what it cost."""
    started = time.process_time()
    _, records = run_on_cifar10({**SETTINGS, "run.seed": seed, **VARIANTS[variant], **overrides})
    last = records[-1]
    return {
        "variant": variant, "seed": seed, **last.client_accuracy,
        "by_round": {r.round: r.client_accuracy["mean"] for r in records if r.client_accuracy},
        "bytes": {way: sum(r.traffic[way] for r in records) for way in ("down", "up")},
        "terms": [dict(r.terms) for r in records[::10]],
        "cpu_seconds": time.process_time() - started,
    }  # fmt: skip


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, per variant, means and standard deviations over seeds, and the gain over FedPer, paired by seed."""
    base = {r["seed"]: r["mean"] for r in runs if r["variant"] == "fedper"}
    rows = []
    for variant in VARIANTS:
        chosen = [r for r in runs if r["variant"] == variant]
        if not chosen:
            continue
        gains = [r["mean"] - base[r["seed"]] for r in chosen if r["seed"] in base]
        rows.append({
            "variant": variant, "seeds": len(chosen),
            "mean": _mean_and_deviation([r["mean"] for r in chosen]),
            "exits": [statistics.fmean(column) for column in zip(*(r["exits"] for r in chosen), strict=True)],
            "spread_over_clients": statistics.fmean(r["mean_spread"] for r in chosen),
            "gain_over_fedper": _mean_and_deviation(gains),
            "saved_own_threshold": _mean_and_deviation([r["tuned"]["saved"] for r in chosen]),
            "lost_own_threshold": _mean_and_deviation(
                [r["tuned"]["full_accuracy"] - r["tuned"]["accuracy"] for r in chosen]
            ),
            "saved_common_threshold": _mean_and_deviation([r["common"]["saved"] for r in chosen]),
            "lost_common_threshold": _mean_and_deviation(
                [r["common"]["full_accuracy"] - r["common"]["accuracy"] for r in chosen]
            ),
            "bytes": chosen[0]["bytes"],
        })  # fmt: skip
    return rows


def _mean_and_deviation(values: list[float]) -> list[float | None]:
    if not values:
        return [None, None]
    return [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]


def main() -> None:
    """Run what is missing, write the results after every run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", default="cafedistill,fedper,local")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--name", default="personal_cifar10")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="change a setting")
    options = parser.parse_args()
    overrides = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    path = RESULTS / f"{options.name}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    for seed in map(int, options.seeds.split(",")):
        for variant in options.variants.split(","):
            if not any((r["variant"], r["seed"]) == (variant, seed) for r in runs):
                runs.append(run(variant, seed, overrides))
                save(options.name, {"settings": SETTINGS | overrides, "summary": summarise(runs), "runs": runs})
                print(variant, seed, f"{100 * runs[-1]['mean']:.2f}", flush=True)
    for row in summarise(runs):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
