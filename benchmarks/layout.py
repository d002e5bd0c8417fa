"""What a training step costs where the channels of a pixel lie side by side in memory, and where they do not.

    planes          a batch as (B, C, H, W) in this order
    channels-last   the same batch as `common.devices.channels_last` lays it out, as clients train

Run `python -m benchmarks.layout`: forward and backward passes of all exits on one thread, in turns, in CPU-seconds.
"""

import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import save
from common.devices import channels_last, keep_memory, set_kernels
from common.networks import EarlyExitNetwork, NetworkSpec, build

NETWORKS = {  # shape of an image, width, batch: as the studies train
    "convnet, width 64": ("convnet", (3, 32, 32), 64, 64),
    "convnet, width 32": ("convnet", (3, 32, 32), 32, 64),
    "resnet_slim": ("resnet_slim", (3, 32, 32), 0, 32),
    "resnet_slim at 16x16": ("resnet_slim", (3, 16, 16), 0, 32),
    "resnet18, width 8": ("resnet18", (3, 32, 32), 8, 32),
    "wrn16, factor 1": ("wrn16", (3, 32, 32), 1, 64),
    "lenet": ("lenet", (3, 32, 32), 0, 32),
    "lenet, grey images": ("lenet", (1, 28, 28), 0, 32),
}
TURNS, WARM_UP = 25, 3


def step(network: EarlyExitNetwork, x: Tensor, y: Tensor) -> float:
    """Return the CPU-seconds of one pass forward and backward."""
    began = time.process_time()
    losses = [F.cross_entropy(logits, y) for logits in network(x)]
    torch.autograd.grad(sum(losses, torch.zeros(())), list(network.parameters()))
    return time.process_time() - began


def measure(name: str, shape: tuple[int, int, int], width: int, batch: int) -> dict[str, float]:
    """Return milliseconds of a step in both layouts, medians, and how many times as fast the second one is."""
    network = build(NetworkSpec(name, 10, shape, width=width), seed=0).train()
    planes, y = torch.randn(batch, *shape), torch.randint(10, (batch,))
    spent = [(step(network, planes, y), step(network, channels_last(planes), y)) for _ in range(WARM_UP + TURNS)]
    in_turns = spent[WARM_UP:]
    first, second = (1000 * statistics.median(column) for column in zip(*in_turns, strict=True))
    return {
        "planes_ms": first,
        "channels_last_ms": second,
        "times_as_fast": statistics.median(a / b for a, b in in_turns),
    }


def main() -> None:
    """Measure all networks."""
    torch.set_num_threads(1)
    keep_memory()
    set_kernels()
    found = {}
    for title, (name, shape, width, batch) in NETWORKS.items():
        found[title] = {"batch": batch, **measure(name, shape, width, batch)}
        print(title, found[title], flush=True)
    print(save("layout", {"turns": TURNS, "networks": found}))


if __name__ == "__main__":
    main()
