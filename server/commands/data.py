"""`python -m server data`: show what a run would read, without starting it."""

import argparse

from common.console.data_table import show_data
from server.commands.overrides import read_overrides
from strategies.configuration import read_config
from strategies.factory import summarise


def run(options: argparse.Namespace) -> int:
    """Print classes, counts, shape, samples per client and notes. Raises `UserError`."""
    data = summarise(read_config(read_overrides(options)))
    if options.json:
        print(data.to_json())
    else:
        show_data(data)
    return 0
