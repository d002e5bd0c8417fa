"""`python -m client probe`: measure this machine, and show its depth and cut for every known network."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from client.commands.capacity import read_capacity, shown
from common.capacity import Capacity, Choice
from common.config import RunConfig
from common.console.data_table import show_data
from common.console.results import show
from common.data.device import own_folder
from common.errors import UserError
from common.networks import NetworkSpec, backbones, build, cost_table, without_early_exits
from strategies.configuration import read_config
from strategies.hetero_splitee.cut import CUTS
from strategies.parts import TIERS

CLASSES, CHANNELS = 10, 3
TEXTS = ("transformer4",)


@dataclass(frozen=True)
class Fit:
    """A device's part of a network."""

    network: str
    tiers: int
    cuts: int
    depth: Choice
    cut: Choice


def run(options: argparse.Namespace) -> int:
    """Print the networks' parts, or what is in a folder of images. Raises `UserError`."""
    if options.data:
        data = own_folder(options.data.absolute())
        if options.json:
            print(data.to_json())
        else:
            show_data(data)
        return 0
    if options.samples < 1 or options.image_size < 1:
        raise UserError(f"--samples {options.samples}, --image-size {options.image_size}: give 1 or more")
    capacity, node, source = read_capacity(options.capacity)
    networks = fits(capacity, options.samples, options.image_size, *([options.network] if options.network else []))
    if options.json:
        found = {"node": node, "capacity": shown(capacity), "source": source, "networks": list(map(asdict, networks))}
        print(json.dumps(found))
        return 0
    table = Table()
    for name in ("network", "depth", "why", "cut", "why"):
        table.add_column(name, overflow="fold", no_wrap=name != "why")
    for fit in networks:
        depth, cut = (
            f"{choice.part} of {parts}" if parts else "-"
            for choice, parts in ((fit.depth, fit.tiers), (fit.cut, fit.cuts))
        )
        table.add_row(fit.network, depth, Text(fit.depth.reason), cut, Text(fit.cut.reason))
    show(table, [f"{shown(capacity)} ({source}); for {options.samples} images per epoch"])
    return 0


def fits(capacity: Capacity, samples: int, image_size: int, *names: str) -> Iterator[Fit]:
    """Yield the part of each named network that fits a capacity; without names, of every network.

    A network that does not take such images has no tiers and cuts, and the reason. Raises `UserError` if it is named.
    """
    config = read_config({})
    for name in names or backbones():
        try:
            yield _fit(name, capacity, samples, image_size, config)
        except UserError as error:
            reason = str(error).replace("data.image-size", "--image-size")
            if names:
                raise UserError(reason) from error
            yield Fit(name, 0, 0, Choice(0, reason), Choice(0, reason))


def _fit(name: str, capacity: Capacity, samples: int, image_size: int, config: RunConfig) -> Fit:
    spec = _spec(name, image_size, config)
    costs, bare = cost_table(build(spec, 0)), cost_table(build(without_early_exits(spec), 0))
    depth = TIERS.choose(capacity, costs, config, samples)
    cut = CUTS.choose(capacity, bare, config, samples)
    return Fit(name, len(costs.tiers), len(CUTS.numbers(bare, config)), depth, cut)


def _spec(name: str, image_size: int, config: RunConfig) -> NetworkSpec:
    if name in TEXTS:
        return NetworkSpec(name, CLASSES, (config.data.length,), vocabulary=config.data.vocabulary)
    return NetworkSpec(name, CLASSES, (CHANNELS, image_size, image_size))
