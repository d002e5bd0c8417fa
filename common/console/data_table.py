"""What was read of a data set, as a table with closing lines."""

from rich.table import Table
from rich.text import Text

from common.console.results import show
from common.data.summary import DataSummary


def show_data(data: DataSummary) -> None:
    """Print a summary: a row per class, then shape, samples per client and notes."""
    table = Table("class")
    for split in data.counts:
        table.add_column(split, justify="right")
    for name, row in data.rows():
        table.add_row(Text(name), *map(str, row))
    if data.counts:
        table.add_section()
        table.add_row("all", *(str(sum(row)) for row in data.counts.values()))
    show(table, [data.headline(), *data.closing()])
