"""Does a GPU compute what the CPU does, the same in every run?"""

from collections.abc import Iterator
from statistics import mean
from typing import Any

import torch

from benchmarks.gpu.host import CPU, Host, resume, run
from benchmarks.same_bits_record import BASE, OWN_NETWORKS, VARIANTS, settings
from common.networks import NetworkSpec, build
from common.seeding import generator
from strategies.hetero_splitee.learner import Learner, Sgd, device_part, server_part, train_step
from strategies.hetero_splitee.vectorised import train_together
from strategies.registry import METHODS

TOLERANCE = 0.05  # of the way that two rounds of training go; float32 sums differ in their order, and ReLUs flip
CUT = 2
TEACHER = {**BASE, "run.strategy": "eefl", "network.width": 4, "clients.mix": "0,0,1"}


def cases(host: Host) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every method and variant with its settings, but for those that average nothing."""
    run(host, "teacher", TEACHER, CPU)
    teacher = host.root / "teacher"
    names = {name: (name, {}) for name in sorted(METHODS) if not name.startswith("local")} | VARIANTS
    chosen = ("eefl", "darkdistill", "cafedistill", "hetero_splitee", "distree")
    for name, (method, changes) in names.items():
        if not host.small or name in chosen:
            yield name, {**BASE, "run.strategy": method, **settings(method, teacher), **changes}


def methods(host: Host) -> dict[str, Any]:
    """Compare two rounds of every method with the CPU's, without TF32, and with themselves."""
    torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {}
    for number, (name, changed) in enumerate(cases(host)):
        there, again, here = (
            run(host, f"{number}-{place}", _placed(changed, device), device)
            for place, device in (("a", host.device), ("b", host.device), ("cpu", CPU))
        )
        found[name] = {"distance_from_cpu": there.distance(here), "repeats": there.same_bits(again)}
    passed = all(one["distance_from_cpu"] < TOLERANCE and one["repeats"] for one in found.values())
    return {"passed": passed, "tolerance": TOLERANCE, "methods": found}


def resumed(host: Host) -> dict[str, Any]:
    """Kill a run after its first round and continue it: the same bits as without."""
    found = {}
    for method in ("darkdistill", "cafedistill"):
        personal = {"data.client-test": 0.25} if method in OWN_NETWORKS else {}
        changed = _placed({**BASE, **personal, "run.strategy": method}, host.device)
        whole = run(host, f"whole-{method}", changed)
        run(host, f"killed-{method}", changed, last=1)
        found[method] = resume(host, f"killed-{method}").same_bits(whole)
    return {"passed": all(found.values()), "same_bits": found}


def precision(host: Host) -> dict[str, Any]:
    """What bf16 and the fast kernels cost in accuracy: EEFL on digits, paired by seed."""
    seeds = (1,) if host.small else (1, 2, 3, 4, 5)
    rounds = 2 if host.small else 20
    base = {"run.strategy": "eefl", "run.rounds": rounds, "server.evaluate-every": rounds}
    bf16 = {"clients.autocast": True, "server.autocast": True}
    ways: dict[str, dict[str, Any]] = {"float32": {}, "bf16": bf16, "fast": {"run.fast": True}}
    accuracy = {
        name: [
            run(host, f"{name}-{seed}", {**base, **changed, "run.seed": seed}).records[-1].accuracy["mean"]
            for seed in seeds
        ]
        for name, changed in ways.items()
    }
    costs = {name: mean(values) - mean(accuracy["float32"]) for name, values in accuracy.items()}
    return {"accuracy": accuracy, "gain_over_float32": costs}


def together(host: Host) -> dict[str, Any]:
    """Train copies of a split network together and one after another: the largest difference of a weight."""
    torch.backends.cudnn.allow_tf32 = False
    network, source = build(NetworkSpec("resnet_slim", 10, (3, 32, 32), width=8), 1), generator(1, "together")
    with torch.no_grad():
        device = device_part(network, CUT)
        images = torch.randn(4, 16, 3, 32, 32, generator=source)
        features = torch.stack([device.forward_exits(x).trunk for x in images]).to(host.device)
    labels = torch.randint(10, (4, 16), generator=source).to(host.device)
    sgd = Sgd(0.01, 0.9, 1e-4)
    alone, joint = ([Learner.copy_of(server_part(network, CUT), host.device) for _ in range(4)] for _ in range(2))
    for learner, x, y in zip(alone, features, labels, strict=True):
        train_step(learner, learner.network, 0, sgd, x, y, return_gradient=False)
    train_together(joint, sgd, features, labels, return_gradient=False)
    apart = max(float((one.model.floats - two.model.floats).abs().max()) for one, two in zip(alone, joint, strict=True))
    return {"passed": apart < 1e-3, "largest_difference": apart}


def memory(host: Host) -> dict[str, Any]:
    """What the device holds at most while 10, 100 and 1000 clients take part in a round."""
    if host.device.type != "cuda":
        return {"skipped": "torch counts a GPU's memory only"}
    peaks = {}
    for clients in (10, 100, 1000):
        torch.cuda.reset_peak_memory_stats(host.device)
        run(host, f"memory-{clients}", {
            "run.strategy": "darkdistill", "run.rounds": 1, "clients.count": clients, "clients.per-round": clients,
            "server.evaluate-every": 0,
        })  # fmt: skip
        peaks[clients] = torch.cuda.max_memory_allocated(host.device) / 2**20
    return {"passed": peaks[1000] < 1.2 * peaks[10], "peak_mib": peaks}


def _placed(changed: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return settings without the devices that they name, but for this one."""
    return {**changed, "clients.device": device.type, "server.device": device.type}
