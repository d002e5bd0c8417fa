"""What a server round of DarkDistill costs beyond averaging (generators and reverse distillation), by size.

    paper    DeiT-tiny on 224 x 224, 4 tiers, 100 classes, batches of 32, S = 2, R = 5 (KDD 2025)
    cifar10  the slim ResNet on 32 x 32
    demo     the slim ResNet on digits, 8 x 8

Run `python -m benchmarks.distillation`. Where a whole round takes too long, `--server-epochs 1 --distill-steps 1`
measures single steps; the published round (S = 2, R = 5) is then derived from them and marked as derived. With CUDA
the benchmark first checks that the losses agree with the CPU's.
"""

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import save
from common.devices import pick_device, set_kernels, threads
from common.networks import NetworkSpec, build
from common.seeding import generator
from strategies.darkdistill.difficulty import DifficultyPairs
from strategies.darkdistill.generator import make_generator
from strategies.darkdistill.runtime import Optimizers, Runtime, Tier
from strategies.darkdistill.server_step import TransferReport, make_meter, transfer
from strategies.darkdistill.settings import DarkDistillSettings

SIZES = {
    "demo": NetworkSpec("resnet_slim", 10, (1, 8, 8), ensemble=0.2),
    "cifar10": NetworkSpec("resnet_slim", 10, (3, 32, 32), ensemble=0.2),
    "paper": NetworkSpec("deit_tiny", 100, (3, 224, 224)),
}
PUBLISHED = DarkDistillSettings(distill_weight_decay=1e-3, generator_bounded=False)  # S = 2, R = 5, batches of 32
SAMPLES = 1000  # difficulties per tier
MATRIX_PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_convolution", "aten::cudnn_convolution",
    "aten::convolution_backward", "aten::_slow_conv2d_forward", "aten::_slow_conv2d_backward",
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_efficient_attention_backward",
    "aten::_flash_attention_forward", "aten::_flash_attention_backward",
    "aten::_efficient_attention_forward", "aten::_efficient_attention_backward",
)  # fmt: skip


class Server:
    """What a round's transfer works on, with fixed seeds: the same on every device."""

    def __init__(self, spec: NetworkSpec, device: torch.device, autocast: bool = False) -> None:
        network = build(spec, seed=1).to(device)
        depths = range(1, len(network.tier_positions) + 1)
        self.device = device
        self.runtime = Runtime(device, generator(1, "server"), autocast)
        self.tiers = {k: Tier(network.prefix(k).to(device), SAMPLES, self._pairs(k, spec.num_classes)) for k in depths}
        self.generators = {k: make_generator(network, PUBLISHED, seed=k).to(device) for k in depths}
        self.meter = make_meter(network).to(device)
        models = [tier.model for tier in self.tiers.values()]
        self.optimizers = Optimizers.create(models, self.generators, PUBLISHED)

    def transfer(self, epochs: int, generator_steps: int, distill_steps: int) -> TransferReport:
        """Run S epochs of generator and distillation steps; either may be 0."""
        # without a check: a step of one kind alone is no valid configuration
        settings = PUBLISHED.model_copy(
            update={"server_epochs": epochs, "generator_steps": generator_steps, "distill_steps": distill_steps}
        )
        return transfer(
            self.tiers, self.generators, self.meter, self.optimizers, settings=settings, runtime=self.runtime
        )  # fmt: skip

    def seconds(self, epochs: int, generator_steps: int, distill_steps: int) -> float:
        """Time a transfer."""
        self._wait()
        started = time.perf_counter()
        self.transfer(epochs, generator_steps, distill_steps)
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @staticmethod
    def _pairs(depth: int, classes: int) -> DifficultyPairs:
        rng = generator(1, "pairs", depth)
        difficulty = -torch.rand(SAMPLES, generator=rng).clamp_min(1e-6).log()  # exponential, mean 1 nat
        return DifficultyPairs(difficulty, torch.randint(classes, (SAMPLES,), generator=rng))


def measure(spec: NetworkSpec, device: torch.device, autocast: bool, epochs: int, steps: int) -> dict[str, Any]:
    """Return the seconds of a round and of its steps, which operations take them, and the sizes of the models."""
    server = Server(spec, device, autocast)
    server.transfer(1, 1, 1)  # warm up
    whole = (epochs, steps) == (PUBLISHED.server_epochs, PUBLISHED.distill_steps)
    generators, distillation = (min(server.seconds(1, *one) for _ in range(2)) for one in ((1, 0), (0, 1)))
    measured = server.seconds(epochs, PUBLISHED.generator_steps, steps)
    derived = PUBLISHED.server_epochs * (
        PUBLISHED.generator_steps * generators + PUBLISHED.distill_steps * distillation
    )  # fmt: skip
    return {
        "generator_step_seconds": generators,  # all tiers
        "distill_step_seconds": distillation,  # all pairs
        "measured": {"server_epochs": epochs, "distill_steps": steps, "seconds": measured},
        "round_seconds": measured if whole else derived,
        "round_is": "measured" if whole else "derived from single steps, not measured",
        "generator_parameters": {k: g.parameter_count for k, g in server.generators.items()},
        "model_parameters": {k: sum(p.numel() for p in t.model.parameters()) for k, t in server.tiers.items()},
        **shares(server),
    }


def shares(server: Server, top: int = 8) -> dict[str, Any]:
    """Profile one step of each kind: shares of time in matrix products and in the operations that take most."""
    on_gpu = server.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        server.transfer(1, 1, 1)
    spent = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    if on_gpu:  # kernels are listed beside the operations that launched them
        spent = {key: time_ for key, time_ in spent.items() if key.startswith("aten::")}
    total = sum(spent.values())
    largest = sorted(spent, key=lambda key: -spent[key])[:top]
    return {
        "matrix_product_share": sum(spent.get(name, 0.0) for name in MATRIX_PRODUCTS) / total,
        "largest_shares": {key: round(spent[key] / total, 4) for key in largest},
    }


def losses(spec: NetworkSpec, device: torch.device, epochs: int, steps: int) -> list[float]:
    """Return every loss term of a transfer with fixed seeds, in order."""
    report = Server(spec, device).transfer(epochs, 1, steps)
    found = [
        getattr(step, name)
        for tiers in report.generators
        for step in tiers.values()
        for name in ("label", "difficulty", "diversity")
    ]
    for step in report.distillation:
        found += [step.loss, *(value for pair in step.pairs.values() for value in (*pair.distance, *pair.angle))]
    return found


def largest_difference(one: Sequence[float], two: Sequence[float]) -> float:
    """Return the largest relative difference between two lists of losses."""
    return max(abs(a - b) / max(abs(a), abs(b), 1e-3) for a, b in zip(one, two, strict=True))


def agreement(spec: NetworkSpec, device: torch.device, epochs: int = 1, steps: int = 2) -> float:
    """Return the largest relative difference of a device's losses from the CPU's, in full float32 precision."""
    exact = torch.backends.cudnn.flags(allow_tf32=False) if device.type == "cuda" else nullcontext()
    with exact:
        return largest_difference(
            losses(spec, device, epochs, steps), losses(spec, torch.device("cpu"), epochs, steps)
        )  # fmt: skip


def main() -> None:
    """Measure every size and save the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--autocast", action="store_true", help="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--server-epochs", type=int, default=PUBLISHED.server_epochs)
    parser.add_argument("--distill-steps", type=int, default=PUBLISHED.distill_steps)
    options = parser.parse_args()
    device = pick_device(options.device)
    set_kernels()
    result: dict[str, Any] = {"on": str(device), "threads": options.threads, "autocast": options.autocast}
    with threads(options.threads):
        if device.type == "cuda":
            result["difference_from_cpu"] = {n: agreement(SIZES[n], device) for n in ("demo", "cifar10")}
        for name in options.sizes.split(","):
            result[name] = measure(
                SIZES[name], device, options.autocast, options.server_epochs, options.distill_steps
            )  # fmt: skip
            print(name, json.dumps(result[name], indent=1), flush=True)
    print(save(f"distillation_{device.type}{'_bf16' if options.autocast else ''}", result))


if __name__ == "__main__":
    main()
