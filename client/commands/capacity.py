"""A device's capacity as its user types it, and the node configuration that declares it to the server."""

import argparse
from collections.abc import Mapping

from common.capacity import CLASSES, DECLARED, KEYS, OVERRIDES, Capacity, parse_capacity, probe, read_node
from common.errors import UserError


def add_capacity(parser: argparse.ArgumentParser) -> None:
    """Add the option that `read_capacity` reads."""
    parser.add_argument(
        "--capacity", default="auto", metavar="WHAT",
        help="auto (measure), low, medium, high, or values: memory=512MB,compute=2GFLOPS,bandwidth=10Mbps, or the part "
        "itself: depth=2, cut=5, student=1 (default: %(default)s)",
    )  # fmt: skip


def read_capacity(text: str) -> tuple[Capacity, dict[str, str], str]:
    """Return a capacity, the node configuration that declares it, and its source.

    `auto` measures this machine once, so that the declared values stay the same while it runs. Raises `UserError`.
    """
    if text == "auto":
        found = probe()
        return found, declared(found), "half of the available memory, and the speed of a matrix product on one thread"
    try:
        node = read_node(text)
    except UserError as error:
        raise UserError(f"--capacity {error}, or auto to measure this machine") from error
    capacity = parse_capacity(node)
    for key in OVERRIDES:
        if (chosen := getattr(capacity, key)) is not None and chosen < 1:
            raise UserError(f"--capacity {key}={chosen}: give 1 or more")
    return capacity, node, f"the class {text!r}" if text in CLASSES else "as declared"


def declared(capacity: Capacity) -> dict[str, str]:
    """Return the node configuration of a measured capacity."""
    values: Mapping[str, float | None] = {key: getattr(capacity, key) for key in DECLARED}
    return {key: f"{value:.0f}{DECLARED[key]}" for key, value in values.items() if value is not None}


def shown(capacity: Capacity) -> str:
    """Return a capacity as text."""
    units = {"memory": (1e6, "MB"), "compute": (1e9, "GFLOPS"), "bandwidth": (1e6, "Mbps")}
    parts = [
        f"{key} {value / units[key][0]:.4g} {units[key][1]}" if key in units else f"{key} {value}"
        for key in KEYS
        if (value := getattr(capacity, key)) is not None
    ]
    return ", ".join(parts) or "no limit"
