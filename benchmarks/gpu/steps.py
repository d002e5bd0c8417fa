"""A client's inner step: how long it takes in each of the ways in which it could run, and how long it should take."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.host import CPU, Host
from common.devices import autocast, set_kernels
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.objectives.joint import Joint
from common.weights.flat import FlatModel

SPECS = {
    "slim ResNet, digits": NetworkSpec("resnet_slim", 10, (1, 8, 8)),
    "slim ResNet, CIFAR": NetworkSpec("resnet_slim", 10, (3, 32, 32)),
    "ResNet-18, CIFAR": NetworkSpec("resnet18", 10, (3, 32, 32)),
    "DeiT-tiny, 224": NetworkSpec("deit_tiny", 100, (3, 224, 224)),
}
BATCH, COPIES = 32, 8
FEW = 2  # samples in a batch that is only counted
# What the predictions assume of one H100 or H200: a quarter of the dense peak in bf16 and of that in TF32, which small
# batches rarely reach, and the time in which a process launches a kernel, forward and backward
FLOPS = {"float32": 120e12, "bf16": 240e12}
LAUNCH = 8e-6
VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "expand", "permute", "detach", "slice", "select", "as_strided", "alias",
    "unsqueeze", "squeeze", "split", "unbind", "empty", "empty_like", "empty_strided", "lift_fresh", "chunk",
}  # fmt: skip


class Step:
    """One step of SGD on the sum of the exits' losses, as local training takes it."""

    def __init__(self, spec: NetworkSpec, device: torch.device, bf16: bool, batch: int = BATCH) -> None:
        self.device, self.bf16 = device, bf16
        self.model: FlatModel[EarlyExitNetwork] = FlatModel(build(spec, 1).to(device).train())
        self.optimizer = torch.optim.SGD([self.model.trained], lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.x = torch.randn(batch, *spec.input_shape, device=device)
        self.y = torch.randint(spec.num_classes, (batch,), device=device)
        self.network: Callable[[Tensor], Any] = self.model.module

    def __call__(self) -> None:
        """Take the step."""
        self.model.zero_grad()
        with autocast(self.device, self.bf16):
            loss = Joint().loss(self.network, self.x, self.y)  # type: ignore[arg-type]
        loss.total.backward()
        self.optimizer.step()


class Kernels(TorchDispatchMode):
    """Counts the operations that compute: about one kernel each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        self.count += function.overloadpacket.__name__ not in VIEWS
        return function(*args, **(kwargs or {}))


def work(spec: NetworkSpec, bf16: bool) -> tuple[int, float]:
    """Return the kernels of one step and its floating-point operations, counted on the CPU with a small batch."""
    step = Step(spec, CPU, bf16, FEW)
    step()
    with Kernels() as kernels:
        step()
    with FlopCounterMode(display=False) as flops:
        step()
    return kernels.count, flops.get_total_flops() * BATCH / FEW


def captured(step: Step) -> Callable[[], None]:
    """Return the step as one CUDA graph: its kernels are launched at once. Its inputs are those of the step."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def compiled(step: Step) -> Callable[[], None]:
    """Return the step with its network compiled."""
    step.network = torch.compile(step.model.module)
    return step


def stacked(step: Step) -> Callable[[], None]:
    """Return a step of COPIES models at once, each on its own batch."""
    network = step.model.module
    weights = {k: torch.stack([v.detach()] * COPIES).requires_grad_() for k, v in network.named_parameters()}
    buffers = {k: torch.stack([v] * COPIES) for k, v in network.named_buffers()}
    optimizer = torch.optim.SGD(weights.values(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    x, y = torch.stack([step.x] * COPIES), torch.stack([step.y] * COPIES)

    def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(network, (weights, buffers), (x,))
        return torch.stack([torch.nn.functional.cross_entropy(z, y) for z in logits]).sum()

    def take() -> None:
        optimizer.zero_grad()
        with autocast(step.device, step.bf16):
            losses = torch.vmap(one, randomness="different")(weights, buffers, x, y)
        losses.sum().backward()
        optimizer.step()

    return take


WAYS: dict[str, tuple[Callable[[Step], Callable[[], None]], int]] = {  # name -> how, and models that it steps
    "as it is": (lambda step: step, 1),
    "CUDA graph": (captured, 1),
    "compiled": (compiled, 1),
    f"{COPIES} models at once": (stacked, COPIES),
}


def measure(host: Host) -> dict[str, Any]:
    """Return milliseconds per model and step for every network, precision and way, beside the prediction."""
    found: dict[str, Any] = {}
    for name, spec in list(SPECS.items())[: 1 if host.small else None]:
        for precision in ("float32", "bf16"):
            kernels, flops = work(spec, precision == "bf16")
            row: dict[str, Any] = {
                "kernels": kernels,
                "gflop": flops / 1e9,
                "predicted": predicted(kernels, flops, precision),
            }
            for fast in (False, True):
                set_kernels(fast=fast)
                for way, (make, models) in WAYS.items():
                    if way == "as it is" or fast:
                        row[f"{way}, fast" if fast else way] = _try(host, make, models, spec, precision)
            found[f"{name}, {precision}"] = row
    set_kernels()
    return {"unit": "ms a step and model", "steps": found}


def predicted(kernels: int, flops: float, precision: str) -> dict[str, float]:
    """Return the milliseconds that the kernels' launches take, those that the arithmetic takes, and the larger."""
    launches, arithmetic = 1e3 * kernels * LAUNCH, 1e3 * flops / FLOPS[precision]
    return {"launches": launches, "arithmetic": arithmetic, "step": max(launches, arithmetic)}


def _try(
    host: Host, make: Callable[[Step], Callable[[], None]], models: int, spec: NetworkSpec, precision: str
) -> float | str:
    if host.device.type != "cuda" and make in (captured, compiled):
        return "needs a GPU"
    with torch.cuda.device(host.device) if host.device.type == "cuda" else nullcontext():
        try:
            return _milliseconds(host, make(Step(spec, host.device, precision == "bf16"))) / models
        except Exception as error:  # a way that does not work is a result
            return f"{type(error).__name__}: {error}"[:300]


def _milliseconds(host: Host, step: Callable[[], None]) -> float:
    for _ in range(1 if host.small else 5):
        step()
    number, best = (2, 1) if host.small else (20, 3)
    times = []
    for _ in range(best):
        started = host.wait()
        for _ in range(number):
            step()
        times.append((host.wait() - started) / number)
    return 1e3 * min(times)
