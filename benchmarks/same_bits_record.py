"""What a tree's methods compute, as JSON: `python -P benchmarks/same_bits_record.py OUT [METHOD ...]`.

`benchmarks.same_bits` runs it with the code of this tree and of an older one, so it names modules that have moved
in one table.
"""

import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

# What is needed of a tree: as this tree calls it -> as older ones do.
MOVED: dict[str, tuple[str, ...]] = {
    "common.flower.local_grid:LocalGrid": ("common.local_grid:LocalGrid",),
    "common.storage.files:read_tensors": ("common.storage:read_tensors",),
    "server.execution:prepare": ("server.app:prepare",),
    "strategies.registry:METHODS": ("strategies.registry:MODULES",),
}
BASE: dict[str, Any] = {
    "run.rounds": 2, "clients.count": 6, "clients.per-round": 5, "clients.mix": "equal", "clients.device": "cpu",
    "train.batch-size": 16, "network.name": "lenet", "network.width": 3, "data.limit": 240, "data.partitioner":
    "dirichlet", "server.device": "cpu", "server.clients-evaluate-every": 1,
}  # fmt: skip
PERSONAL = {"data.client-test": 0.25}
SPLIT = {**PERSONAL, "network.name": "resnet_slim", "network.width": 2, "clients.per-round": 6}
# Settings beside the defaults that take another way through the frame: a name, its method, what is set.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "eefl, boosted": ("eefl", {"objective.name": "boosted", "network.name": "resnet_slim", "network.width": 2}),
    "eefl, robust": ("eefl", {"robust.aggregation": "median", "robust.reject": 3.0}),
    "cafedistill, across depths": ("cafedistill", {"cafedistill.across-depths": True}),
    "darkdistill, parallel": ("darkdistill", {"darkdistill.variant": "parallel", "darkdistill.batch": 16}),
    "darkdistill, sketch": ("darkdistill", {"difficulty.upload": "sketch", "network.name": "resnet_slim"}),
    "hetero_splitee, averaging": ("hetero_splitee", {"splitee.mode": "averaging"}),
    "hetero_splitee, global": ("hetero_splitee", {"splitee.mode": "averaging", "splitee.aggregate-scope": "global"}),
    "hetero_splitee, prefix": ("hetero_splitee", {"splitee.client-sync": "prefix", "splitee.gradient": "return"}),
}
OWN_NETWORKS = ("cafedistill", "ditto", "fedavg_ft", "fedbabu", "fedper", "fedrep", "local", "local_only")
OF_THE_CLOCK = ("seconds", "bytes")  # ends of metrics' names
MEASURED = ("seconds", "traffic", "device")  # fields of a round's event


def need(name: str) -> Any:
    """Return what this tree calls so, or what an older one calls otherwise."""
    for candidate in (name, *MOVED.get(name, ())):
        module, _, attribute = candidate.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise ImportError(f"this tree has no {name}, nor what MOVED calls it")


def settings(method: str, teacher: Path) -> dict[str, Any]:
    """Return what a method needs beside its defaults."""
    if method == "hetero_splitee":
        return SPLIT
    if method == "distree":
        return {"distree.teacher": str(teacher), "distree.kept-edges": 0.3, "server.clients-evaluate-every": 0}
    return PERSONAL if method in OWN_NETWORKS else {}


def run(method: str, changes: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Run a method as the ServerApp does; return everything that must not change, by name."""
    name = root.name
    flat = {
        **BASE, **changes, "run.name": name, "run.strategy": method, "run.root": str(root),
        "clients.store": str(root / "kept"),
    }  # fmt: skip
    strategy = need("server.execution:prepare")(flat)
    grid = need("common.flower.local_grid:LocalGrid")
    nodes = [{"partition-id": partition} for partition in range(2)]
    strategy.start(grid(need("client.app:app"), nodes, concurrent=method == "hetero_splitee"))
    folder = root / name
    found = dict(tensors("weights/model", strategy.model))
    own, values = strategy.state_dict()
    found |= dict(tensors("weights/method", own)) | dict(plain("weights/method", values))
    for file in sorted((folder / "final").rglob("*.safetensors")):
        found |= dict(stored(f"weights/final/{file.name}", file))
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "round":
            measured = {key: value for key, value in event.items() if key not in MEASURED}
            found |= dict(plain(f"metrics/{event['round']}", measured))
    for file in sorted((root / "kept").rglob("*.safetensors")):
        found |= dict(stored(f"kept/{file.relative_to(root / 'kept')}", file))
    return found


def stored(name: str, file: Path) -> Iterator[tuple[str, Any]]:
    """Yield a file's tensors and plain values."""
    found, values = need("common.storage.files:read_tensors")(file)
    yield from tensors(name, found)
    yield from plain(f"{name}/values", values)


def tensors(name: str, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Yield a digest of each tensor's type, shape and bits."""
    for key, value in state.items():
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + bits).hexdigest()
        yield f"{name}/{key}", digest[:16]


def plain(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the numbers and texts of nested plain values, but for what the clock or names decide."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not str(key).endswith(OF_THE_CLOCK):
                yield from plain(f"{name}/{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from plain(f"{name}/{index}", item)
    else:
        yield name, value


def main() -> None:
    """Run every method of the registry and the variants, or those that are named."""
    out, *chosen = sys.argv[1:]
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = {"network.width": 4, "clients.mix": "0,0,1"}
        run("eefl", whole, root / "teacher")
        cases = {method: (method, {}) for method in sorted(need("strategies.registry:METHODS"))} | VARIANTS
        for name, (method, changes) in cases.items():
            if not chosen or method in chosen:
                place = root / name.replace(", ", "-").replace(" ", "-")
                found[name] = run(method, {**settings(method, root / "teacher" / "teacher"), **changes}, place)
        text = json.dumps(found).replace(str(root), "ROOT")
    Path(out).write_text(text)


if __name__ == "__main__":
    main()
