"""Several copies of the same layers trained at once, each on its own batch: many small kernels become few large ones.

Milliseconds per step of 4 copies with batches of 32 on one CPU thread, one after another and together:

    lenet        8x8    cut 1      3.2     4.0
    resnet_slim  8x8    cut 2     14.4    18.2
    resnet_slim  32x32  cut 2     68.0    90.0
    resnet18     32x32  cut 3   1595    2273
    resnet18     32x32  cut 7    573    1059

A CPU thread gains nothing from larger kernels, and a convolution with a weight per copy costs it more than several
convolutions: "auto" trains together on a GPU only, where kernel launches dominate the step of a small copy.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, stack_module_state

from strategies.hetero_splitee.learner import Learner, Sgd, StepResult
from strategies.hetero_splitee.prior import adjusted


def train_together(
    learners: Sequence[Learner], sgd: Sgd, features: Tensor, labels: Tensor, *,
    return_gradient: bool, priors: Tensor | None = None,
) -> list[StepResult]:  # fmt: skip
    """Apply `train_step` to each of K learners of the same cut, up to rounding.

    Args:
        learners: K copies, which are trained whole.
        sgd: the optimiser.
        features: (K, B, ...) smashed data, detached.
        labels: (K, B) int64.
        return_gradient: return the gradients of the features, too.
        priors: (K, classes) that adjust the logits, if there are some.
    """
    features = features.detach().requires_grad_(return_gradient)
    networks = [learner.network for learner in learners]
    weights, buffers = stack_module_state(networks)

    def loss(
        weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor, prior: Tensor | None
    ) -> Tensor:
        return F.cross_entropy(adjusted(functional_call(networks[0], (weights, buffers), (x,))[-1], prior), y)

    rows = (0, 0, 0, 0, None if priors is None else 0)
    losses = torch.vmap(loss, rows, randomness="different")(weights, buffers, features, labels, priors)
    losses.sum().backward()
    finite = losses.isfinite().tolist()
    for row, learner in enumerate(learners):
        for key, weight in learner.network.named_parameters():
            if weight.requires_grad:
                assert weight.grad is not None and weights[key].grad is not None
                weight.grad.copy_(weights[key].grad[row])
        for key, buffer in learner.network.named_buffers():
            buffer.copy_(buffers[key][row])  # batch norm has updated its statistics in place
        if finite[row]:
            learner.step(sgd)
    gradients = [None] * len(learners) if features.grad is None else list(features.grad)
    return [StepResult(loss.detach(), gradient) for loss, gradient in zip(losses, gradients, strict=True)]
