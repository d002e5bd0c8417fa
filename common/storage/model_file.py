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
from common.storage.files import read_tensors, write_tensors
from common.weights.flat import StateDict

FILE = "model.safetensors"
STATISTICS = "statistics."
"""Before a cut and a key: running statistics that the layers after this cut have beside those of the whole."""


@dataclass(frozen=True)
class StoredModel:
    """A network (a tier's prefix, the units before a cut, or the whole) and how to use it."""

    network: EarlyExitNetwork
    spec: NetworkSpec
    """Of the whole network."""
    classes: tuple[str, ...]
    normalizer: Normalizer
    policy: ThresholdPolicy
    cut: int = 0
    run: str = ""
    half: bool = False
    statistics: Mapping[int, StateDict] = field(default_factory=dict)
    """Cut -> batch norm's running statistics by key, of cuts that have their own."""


@dataclass(frozen=True)
class ModelInfo:
    """The plain part of a bundle, as stored in the file's header."""

    spec: str  # JSON
    depth: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    policy: str  # JSON; empty: nobody leaves before the last exit
    cut: int = 0  # 0: the prefix of tier `depth`; else the units before the cut with one exit, at the cut
    run: str = ""  # the run's name: what answers a device's features must be of the same run
    half: bool = False  # a split run's server side: devices have the first units


def save_model(path: Path, state: StateDict, info: ModelInfo) -> None:
    """Write a bundle; `state` may hold more than the tier needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, state, vars(info))


def with_cuts(state: StateDict, statistics: Mapping[int, StateDict]) -> StateDict:
    """Return a state with cuts' own statistics beside its keys."""
    return state | {f"{STATISTICS}{cut}.{key}": v for cut, own in statistics.items() for key, v in own.items()}


def statistics_by_cut(state: StateDict) -> dict[int, StateDict]:
    """Return the statistics that `with_cuts` put into a state; raises `ValueError` when a cut is no number."""
    by_cut: dict[int, StateDict] = {}
    for key, value in state.items():
        if key.startswith(STATISTICS):
            cut, _, own = key.removeprefix(STATISTICS).partition(".")
            by_cut.setdefault(int(cut), {})[own] = value
    return by_cut


def load_model(path: Path) -> StoredModel:
    """Read a bundle from its file, or from a run's or client's folder that has one.

    Raises `UserError` when there is none or it is damaged.
    """
    candidates = [path, path / FILE, path / "final" / FILE]
    found = next((p for p in candidates if p.is_file()), None)
    if found is None:
        raise UserError(f"no model in {path}: {_advice(path)}")
    tensors, values = read_tensors(found)
    try:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        info = ModelInfo(**plain)
        spec = NetworkSpec.from_json(info.spec)
        whole = build(spec, seed=0)
        network = whole.prefix_units(info.cut) if info.cut else whole.prefix(info.depth)
        network.load_state_dict({key: tensors[key] for key in network.state_dict()})
        statistics = statistics_by_cut(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{found} does not hold a whole model: {error}") from error
    last = (float("inf"),) * (len(network.exit_positions) - 1)
    policy = ThresholdPolicy.from_json(info.policy) if info.policy else ThresholdPolicy(last)
    constants = Normalizer(info.mean, info.std)
    return StoredModel(network.eval(), spec, info.classes, constants, policy, info.cut, info.run, info.half, statistics)


def _advice(path: Path) -> str:
    """Return where to look for a model that is not in `path`."""
    try:
        stored = tomllib.loads((path / "config.toml").read_text())
        clients = store_root(stored["clients"]["store"]) / stored["run"]["name"]
    except (OSError, tomllib.TOMLDecodeError, KeyError):
        return f"give a finished run's folder, or a file {FILE}"
    personal = sorted(file.parent for file in clients.glob(f"client-*/{FILE}"))
    if personal:
        return f"each client of this run has its own, give the folder of one, such as {personal[0]}"
    return f"the run is not finished, or each client keeps its own, in {clients}/client-... where it trained"
