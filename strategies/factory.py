"""From a configuration to a strategy that can start: the server's data, the network, the method."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from common import paths
from common.capacity import parse_mix
from common.config import RunConfig
from common.data import load, normalizer
from common.data.clients import Population
from common.data.fingerprint import look_again
from common.data.summary import DataSummary, Dealt
from common.data.support import listed
from common.devices import pick_device
from common.errors import UserError
from common.networks import NetworkSpec, check_outside, without_early_exits
from common.plugins import is_reference
from common.sections.objective import unfit_weights
from strategies.engine.rounds import Watcher
from strategies.engine.server_evaluation import ServerEvaluator
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Method, Setup
from strategies.registry import find_method

UNMEASURED = "nothing measures accuracy: the server has no test samples; set server.clients-evaluate-every"


def make_strategy(config: RunConfig, callbacks: Iterable[Watcher[EarlyExitStrategy]] = ()) -> EarlyExitStrategy:
    """Return the configured method's strategy.

    Raises `UserError` before anything starts when the data, network, mix or device cannot be had.
    """
    method = find_method(config.run.strategy)
    strategy = method.strategy(method, make_setup(config, method))
    if not isinstance(strategy, EarlyExitStrategy):
        raise TypeError(f"the card of {method.name!r} makes a {type(strategy).__name__}, not an EarlyExitStrategy")
    parse_mix(config.clients.mix, len(strategy.tiers))
    _check_weights(config, strategy)
    strategy.callbacks = list(callbacks)
    return strategy


def _check_weights(config: RunConfig, strategy: EarlyExitStrategy) -> None:
    """Raise `UserError` unless there is one weight per exit; of a network from outside the exits are known only now."""
    weights = config.objective.exit_weights
    if is_reference(config.network.name) and strategy.parts.word == "depth":
        exits = len(strategy.network.exit_positions)
        if weights and len(weights) != exits:
            raise UserError(unfit_weights(weights, exits))


def make_setup(config: RunConfig, method: Method) -> Setup:
    """Return what the configured data and network are, and the server's evaluation; raises `UserError`."""
    data = summarise(config)
    source = load(config.data, paths.cache_root())
    if len(data.classes) < 2:
        raise UserError(
            f"the set {data.name!r} has only the class {listed(data.classes)}: add samples of another class"
        )
    normalize = normalizer(config.data, source.input_shape[0])
    evaluator = None
    if config.server.evaluate_every and len(source.test) and not method.personal:
        validation = _population(config).server_validation()
        if not len(validation):
            raise UserError(
                f"data.validation is {config.data.validation} and leaves no validation samples, by which the server's "
                "evaluation chooses exits: raise it, or set server.evaluate-every=0"
            )
        evaluator = ServerEvaluator(
            validation, source.test, normalize,
            pick_device(config.server.device), config.server.batch_size, config.server.accuracy_loss,
        )  # fmt: skip
    elif config.server.evaluate_every and not method.personal and not config.server.clients_evaluate_every:
        data = replace(data, notes=(*data.notes, UNMEASURED))
    spec = make_spec(config, method, len(source.classes), source.input_shape)
    check_outside(spec, config.run.seed)
    return Setup(config, spec, tuple(source.classes), normalize, data, evaluator)


def summarise(config: RunConfig) -> DataSummary:
    """Return what the configured data are, as their files are now; raises `UserError`."""
    look_again()
    source = load(config.data, paths.cache_root())
    if not len(source.train):
        return DataSummary.of(config.data, source, None)
    try:
        parts = _population(config).parts()
        return DataSummary.of(config.data, source, Dealt.of(parts), *_left_over(parts, len(source.train)))
    except UserError as error:  # does not matter where every device has its own folder
        return DataSummary.of(config.data, source, None, f"not dealt to clients: {error}")


def _left_over(parts: Sequence[NDArray[np.int64]], number: int) -> list[str]:
    """Return a note on samples that no client gets, as where there are more writers than clients."""
    dealt = sum(map(len, parts))
    return [f"{number - dealt} of {number} training samples belong to no client"] if dealt < number else []


def _population(config: RunConfig) -> Population:
    return Population(config.data, config.clients.count, config.run.seed)


def make_spec(config: RunConfig, method: Method, classes: int, input_shape: tuple[int, ...]) -> NetworkSpec:
    """Return the configured network's spec for so many classes and samples of this shape."""
    section = config.network
    spec = NetworkSpec(
        section.name, classes, input_shape, section.exits, section.tiers, section.width,
        method.ensemble(config), section.lora_rank, section.pretrained,
        config.data.vocabulary if config.data.is_text else 0, method.recurrent(config), section.norm,
    )  # fmt: skip
    return spec if method.exits else without_early_exits(spec)
