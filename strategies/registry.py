"""Methods by name. A new method is one entry in `METHODS`.

The sections of all methods are known without their cards: a card imports torch, which takes seconds.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from common.errors import UserError
from common.sections.stream import StreamSettings
from common.settings import Settings, like
from strategies.engine.settings import RobustSettings

if TYPE_CHECKING:
    from strategies.method import Method

FRAME: tuple[type[Settings], ...] = (RobustSettings, StreamSettings)  # sections that the frame reads for every method
PERSONAL = "strategies.personalised.settings:PersonalSettings"


class Entry(NamedTuple):
    """What is known of a method before its card is imported; `find_method` compares both."""

    card: str  # module that exports the method's card as `METHOD`
    settings: tuple[str, ...] = ()  # the card's sections, each as module:class; these modules import no torch
    parts: str = "depth"  # what the card's parts are called
    robust: bool = True  # as on the card


METHODS = {
    "cafedistill": Entry(
        "strategies.cafedistill.card",
        ("strategies.cafedistill.settings:CAFEDistillSettings", PERSONAL),
        robust=False,
    ),
    "darkdistill": Entry(
        "strategies.darkdistill.card",
        (
            "strategies.darkdistill.settings:DarkDistillSettings",
            "strategies.darkdistill.settings:DifficultySettings",
        ),
    ),
    "depthfl": Entry("strategies.baselines.depthfl", ("strategies.baselines.settings:DepthFLSettings",)),
    "distree": Entry("strategies.distree.card", ("strategies.distree.settings:DistrEESettings",), parts="student"),
    "ditto": Entry("strategies.personalised.ditto", ("strategies.personalised.settings:DittoSettings",)),
    "eefl": Entry("strategies.baselines.eefl", ("strategies.baselines.settings:EEFLSettings",)),
    "exclusivefl": Entry("strategies.baselines.exclusivefl"),
    "fedavg": Entry("strategies.baselines.fedavg"),
    "fedavg_ft": Entry("strategies.personalised.fedavg_ft", (PERSONAL,)),
    "fedbabu": Entry("strategies.personalised.fedbabu", (PERSONAL,)),
    "fedper": Entry("strategies.personalised.fedper", (PERSONAL,)),
    "fedprox": Entry("strategies.baselines.fedprox", ("strategies.baselines.settings:FedProxSettings",)),
    "fedrep": Entry("strategies.personalised.fedrep", ("strategies.personalised.settings:FedRepSettings", PERSONAL)),
    "hetero_splitee": Entry(
        "strategies.hetero_splitee.card",
        ("strategies.hetero_splitee.settings:SplitEESettings", "common.sections.stream:StreamSettings"),
        parts="cut",
        robust=False,
    ),
    "inclusivefl": Entry("strategies.baselines.inclusivefl", ("strategies.baselines.settings:InclusiveFLSettings",)),
    "local": Entry("strategies.personalised.local_only", (PERSONAL,), robust=False),
    "median": Entry("strategies.baselines.median"),
    "reefl": Entry("strategies.baselines.reefl", ("strategies.baselines.settings:ReeFLSettings",)),
}


@cache
def find_method(name: str) -> "Method":
    """Return a method's card; only its own module is imported. Raises `UserError` for an unknown name."""
    from strategies.method import Method

    if problem := unknown_method(name):
        raise UserError(problem)
    entry = METHODS[name]
    card = import_module(entry.card).METHOD
    if not isinstance(card, Method) or card.name != name:
        raise TypeError(f"{entry.card}.METHOD must be a Method with the name {name!r}, not {card!r}")
    if (card.settings, card.parts.word, card.robust) != (method_settings(name), entry.parts, entry.robust):
        raise TypeError(
            f"the entry of {name!r} in METHODS and {entry.card}.METHOD must have equal settings, parts, robust"
        )
    return card


def unknown_method(name: str) -> str:
    """Return the sentence for an unknown name; empty for a known one."""
    if name in METHODS:
        return ""
    return f"run.strategy is {name!r}, must be one of {', '.join(METHODS)}{like(name, METHODS)}"


@cache
def method_settings(name: str) -> tuple[type[Settings], ...]:
    """Return the sections that a method reads."""
    found: list[type[Settings]] = []
    for reference in METHODS[name].settings:
        module, _, kind = reference.partition(":")
        found.append(getattr(import_module(module), kind))
    return tuple(found)


@cache
def all_settings() -> tuple[type[Settings], ...]:
    """Return the sections of the frame and of all methods, by name."""
    kinds = {*FRAME, *(kind for name in METHODS for kind in method_settings(name))}
    return tuple(sorted(kinds, key=lambda kind: kind.SECTION))


def readers(section: str) -> tuple[str, ...]:
    """Return the methods that read a section; all of them where the frame or every run reads it."""
    if all(section != kind.SECTION for kind in all_settings()) or any(section == kind.SECTION for kind in FRAME):
        return tuple(METHODS)
    return tuple(name for name in METHODS if any(section == kind.SECTION for kind in method_settings(name)))
