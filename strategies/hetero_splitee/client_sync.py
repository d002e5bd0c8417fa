"""Averages of device parts. The paper mentions none; without them, extractors before a shared server may diverge."""

from collections.abc import Collection, Mapping

from common.weights.flat import StateDict
from common.weights.layers import average_layers


def synchronised(
    devices: Mapping[int, StateDict],
    cuts: Mapping[int, int],
    samples: Mapping[int, int],
    how: str,
    by_cut_only: Collection[str] = (),
) -> dict[int, StateDict]:
    """Return by cut the part with which every device of this cut continues.

    Args:
        devices: each client's units and its exit at the cut, by key.
        cuts: each client's cut.
        samples: n_i, each client's weight, above 0.
        how: "same_cut": devices with the same cut are averaged; "prefix": each unit is averaged over all devices
            that hold it, an exit over those with the same cut.
        by_cut_only: keys that are averaged over devices with the same cut in any case: running statistics.
    """
    groups = {cut: {c: devices[c] for c in devices if cuts[c] == cut} for cut in sorted({cuts[c] for c in devices})}
    same_cut = {cut: average_layers(group, samples) for cut, group in groups.items()}
    if how == "same_cut":
        return same_cut
    average = average_layers(devices, samples)  # an exit's key names its cut
    return {
        cut: {key: own[key] if key in by_cut_only else average[key] for key in own} for cut, own in same_cut.items()
    }
