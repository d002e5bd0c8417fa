"""`python -m server data`: show what a run would read, without starting it."""

import argparse

from common.config import load_config
from server.commands.check import allow_plugins, file_mistakes
from server.commands.overrides import read_overrides
from strategies.registry import all_settings


def run(options: argparse.Namespace) -> int:
    """Print classes, counts, shape, samples per client and notes. Raises `UserError`."""
    # each section by itself: the network need not fit the data yet
    config = load_config(read_overrides(options), all_settings(), file_mistakes)
    allow_plugins(config)

    from common.console.data_table import show_data  # imports torch, which takes seconds
    from strategies.factory import summarise

    data = summarise(config)
    if options.json:
        print(data.to_json())
    else:
        show_data(data)
    return 0
