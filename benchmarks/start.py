"""How long a user waits: from the command to the end of the first round, and to the table at the end.

    ray             `python -m server run`: Ray, and a worker per core
    in-process      the same with `--in-process`

Two rounds of next to no training: 20 clients, LeNet, digits. Run `python -m benchmarks.start`; cases take turns, after
a run that fills the cache of digits. CPU-seconds are those of all processes that a command started.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Meter, save
from common.flower.processes import PROJECT
from common.storage.run_files import read_events

SETTINGS = {
    "run.strategy": "eefl", "data.name": "digits", "network.name": "lenet", "clients.count": 20,
    "clients.per-round": 10, "run.rounds": 2,
}  # fmt: skip
CASES = {"ray": [], "in-process": ["--in-process"]}
LOOK = 0.05  # seconds between two looks at the metrics


def measure(home: Path, name: str, options: list[str]) -> dict[str, float]:
    """Run the command once; return the seconds to the end of the first round, and of all, and the CPU-seconds."""
    words = [word for key, value in {**SETTINGS, "run.name": name}.items() for word in ("-c", f"{key}={value}")]
    meter, began, spent, first = Meter(), time.perf_counter(), 0.0, 0.0
    metrics = home / "runs" / name / "metrics.jsonl"
    env = os.environ | {"FLWR_HOME": str(home / ".flwr")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # with it every process compiles the app anew; few users set it
    with subprocess.Popen(
        [sys.executable, "-m", "server", "run", *options, *words], cwd=PROJECT,
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while process.poll() is None:
            if not first and any(event["event"] == "round" for event in read_events(metrics)):
                first, spent = time.perf_counter() - began, meter.lap()[1]
            time.sleep(LOOK)
    if process.returncode:
        raise RuntimeError(f"the case {name} failed: exit code {process.returncode}")
    whole = time.perf_counter() - began
    return {"first_round_s": first, "cpu_seconds_to_first_round": spent, "whole_s": whole, "load": os.getloadavg()[0]}


def main() -> None:
    """Measure both cases in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), "warm-up", CASES["in-process"])
        for repeat in range(options.repeats):
            for case, words in CASES.items():
                runs[case].append(measure(Path(folder), f"{case}-{repeat}", words))
                print(case, runs[case][-1], flush=True)
    medians: dict[str, Any] = {
        case: {name: statistics.median(run[name] for run in measured) for name in measured[0]}
        for case, measured in runs.items()
    }
    print(save("start", {"repeats": options.repeats, **medians}))


if __name__ == "__main__":
    main()
