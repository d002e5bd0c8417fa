"""Options of the commands that classify, apart from what reads them: that imports torch."""

import argparse
from pathlib import Path


def add_samples(parser: argparse.ArgumentParser) -> None:
    """Add the options that `samples.read` reads."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="FOLDER", help="of images, any nesting")
    source.add_argument("--texts", type=Path, metavar="FOLDER", help="of .txt files, a text each, any nesting")
    source.add_argument(
        "--dataset",
        metavar="NAME[:FOLDER]",
        help="test split of a data set, such as digits, cifar10:/data/cifar10, or a function's, mine.sets:letters",
    )
    parser.add_argument("--column", metavar="NAME", help="of a --dataset's texts (default: text)")
    parser.add_argument("--limit", type=int, default=0, help="classify only so many, spread evenly (default: all)")
    parser.add_argument("--batch", type=int, default=1, help="samples at once (default 1: true time per sample)")
