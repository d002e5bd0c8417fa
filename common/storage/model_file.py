"""A finished model in one file, all that offline inference needs: weights, network, classes, constants, thresholds."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data.images import Normalizer
from common.errors import UserError
from common.exits import ThresholdPolicy
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.paths import store_root
from common.plugins import PluginError
from common.storage.files import read_tensors, write_tensors
from common.storage.format import FORMAT, check_format
from common.weights.flat import StateDict

FILE = "model.safetensors"


@dataclass(frozen=True)
class StoredModel:
    """A network (a tier's prefix, the units before a cut, or the whole) and how to use it."""

    network: EarlyExitNetwork
    spec: NetworkSpec  # of the whole network
    classes: tuple[str, ...]
    normalizer: Normalizer
    policy: ThresholdPolicy
    cut: int = 0
    run: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)  # the method's own plain values
    others: StateDict = field(default_factory=dict)  # the method's own tensors: those that the network does not have


@dataclass(frozen=True)
class ModelInfo:
    """The plain part of a stored model, as in the file's header."""

    spec: str  # JSON
    depth: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    policy: str  # JSON; empty: all samples go to the last exit
    cut: int = 0  # 0: the prefix of tier `depth`; else the units before the cut with one exit, at the cut
    run: str = ""  # the run's name: a server answers only features of devices of the same run
    values: Mapping[str, Any] = field(default_factory=dict)  # the method's own plain values


def save_model(path: Path, state: StateDict, info: ModelInfo) -> None:
    """Write a stored model; `state` may hold more than the tier needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, state, {"format": FORMAT, **vars(info)})


def load_model(path: Path) -> StoredModel:
    """Read a bundle from its file, or from a run's or client's folder that has one.

    Raises `UserError` when there is none or it is damaged.
    """
    candidates = [path, path / FILE, path / "final" / FILE]
    found = next((p for p in candidates if p.is_file()), None)
    if found is None:
        raise UserError(f"no model in {path}: {_advice(path)}")
    tensors, values = read_tensors(found)
    check_format(found, values.pop("format", 1))
    try:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        info = ModelInfo(**plain)
        spec = NetworkSpec.from_json(info.spec)
        whole = build(spec, seed=0)
        network = whole.prefix_units(info.cut) if info.cut else whole.prefix(info.depth)
        network.load_state_dict({key: tensors[key] for key in network.state_dict()})
        others = {key: tensors[key] for key in tensors.keys() - whole.state_dict().keys()}
    except PluginError as error:
        raise UserError(f"{found}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{found} does not hold a whole model: {error}") from error
    last = (float("inf"),) * (len(network.exit_positions) - 1)
    policy = ThresholdPolicy.from_json(info.policy) if info.policy else ThresholdPolicy(last)
    constants = Normalizer(info.mean, info.std)
    return StoredModel(network.eval(), spec, info.classes, constants, policy, info.cut, info.run, info.values, others)


def _advice(path: Path) -> str:
    """Return where to look for a model that is not in `path`."""
    try:
        stored = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        clients = store_root(stored["clients"]["store"]) / stored["run"]["name"]
    except (OSError, ValueError, KeyError):
        return f"give a finished run's folder, or a file {FILE}"
    personal = sorted(file.parent for file in clients.glob(f"client-*/{FILE}"))
    if personal:
        return f"each client of this run has its own, give the folder of one, such as {personal[0]}"
    return f"the run is not finished, or each client keeps its own, in {clients}/client-... where it trained"
