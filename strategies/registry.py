"""Methods by name. A new method is one line in `METHODS`."""

from functools import cache
from importlib import import_module

from common.errors import UserError
from common.rpc.settings import StreamSettings
from common.settings import Settings
from strategies.engine.robust import RobustSettings
from strategies.method import Method

METHODS = {  # name -> module that exports the method's card as `METHOD`
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
    "median": "strategies.baselines.median",
}


@cache
def find_method(name: str) -> Method:
    """Return a method's card; only its own module is imported. Raises `UserError` for an unknown name."""
    if name not in METHODS:
        raise UserError(f"run.strategy {name!r} is unknown: choose one of {', '.join(sorted(METHODS))}")
    card = import_module(METHODS[name]).METHOD
    if not isinstance(card, Method) or card.name != name:
        raise TypeError(f"{METHODS[name]}.METHOD must be a Method with the name {name!r}, not {card!r}")
    return card


@cache
def all_settings() -> tuple[type[Settings], ...]:
    """Return the sections of the frame and of all methods, by name; for that the server imports all methods."""
    frame: tuple[type[Settings], ...] = (RobustSettings, StreamSettings)
    kinds = {*frame, *(kind for name in METHODS for kind in find_method(name).settings)}
    return tuple(sorted(kinds, key=lambda kind: kind.SECTION))
