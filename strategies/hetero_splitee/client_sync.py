"""Averages of device parts. The paper mentions none; without them, extractors before a shared server may diverge."""

from collections.abc import Mapping

from common.weights.flat import StateDict
from common.weights.layers import average_layers


def synchronised(
    devices: Mapping[int, StateDict], cuts: Mapping[int, int], samples: Mapping[int, int], how: str
) -> dict[int, StateDict]:
    """Return by cut the part with which every device of this cut continues.

    Args:
        devices: each client's units and its exit at the cut, by key.
        cuts: each client's cut.
        samples: n_i, each client's weight, above 0.
        how: "same_cut": devices with the same cut are averaged; "prefix": each unit is averaged over all devices
            that hold it, an exit over those with the same cut.
    """
    by_cut = {cut: {c: devices[c] for c in devices if cuts[c] == cut} for cut in sorted({cuts[c] for c in devices})}
    if how == "same_cut":
        return {cut: average_layers(group, samples) for cut, group in by_cut.items()}
    average = average_layers(devices, samples)  # an exit's key names its cut
    return {cut: {key: average[key] for key in next(iter(group.values()))} for cut, group in by_cut.items()}
