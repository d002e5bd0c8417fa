"""The whole check of a run's configuration: the launcher and the ServerApp share it. It imports no torch."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from common.capacity import parse_mix
from common.config import RunConfig, Value, load_config
from common.errors import UserError
from common.profiles import read_profiles
from common.sections.networks import default_exits, input_mistake, unit_count
from common.sections.objective import unfit_weights
from strategies.engine.settings import RobustSettings
from strategies.registry import METHODS, all_settings, method_settings, readers, unknown_method


def read_config(
    flat: Mapping[str, Value], further: Callable[[RunConfig], Iterable[str]] = lambda config: ()
) -> RunConfig:
    """Read a run's configuration; `further` returns sentences about mistakes that only the caller can see.

    Raises `UserError` with all mistakes at once.
    """
    return load_config(flat, all_settings(), lambda config: [*_mistakes(config), *further(config)])


def read_resumed(stored: Mapping[str, Value], folder: Path) -> RunConfig:
    """Read the configuration of a stored run; the `UserError` says where to mend what this version refuses."""
    try:
        return read_config(stored)
    except UserError as error:
        raise UserError(f"correct {folder / 'config.toml'}, or start a new run: {error}") from error


def unread(config: RunConfig, strategies: Collection[str] = ()) -> list[str]:
    """Return a sentence for every key that is not at its default and that none of these strategies reads.

    (): the configured strategy.
    """
    chosen = set(strategies or [config.run.strategy])
    if not chosen <= set(METHODS):
        return []  # there is a sentence about the strategy already
    defaults, names = load_config({}, all_settings()).flat(), ", ".join(sorted(chosen))
    return [
        f"{key} is {value!r}, but run.strategy {names} does not read it: remove it, or set run.strategy to "
        f"{' or '.join(reading)}"
        for key, value in config.flat().items()
        if value != defaults[key] and not chosen.intersection(reading := readers(key.partition(".")[0]))
    ]


def _mistakes(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for every mistake in values of several sections, and in the method's name."""
    network, name = config.network, config.run.strategy
    if mistake := input_mistake(network.name, texts=config.data.is_text):
        yield f"{mistake} (data.name is {config.data.name!r})"
    if mistake := unknown_method(name):
        yield mistake
        return
    entry = METHODS[name]
    if entry.parts == "cut" and (network.exits or network.tiers):
        yield f"run.strategy {name!r} places exits at the cuts: leave network.exits and network.tiers empty"
    if entry.parts == "depth":
        yield from _part_mistakes(config)
    for kind in method_settings(name):
        yield from config.of(kind).run_mistakes(unit_count(network.name))
    yield from _time_mistakes(config)
    if mistake := config.of(RobustSettings).unguarded(name, entry.robust):
        yield mistake


def _time_mistakes(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for devices that are not known, and for what the simulated clock cannot time."""
    try:
        read_profiles(config.clients.devices, config.clients.profiles)
    except UserError as error:
        yield str(error)
    if config.clients.clock == "simulated" and config.objective.name == "l2w":
        yield (
            "clients.clock is 'simulated', but the cost table does not count the meta step of objective.name 'l2w': "
            "set clients.clock to measured, or another objective"
        )


def _part_mistakes(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for lists that do not fit the network's exits and tiers."""
    network, weights = config.network, config.objective.exit_weights
    if not (exits := network.exits or default_exits(network.name)):
        return  # a function's own exits: known once it is called
    if weights and len(weights) != len(exits):
        yield f"{unfit_weights(weights, len(exits))} (network.name and network.exits decide their number)"
    try:
        parse_mix(config.clients.mix, len(network.tiers or exits))
    except UserError as error:
        yield f"{error} (network.name, network.exits and network.tiers decide their number)"
