"""`python -m server data`: show what a run would read, without starting it."""

import argparse

from common.config import load_config
from common.console.data_table import show_data
from server.commands.overrides import read_overrides
from strategies.factory import summarise
from strategies.registry import all_settings


def run(options: argparse.Namespace) -> int:
    """Print classes, counts, shape, samples per client and notes. Raises `UserError`."""
    # each section by itself: what the network takes and how many clients a round has do not matter here
    data = summarise(load_config(read_overrides(options), all_settings()))
    if options.json:
        print(data.to_json())
    else:
        show_data(data)
    return 0
