"""From a configuration to a strategy that can start: the server's data, the network, the method."""

from collections.abc import Iterable, Mapping

from common import paths
from common.capacity import parse_mix
from common.config import RunConfig, Value, load_config
from common.data import load, normalizer
from common.data.clients import Population
from common.devices import pick_device
from common.errors import UserError
from common.networks import NetworkSpec, without_early_exits
from strategies.callbacks.base import Callback
from strategies.engine.server_evaluation import ServerEvaluator
from strategies.engine.strategy import EarlyExitStrategy
from strategies.registry import method, sections


def read_config(flat: Mapping[str, Value]) -> RunConfig:
    """Read Flower's run configuration; raises `UserError` with all mistakes at once."""
    return load_config(flat, sections())


def make_strategy(config: RunConfig, callbacks: Iterable[Callback] = ()) -> EarlyExitStrategy:
    """Return the configured method's strategy.

    Raises `UserError` before anything starts when the data, network, mix or device cannot be had.
    """
    found = method(config.run.strategy)
    source = load(config.data, paths.cache_root())
    section = config.network
    spec = NetworkSpec(
        section.name, len(source.classes), source.input_shape, section.exits, section.tiers, section.width,
        found.ensemble(config), section.lora_rank, section.pretrained,
        config.data.vocabulary if config.data.is_text else 0,
    )  # fmt: skip
    if not found.exits:
        if section.exits or section.tiers:
            raise UserError(
                f"{config.run.strategy} places exits at the cuts: leave network.exits and network.tiers empty"
            )
        spec = without_early_exits(spec)
    normalize = normalizer(config.data, source.input_shape[0])
    population = Population(config.data, config.clients.count, config.run.seed)
    evaluator = None
    if config.server.evaluate_every and len(source.test) and not found.strategy.personal:
        evaluator = ServerEvaluator(
            source.train.subset(population.validation()), source.test, normalize,
            pick_device(config.server.device), config.server.batch_size, config.server.accuracy_loss,
        )  # fmt: skip
    strategy: EarlyExitStrategy = found.strategy(config, spec, source.classes, normalize, evaluator, callbacks)
    parse_mix(config.clients.mix, len(strategy.tiers))
    return strategy
