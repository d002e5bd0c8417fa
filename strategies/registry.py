"""Methods by name. A method is a server half (a strategy), a client half and a section of hyper-parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from common.config import RunConfig
from common.errors import UserError
from common.settings import Settings
from strategies.node.local_training import LocalMethod
from strategies.parts import TIERS, Parts

MODULES = {
    "cafedistill": "strategies.cafedistill",
    "darkdistill": "strategies.darkdistill",
    "depthfl": "strategies.baselines.depthfl",
    "distree": "strategies.distree",
    "ditto": "strategies.personalised.ditto",
    "eefl": "strategies.baselines.eefl",
    "exclusivefl": "strategies.baselines.exclusivefl",
    "fedavg": "strategies.baselines.fedavg",
    "fedavg_ft": "strategies.personalised.fedavg_ft",
    "fedbabu": "strategies.personalised.fedbabu",
    "fedper": "strategies.personalised.fedper",
    "fedprox": "strategies.baselines.fedprox",
    "fedrep": "strategies.personalised.fedrep",
    "hetero_splitee": "strategies.hetero_splitee",
    "local": "strategies.personalised.local_only",
}
SECTIONS = {
    "cafedistill": "strategies.cafedistill.settings:CAFEDistillSettings",
    "darkdistill": "strategies.darkdistill.settings:DarkDistillSettings",
    "depthfl": "strategies.baselines.depthfl:DepthFLSettings",
    "difficulty": "strategies.darkdistill.settings:DifficultySettings",
    "distree": "strategies.distree.settings:DistrEESettings",
    "ditto": "strategies.personalised.ditto:DittoSettings",
    "fedprox": "strategies.baselines.fedprox:FedProxSettings",
    "fedrep": "strategies.personalised.fedrep:FedRepSettings",
    "personal": "strategies.personalised.base:PersonalSettings",
    "robust": "strategies.engine.robust:RobustSettings",
    "splitee": "strategies.hetero_splitee.settings:SplitEESettings",
    "stream": "common.rpc.settings:StreamSettings",
}


@dataclass(frozen=True)
class Method:
    """What a method's module exports as `METHOD`."""

    strategy: Any  # a subclass of EarlyExitStrategy, whose module imports this one
    local: Callable[[], LocalMethod]
    ensemble: Callable[[RunConfig], float] = lambda config: config.objective.ensemble  # the network's, see NetworkSpec
    travels: Callable[[RunConfig, str], bool] = lambda config, key: True  # which keys of the model are averaged
    parts: Parts[Any, Any, Any] = TIERS  # what of the network a device trains
    measure: str = "softmax"  # of confidence, by which a client's samples leave early; see `common.exits.confidence`
    exits: bool = True  # False: the network has no exit but its last one; devices get theirs at their cuts
    robust: bool = True  # False: clients teach the server or one another by more than averaged models


@cache
def method(name: str) -> Method:
    """Return a method; only its own module is imported. Raises `UserError` for an unknown name."""
    if name not in MODULES:
        raise UserError(f"run.strategy {name!r} is unknown: choose one of {', '.join(sorted(MODULES))}")
    found: Method = import_module(MODULES[name]).METHOD
    return found


@cache
def sections() -> tuple[type[Settings], ...]:
    """Return every method's section of hyper-parameters, whatever method runs: a mistake in any of them is told."""
    return tuple(getattr(import_module(path.split(":")[0]), path.split(":")[1]) for path in SECTIONS.values())
