"""What split training gains: devices with three cuts, on each client's own test split, over seeds.

CIFAR-10 at 16x16, dealt alike to 12 clients, four at each of the cuts 2, 3 and 4 of the slim ResNet at half its width;
batches of 64, one local epoch a round, the same learning rate for all. Nothing is chosen on test data; thresholds of
early exits are chosen on each client's validation split. The sequential server has one set of BatchNorm statistics for
all cuts, except where a variant says "by cut". Run `python -m benchmarks.split_accuracy`; it skips runs that the result
file already has.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from benchmarks.common import RESULTS, run_on_cifar10, save

CUTS, UNITS = "2,3,4", 5
SETTINGS: dict[str, Any] = {
    "data.name": "cifar10", "data.limit": 15000, "data.client-test": 0.1, "data.validation": 0.05,
    "data.image-size": 16, "clients.count": 12, "clients.per-round": 12, "network.name": "resnet_slim",
    "network.width": 8, "run.rounds": 6, "train.epochs": 1, "train.batch-size": 64, "train.lr": 0.05,
    "train.lr-decay": 0.75, "train.weight-decay": 5e-4, "server.evaluate-every": 0, "splitee.cuts": CUTS,
}  # fmt: skip
SPLIT = {"run.strategy": "hetero_splitee"}
SHARED = SPLIT | {"splitee.statistics": "shared"}
RETURN = {"splitee.gradient": "return", "splitee.client-sync": "same_cut"}
VARIANTS: dict[str, dict[str, Any]] = {
    "sequential": SHARED,
    "averaging": SPLIT | {"splitee.mode": "averaging"},
    # the same weights as "sequential", evaluated with the BatchNorm statistics of each client's cut
    "sequential, by cut": SPLIT,
    # split learning: gradients come back, devices of one cut are averaged (Thapa et al., SplitFed)
    "sflv1": SPLIT | RETURN | {"splitee.mode": "averaging"},
    "sflv2": SHARED | RETURN,
    # a whole network on each client's own shard, and one network on all shards with exits at the cuts
    "standalone": {"run.strategy": "local", "network.exits": str(UNITS)},
    "central": {
        "run.strategy": "eefl", "clients.count": 1, "clients.per-round": 1, "clients.mix": "0,0,0,1",
        "network.exits": f"{CUTS},{UNITS}",
    },
    "sequential, prefix": SHARED | {"splitee.client-sync": "prefix"},
    "sequential, prefix, by cut": SPLIT | {"splitee.client-sync": "prefix"},
    "sequential, same cut": SHARED | {"splitee.client-sync": "same_cut"},
    "averaging, prefix": SPLIT | {"splitee.mode": "averaging", "splitee.client-sync": "prefix"},
    "averaging, global": SPLIT | {"splitee.mode": "averaging", "splitee.aggregate-scope": "global"},
    "averaging, never": SPLIT | {"splitee.mode": "averaging", "splitee.period": 1000},
    "bf16": SHARED | {"splitee.coding": "bf16"},
    "uint8": SHARED | {"splitee.coding": "uint8"},
    **{f"sequential, all at {cut}": SHARED | {"splitee.cuts": cut} for cut in CUTS.split(",")},
    **{f"sflv2, all at {cut}": SHARED | RETURN | {"splitee.cuts": cut} for cut in CUTS.split(",")},
}  # fmt: skip


def run(variant: str, seed: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Run one variant in this process; return its clients' accuracies by cut, and what it cost."""
    started = time.process_time(), time.perf_counter()
    flat = {**SETTINGS, "run.seed": seed, **VARIANTS[variant], **overrides}
    strategy, records = run_on_cifar10(flat | {"server.clients-evaluate-every": flat["run.rounds"]})
    last = records[-1]
    return {
        "variant": variant, "seed": seed, "groups": dict(groups(last.client_accuracy, strategy.tiers)),
        "missing": sum(r.terms.get("missing", 0) for r in records),
        "failures": sum(len(r.failures) for r in records),
        "losses": [[r.client_metrics.get("loss"), r.terms.get("server_loss")] for r in records],
        "cpu_seconds": time.process_time() - started[0], "seconds": time.perf_counter() - started[1],
    }  # fmt: skip


def groups(accuracy: Mapping[str, Any], tiers: Iterable[int]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield ("all" or a cut, what its clients measured): means over clients."""
    by_cut = accuracy.get("by_part", {})
    for name, group in [("all", accuracy), *((str(cut), by_cut[cut]) for cut in tiers if cut in by_cut)]:
        tuned = group["tuned"]
        yield (
            name,
            {
                "clients": group["clients"], "exits": group["exits"], "spread": group["spread"],
                "gated": tuned["accuracy"], "local": tuned["exit_histogram"][0] / sum(tuned["exit_histogram"]),
                "curve": [[p["threshold"], p["accuracy"], p["exit_histogram"]] for p in group["curve"]],
            },
        )  # fmt: skip


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, per variant and cut, mean and deviation over seeds, and the gain at the last exit, paired by seed."""
    base = {r["seed"]: r["groups"]["all"]["exits"][-1] for r in runs if r["variant"] == "sequential"}
    rows = []
    for variant in VARIANTS:
        chosen = [r for r in runs if r["variant"] == variant]
        for cut in chosen[0]["groups"] if chosen else ():
            measured = [r["groups"][cut] for r in chosen]
            gains = [
                r["groups"][cut]["exits"][-1] - base[r["seed"]] for r in chosen if cut == "all" and r["seed"] in base
            ]
            rows.append({
                "variant": variant, "cut": cut, "seeds": len(chosen),
                "exits": [_mean_and_deviation(column) for column in zip(*(m["exits"] for m in measured), strict=True)],
                "gated": _mean_and_deviation([m["gated"] for m in measured]),
                "local": _mean_and_deviation([m["local"] for m in measured]),
                "gain_over_sequential": _mean_and_deviation(gains),
            })  # fmt: skip
    return rows


def _mean_and_deviation(values: Iterable[float]) -> list[float | None]:
    numbers = list(values)
    if not numbers:
        return [None, None]
    return [statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None]


def main() -> None:
    """Run what is missing, write the results after every run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", default="sequential;averaging;sflv1;sflv2;standalone;central")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--name", default="split_accuracy")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="change a setting")
    options = parser.parse_args()
    torch.set_num_threads(1)
    overrides = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    path = RESULTS / f"{options.name}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    for seed in map(int, options.seeds.split(",")):
        for variant in options.variants.split(";"):
            if not any((r["variant"], r["seed"]) == (variant, seed) for r in runs):
                runs.append(run(variant, seed, overrides))
                save(options.name, {"settings": SETTINGS | overrides, "summary": summarise(runs), "runs": runs})
                exits = runs[-1]["groups"]["all"]["exits"]
                print(variant, seed, [f"{100 * e:.1f}" for e in exits], f"{runs[-1]['cpu_seconds']:.0f} s", flush=True)
    for row in summarise(runs):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
