"""What a method gains with the same seeds, budget and local objective; mean and deviation over seeds.

CIFAR-10, 50 clients of four depths in equal parts, 10 a round, the slim ResNet, the boosted objective; the last
round's model on the official test set. Nothing is chosen on test data: hyper-parameters are the defaults, which are
DarkDistill's published values, and the number of rounds is fixed beforehand. Run `python -m benchmarks.accuracy`; it
skips runs that the result file already has.
"""

import argparse
import json
import statistics
import time
from typing import Any

from benchmarks.common import RESULTS, run_on_cifar10, save

SETTINGS = {
    "data.name": "cifar10", "data.limit": 25000, "data.partitioner": "dirichlet", "clients.count": 50,
    "clients.per-round": 10, "objective.name": "boosted", "run.rounds": 50, "server.evaluate-every": 10,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "eefl": {"run.strategy": "eefl"},
    "darkdistill": {"run.strategy": "darkdistill"},
    "parallel": {
        "run.strategy": "darkdistill", "darkdistill.variant": "parallel", "darkdistill.batch": 16,
        "darkdistill.server-lr-decay": 0.99,
    },
    "learned": {"run.strategy": "darkdistill", "darkdistill.matcher": "learned"},
    "hard": {"run.strategy": "darkdistill", "darkdistill.matcher": "hard"},
    "tenfold": {"run.strategy": "darkdistill", "darkdistill.rkd-distance": 50.0, "darkdistill.rkd-angle": 100.0},
    "unconditional": {"run.strategy": "darkdistill", "darkdistill.difficulty-condition": False},
    "sketch": {"run.strategy": "darkdistill", "difficulty.upload": "sketch"},
    "sketch-epsilon-1": {"run.strategy": "darkdistill", "difficulty.upload": "sketch", "difficulty.epsilon": 1.0},
    "exclusivefl": {"run.strategy": "exclusivefl"},
    "depthfl": {"run.strategy": "depthfl"},
}  # fmt: skip


def run(variant: str, alpha: float, seed: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Run one variant in this process; return its accuracies and what it cost."""
    started = time.process_time()
    _, records = run_on_cifar10({**SETTINGS, "data.alpha": alpha, "run.seed": seed, **VARIANTS[variant], **overrides})
    last = records[-1]
    scalars = {key: value for key, value in last.terms.items() if isinstance(value, (int, float, list))}
    return {
        "variant": variant, "alpha": alpha, "seed": seed,
        "exits": last.accuracy["exits"], "mean": last.accuracy["mean"], "calibrated": last.accuracy["calibrated"],
        "curve": {r.round: r.accuracy["mean"] for r in records if r.accuracy},
        "cpu_seconds": time.process_time() - started,
        "server_seconds": sum(r.seconds.get("server", 0.0) for r in records),
        "terms": scalars,
    }  # fmt: skip


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, per alpha and variant, mean and standard deviation over seeds, and the gain over EEFL, paired by seed."""
    rows = []
    for alpha in sorted({r["alpha"] for r in runs}, reverse=True):
        base = {r["seed"]: r["mean"] for r in runs if r["alpha"] == alpha and r["variant"] == "eefl"}
        for variant in VARIANTS:
            chosen = [r for r in runs if r["alpha"] == alpha and r["variant"] == variant]
            if not chosen:
                continue
            means, gains = (
                [r["mean"] for r in chosen],
                [r["mean"] - base[r["seed"]] for r in chosen if r["seed"] in base],
            )
            rows.append({
                "alpha": alpha, "variant": variant, "seeds": len(chosen), "mean": statistics.fmean(means),
                "deviation": _deviation(means), "gain_over_eefl": statistics.fmean(gains) if gains else None,
                "gain_deviation": _deviation(gains),
                "exits": [statistics.fmean(column) for column in zip(*(r["exits"] for r in chosen), strict=True)],
            })  # fmt: skip
    return rows


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def main() -> None:
    """Run what is missing, write the results after every run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", default="eefl,darkdistill")
    parser.add_argument("--alphas", default="1000,0.1")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--name", default="accuracy_cifar10")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="change a setting")
    options = parser.parse_args()
    overrides = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    path = RESULTS / f"{options.name}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    for seed in map(int, options.seeds.split(",")):
        for alpha in map(float, options.alphas.split(",")):
            for variant in options.variants.split(","):
                if not any((r["variant"], r["alpha"], r["seed"]) == (variant, alpha, seed) for r in runs):
                    runs.append(run(variant, alpha, seed, overrides))
                    save(options.name, {"settings": SETTINGS | overrides, "summary": summarise(runs), "runs": runs})
                    print(variant, alpha, seed, f"{100 * runs[-1]['mean']:.2f}", flush=True)
    for row in summarise(runs):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
