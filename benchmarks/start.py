"""How long a user waits: from the command to the end of the first round, and to the table at the end.

    ray             `python -m server run`: Ray, and a worker per core
    in-process      the same with `--in-process`

    before          the first one in the checkout that `--beside` names

Two rounds of next to no training: 20 clients, LeNet, digits. Run `python -m benchmarks.start`; cases take turns, after
a run of each that fills the caches. CPU-seconds are those of all processes that a command started.
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
LOOK = 0.05  # seconds between two looks at the metrics


def measure(home: Path, name: str, options: list[str], checkout: Path) -> dict[str, float]:
    """Run a checkout's command once; return the seconds to the end of the first round and of all, and CPU-seconds."""
    words = [word for key, value in {**SETTINGS, "run.name": name}.items() for word in ("-c", f"{key}={value}")]
    meter, began, spent, first = Meter(), time.perf_counter(), 0.0, 0.0
    metrics = home / "runs" / name / "metrics.jsonl"
    env = os.environ | {"FLWR_HOME": str(home / ".flwr")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # with it every process compiles the app anew; few users set it
    with subprocess.Popen(
        [sys.executable, "-m", "server", "run", *options, *words], cwd=checkout,
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
    """Measure all cases in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--beside", type=Path, metavar="FOLDER", help="another checkout, to be measured in the same run"
    )
    options = parser.parse_args()
    cases: dict[str, tuple[list[str], Path]] = {"ray": ([], PROJECT), "in-process": (["--in-process"], PROJECT)}
    if options.beside:
        cases["before"] = [], options.beside.resolve()
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats + 1):
            for case, (words, checkout) in cases.items():
                found = measure(Path(folder), f"{case}-{repeat}", words, checkout)
                print(case, found, flush=True)
                if repeat:
                    runs[case].append(found)
    result: dict[str, Any] = {"repeats": options.repeats} | {
        case: {name: statistics.median(run[name] for run in measured) for name in measured[0]}
        for case, measured in runs.items()
    }
    if options.beside:
        result["times_as_fast"] = {
            name: [old[name] / new[name] for old, new in zip(runs["before"], runs["ray"], strict=True)]
            for name in ("first_round_s", "whole_s")
        }
    print(save("start", result))


if __name__ == "__main__":
    main()
