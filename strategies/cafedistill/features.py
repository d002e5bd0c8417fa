"""Whether a client's features live: the share of dead channels per exit, and the largest gradient.

A channel is dead when its pooled feature is zero for every sample of the last local epoch. After a ReLU it then gets no
gradient any more. A distillation that is too strong does this to a trunk, and without normalisation layers the network
ends at its clients' majority classes. All of it is read from passes that training takes anyway.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# The server warns from these on. Runs that went well had up to 0.4, in their first rounds, and norms up to 7.
DEAD = 0.5  # share of an exit's channels
STEEP = 20.0  # gradient norm
DEAD_CHANNELS, GRADIENT_NORM = "dead_channels_{}", "gradient_norm"  # names of metrics; exits count from 1


class FeatureWatch:
    """Watches one client's training in one round."""

    def __init__(self) -> None:
        self._latest: list[Tensor] = []  # per exit (width,), largest absolute feature of the batch
        self._largest: list[Tensor] = []  # the same over all kept batches
        self._gradient: Tensor | None = None  # scalar

    def see(self, features: Sequence[Tensor]) -> None:
        """Look at a batch's pooled features, `(B, width)` per exit."""
        self._latest = [feature.detach().abs().amax(0) for feature in features]

    def keep(self) -> None:
        """Count the batch that was seen last."""
        pairs = zip(self._largest or self._latest, self._latest, strict=True)
        self._largest = [torch.maximum(before, now) for before, now in pairs]

    def step(self, gradient: Tensor) -> None:
        """Look at the gradient `(P,)` of a step."""
        norm = torch.linalg.vector_norm(gradient)
        self._gradient = norm if self._gradient is None else torch.maximum(self._gradient, norm)

    def metrics(self) -> dict[str, float]:
        """Return each exit's share of dead channels and the largest gradient norm; empty without any batch."""
        found = {
            DEAD_CHANNELS.format(exit_): float((largest == 0).float().mean())
            for exit_, largest in enumerate(self._largest, start=1)
        }
        return found if self._gradient is None else found | {GRADIENT_NORM: float(self._gradient)}


def warning(metrics: Mapping[str, float]) -> str:
    """Return a sentence on dying features, from the clients' mean metrics; empty if they live."""
    exits = (exit_ for exit_ in range(1, len(metrics) + 1) if DEAD_CHANNELS.format(exit_) in metrics)
    shares = {exit_: metrics[DEAD_CHANNELS.format(exit_)] for exit_ in exits}
    worst = max(shares, key=lambda exit_: shares[exit_], default=0)
    norm = metrics.get(GRADIENT_NORM, 0.0)
    if not worst or not (shares[worst] >= DEAD or norm >= STEEP):  # NaN warns of nothing
        return ""
    return (
        f"features die on the clients: {100 * shares[worst]:.0f} % of the channels at exit {worst} are zero for every "
        f"sample, the largest gradient norm is {norm:.1f}; lower cafedistill.kd-weight or train.lr"
    )
