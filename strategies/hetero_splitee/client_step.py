"""A device's step on one mini-batch (Hetero-SplitEE, Oda et al.; Sepehri et al., arXiv 2303.02384).

The device's part must be in training mode, with one exit, at the cut.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.networks import ExitOutputs
from strategies.hetero_splitee.learner import Learner, Sgd
from strategies.hetero_splitee.prior import adjusted


def local_step(device: Learner, sgd: Sgd, x: Tensor, y: Tensor, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Train the device's units and exit on the exit's loss alone, without waiting for the server.

    Args:
        device: the device's part.
        sgd: its optimiser.
        x: (B, C, H, W).
        y: (B,) int64.
        prior: (classes,) that adjusts the exit's logits, if there is one.

    Returns:
        features: (B, ...) for the server, detached, computed with the weights BEFORE the step.
        loss: scalar, the exit's mean cross-entropy before the step.
    """
    outputs = device.network.forward_exits(x)
    device.model.zero_grad()
    loss = F.cross_entropy(adjusted(outputs.logits[-1], prior), y)
    loss.backward()
    device.step(sgd)
    return outputs.trunk.detach(), loss.detach()


def forward(device: Learner, x: Tensor) -> ExitOutputs:
    """Begin a step of split learning: send `outputs.trunk.detach()`, then call `finish` with the returned gradient."""
    return device.network.forward_exits(x)


def finish(
    device: Learner, sgd: Sgd, outputs: ExitOutputs, y: Tensor, gradient: Tensor, exit_weight: float = 0.0,
    prior: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Finish a step of split learning: `dL/dh` of the server plus `exit_weight` times the exit's loss.

    Split learning has no exit, so the weight is 0 by default; the exit is then not trained at all.

    Args:
        device: the device's part, unchanged since `forward`.
        sgd: its optimiser.
        outputs: of `forward`.
        y: (B,) int64.
        gradient: (B, ...) of the server's loss with respect to the features.
        exit_weight: of the exit's loss.
        prior: (classes,) that adjusts the exit's logits, if there is one.

    Returns:
        The exit's mean cross-entropy before the step, a scalar.
    """
    device.model.zero_grad()
    loss = F.cross_entropy(adjusted(outputs.logits[-1], prior), y)
    if gradient.stride() != outputs.trunk.stride():  # as it came over the wire
        gradient = torch.empty_like(outputs.trunk).copy_(gradient)
    if exit_weight:
        torch.autograd.backward([outputs.trunk, exit_weight * loss], [gradient, None])
        device.step(sgd)
    else:
        outputs.trunk.backward(gradient)
        device.step(sgd, end=device.offset(device.network.end))
    return loss.detach()
