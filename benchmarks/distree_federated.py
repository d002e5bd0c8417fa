"""DistrEE, federated, on handwritten digits: devices train two students against a teacher that devices trained.

Every seed runs the two commands of `strategies/distree/README.md`, and beside them what the devices would have without
a teacher: one network of the students' width for all, trained by weighted averaging. Accuracies are those of the
server's test images.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import save
from strategies.callbacks.run_folder import read_events

STUDENT = {"network.width": "8"}


def main() -> None:
    """Run all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    runs = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root)
            teacher = train(folder, "teacher", seed, {"run.strategy": "eefl"})
            taught = {"run.strategy": "distree", "distree.teacher": str(folder / "teacher"), **STUDENT}
            students = train(folder, "students", seed, taught)
            single = train(folder, "single", seed, {"run.strategy": "eefl", **STUDENT})
        runs.append({"teacher": teacher, "students": students, "single": single})
        print(runs[-1], flush=True)
    last = {name: statistics.fmean(run[name][-1] for run in runs) for name in ("teacher", "students", "single")}
    result = {"seeds": dict(zip(options.seeds, runs, strict=True)), "last_exit": last}
    print(save("distree_federated", result))


def train(root: Path, name: str, seed: int, settings: dict[str, str]) -> list[float]:
    """Run the demo's preset with these settings; return the accuracy of every exit at the end."""
    flat = {"run.name": name, "run.root": str(root), "run.seed": str(seed), **settings}
    overrides = [word for key, value in flat.items() for word in ("-c", f"{key}={value}")]
    subprocess.run([sys.executable, "-m", "server", "run", "--preset", "demo", *overrides], check=True)
    measured = [event["accuracy"] for event in read_events(root / name / "metrics.jsonl") if event.get("accuracy")]
    exits: list[float] = measured[-1]["exits"]
    return exits


if __name__ == "__main__":
    main()
