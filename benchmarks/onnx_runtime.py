"""What inference takes with ONNX beside torch: disk, start, memory, milliseconds per image; on one thread.

Networks with random weights, as the cost does not depend on them: all samples go to the last exit (the whole network),
and a third of them leaves at each of three exits (early exits, one image at a time). Every runtime and network is a
process of its own, three times in turns; the medians count. int8 takes its ranges from random images. Disk is what the
packages take in this environment with all that they need: those of `client/requirements.txt`, and the base packages of
pyproject.toml, with and without CUDA's. It takes about 15 minutes on two busy cores:

    python -m benchmarks.onnx_runtime
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from importlib.metadata import files, requires, version
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.process_memory import memory

PROJECT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "ResNet-18": {"name": "resnet18", "exits": (5, 7, 9)},
    "slim ResNet": {"name": "resnet_slim", "exits": (2, 3, 5)},
    "WRN-16-2": {"name": "wrn16", "width": 2, "exits": (3, 5, 7)},
    "ViT, 64 wide": {"name": "vit_small32", "exits": (5, 9, 13)},
}
CUDA = ("cuda-", "nvidia-", "triton")  # names of the packages by which torch computes on GPUs
RUNTIMES = ("torch", "onnx", "onnx int8")
REPEATS, IMAGES, BATCH = 3, 96, 32


def make(folder: Path) -> None:
    """Store every network as a run does, export it, and export it in int8."""
    import torch

    from common.data.images import Normalizer
    from common.exits import budget_fractions, fit_thresholds
    from common.networks import NetworkSpec, build, cost_table
    from common.onnx.export import Description, difference, make_graphs, prepare, write_export
    from common.onnx.quantize import in_int8
    from common.storage.model_file import FILE, ModelInfo, save_model

    for title, kind in NETWORKS.items():
        spec = NetworkSpec(num_classes=10, input_shape=(3, 32, 32), **kind)  # type: ignore[arg-type]
        network, normalizer = build(spec, seed=1), Normalizer((0.5,), (0.25,))
        x = normalizer(torch.from_numpy(images(256)))
        with torch.no_grad():
            network.train()(x)  # running statistics
            logits = torch.stack(network.eval()(x))
        policy = fit_thresholds(logits, budget_fractions(3, 1.0))
        classes = tuple("abcdefghij")
        info = ModelInfo(spec.to_json(), 3, classes, normalizer.mean, normalizer.std, policy.to_json())
        save_model(folder / title / "torch" / FILE, network.state_dict(), info)
        about = Description("network", "benchmark", spec.name, classes, normalizer, policy)
        graphs, costs = make_graphs(network, features=False), cost_table(network)
        macs = [costs.macs(index) for index in range(3)]
        small = in_int8(graphs, x.numpy(), logits[-1].argmax(-1).numpy(), policy, macs)
        apart = difference(network, graphs)
        for runtime, made, own in (("onnx", graphs, policy), ("onnx int8", small.graphs, small.policy)):
            prepare(folder / title / runtime)
            chosen = Description(**{**vars(about), "policy": own})
            write_export(folder / title / runtime, network, made, chosen, largest_difference=apart)


def images(number: int) -> Any:
    """Return random pixels."""
    return np.random.default_rng(1).integers(0, 256, (number, 3, 32, 32), dtype=np.uint8)


def measure(runtime: str, folder: Path) -> dict[str, float]:
    """Return what one runtime takes for one network, in this process, which has not computed before."""
    started = time.perf_counter()
    from client.runtimes.base import Runtime, warm_up
    from common.exits.policy import ThresholdPolicy

    network: Runtime
    if runtime == "torch":
        from client.runtimes.with_torch import TorchNetwork

        network = TorchNetwork.open(folder, 1, "cpu", split=False)
    else:
        from client.runtimes.with_onnx import OnnxNetwork

        network = OnnxNetwork.open(folder, 1, split=False)
    warm_up(network)
    ready, x = time.perf_counter() - started, images(IMAGES)
    last = ThresholdPolicy((math.inf,) * (len(network.macs) - 1))

    def each(policy: ThresholdPolicy, size: int) -> float:
        times = []
        for start in range(0, IMAGES - size + 1, size):
            begun = time.thread_time()
            network.infer(x[start : start + size], policy)
            times.append(1000 * (time.thread_time() - begun) / size)
        return statistics.median(times) if policy is last else statistics.fmean(times)

    found = {"whole": each(last, 1), "batch": each(last, BATCH), "early": each(network.policy, 1)}
    exits = network.infer(x, network.policy).exits
    macs = float(np.asarray(network.macs)[exits].mean() / network.macs[-1])
    return {**found, "macs": macs, "ready_s": ready, "peak_mb": memory("VmHWM") / 1e6}


def in_process(runtime: str, folder: Path) -> dict[str, float]:
    """Measure in a new process."""
    words = [sys.executable, "-m", "benchmarks.onnx_runtime", "--measure", runtime, str(folder)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=PROJECT
    )
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def installed() -> dict[str, float]:
    """Return the megabytes of the packages that each runtime needs, with all that they need, as installed here."""
    base = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (PROJECT / "client" / "requirements.txt").read_text().splitlines()
    device = [line for line in lines if line and not line.startswith("#")]
    sizes = {
        name: {each: _bytes(each) for each in _closure(words)} for name, words in (("torch", base), ("onnx", device))
    }
    cuda = sum(size for name, size in sizes["torch"].items() if name.startswith(CUDA))
    found = {name: sum(own.values()) / 1e6 for name, own in sizes.items()}
    return {**found, "torch_without_cuda": found["torch"] - cuda / 1e6}


def _closure(requirements: Iterable[str]) -> set[str]:
    """Return the names of the packages that these requirements bring here."""
    found, left = set[str](), [Requirement(each) for each in requirements]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        extras = requirement.extras or {""}
        for each in map(Requirement, requires(name) or []):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
                each.marker = None
                left.append(each)
    return found


def _bytes(package: str) -> int:
    located = (Path(str(file.locate())) for file in files(package) or [])
    return sum(path.lstat().st_size for path in located if path.exists())


def main() -> None:
    """Measure all networks with all runtimes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", nargs=2, metavar=("RUNTIME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        runtime, folder = options.measure
        print(json.dumps(measure(runtime, Path(folder))))
        return
    from benchmarks.common import save

    result: dict[str, Any] = {
        "images": IMAGES, "batch": BATCH, "repeats": REPEATS, "networks": {},
        "onnx_versions": {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        make(Path(root))
        for title in NETWORKS:
            runs: dict[str, list[dict[str, float]]] = {runtime: [] for runtime in RUNTIMES}
            for _ in range(REPEATS):
                for runtime, found in runs.items():
                    found.append(in_process(runtime, Path(root) / title / runtime))
            result["networks"][title] = {
                runtime: {
                    **{key: statistics.median(one[key] for one in found) for key in found[0]},
                    "files_mb": sum(f.stat().st_size for f in (Path(root) / title / runtime).iterdir()) / 1e6,
                }
                for runtime, found in runs.items()
            }
            print(title, json.dumps(result["networks"][title], indent=1), flush=True)
    result["installed_mb"] = installed()
    print(save("onnx_runtime", result))


if __name__ == "__main__":
    main()
