"""A part of the network and its training step, the same on a device and on the server."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.devices import channels_last
from common.errors import UserError
from common.networks import EarlyExitNetwork
from common.sections.general import TrainSection
from common.weights.flat import FlatModel, StateDict
from strategies.hetero_splitee.prior import adjusted
from strategies.hetero_splitee.settings import SplitEESettings

MOMENTUM = "momentum."  # in `Learner.state_dict`, the prefix of a parameter's key that marks its momentum


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent like torch's `SGD`, without its own state."""

    lr: float
    momentum: float
    weight_decay: float

    @classmethod
    def of_round(cls, settings: SplitEESettings, train: TrainSection, round_: int) -> "Sgd":
        """Return the server's optimiser in a round, counted from 1."""
        lr = (settings.server_lr or train.lr) * train.lr_decay ** (round_ - 1)
        return cls(lr, train.momentum, train.weight_decay)

    def step_(self, weights: Tensor, gradient: Tensor, momentum: Tensor) -> None:
        """Step vectors (P,) in place: `m = mu m + g + wd w`, `w = w - lr m`."""
        momentum.mul_(self.momentum).add_(gradient.add(weights, alpha=self.weight_decay))
        weights.sub_(momentum, alpha=self.lr)


@dataclass(frozen=True)
class StepResult:
    """The result of a server step."""

    loss: Tensor  # scalar: the batch's mean cross-entropy before the step
    gradient: Tensor | None = None  # (B, ...) of the loss with respect to the features, if the device gets it


def device_part(network: EarlyExitNetwork, cut: int) -> EarlyExitNetwork:
    """Return a copy of the units before the cut with one exit, at the cut.

    Raises:
        UserError: one of the two sides would have no layers.
    """
    _check(network, cut)
    part = network.prefix_units(cut)
    units = {index: part.units[str(index)] for index in range(cut)}
    return EarlyExitNetwork(units, {cut: part.head(cut)}, part.architecture).train(network.training)


def server_part(network: EarlyExitNetwork, cut: int) -> EarlyExitNetwork:
    """Return the units from the cut on with the last exit; it SHARES the network's parameters.

    Raises:
        UserError: one of the two sides would have no layers.
    """
    _check(network, cut)
    units = {index: network.units[str(index)] for index in range(cut, network.end)}
    return EarlyExitNetwork(units, {network.end: network.head(network.end)}, network.architecture).train(
        network.training
    )


def statistics(part: EarlyExitNetwork) -> StateDict:
    """Return a part's buffers by key, as views: batch norm's running statistics and their counters."""
    weights = dict(part.named_parameters())
    return {key: value for key, value in part.state_dict().items() if key not in weights}


@torch.no_grad()
def with_statistics(part: EarlyExitNetwork, initial: Mapping[str, Tensor] | None = None) -> EarlyExitNetwork:
    """Return a copy of a part that SHARES its parameters but has its own running statistics.

    They start as `initial` by key where it has them, else as those of the part.
    """
    # deepcopy does not copy objects in its memo, so both parts have the same parameter objects
    own = copy.deepcopy(part, {id(weight): weight for weight in part.parameters()})
    for key, value in statistics(own).items():
        if initial and key in initial:
            value.copy_(initial[key])
    return own


class Learner:
    """A network with its momentum, as flat vectors over its trained parameters, units in order and then exits."""

    def __init__(self, model: FlatModel[EarlyExitNetwork], momentum: Tensor | None = None) -> None:
        """`momentum` is (P,), on the model's device; None: zero."""
        self.model, self.network = model, model.module
        self.momentum = torch.zeros_like(model.trained.data) if momentum is None else momentum

    @staticmethod
    def copy_of(network: EarlyExitNetwork, device: torch.device) -> "Learner":
        """Return a learner with a copy of these weights."""
        return Learner(FlatModel(copy.deepcopy(network).to(device).train()))

    def offset(self, cut: int) -> int:
        """Return the number of trained weights in units before the cut, the start of the later ones in the vectors."""
        return sum(
            weight.numel()
            for index, unit in self.network.units.items()
            for weight in unit.parameters()
            if int(index) < cut and weight.requires_grad
        )

    def step(self, sgd: Sgd, start: int = 0, end: int | None = None) -> None:
        """Step the trained weights `start` to `end` with the collected gradients.

        The others do not change: neither their momentum nor their weights decay.
        """
        part, gradient = slice(start, end), self.model.trained.grad
        assert gradient is not None
        sgd.step_(self.model.trained.data[part], gradient[part], self.momentum[part])

    def momenta(self) -> StateDict:
        """Return the momentum by parameter, as views."""
        trained = {key: weight for key, weight in self.network.named_parameters() if weight.requires_grad}
        parts = self.momentum.split([weight.numel() for weight in trained.values()])
        return {key: part.view_as(weight) for (key, weight), part in zip(trained.items(), parts, strict=True)}

    def state_dict(self) -> StateDict:
        """Return weights, buffers and momenta by key, as views."""
        return {
            **{key: value.detach() for key, value in self.network.state_dict().items()},
            **{MOMENTUM + key: value for key, value in self.momenta().items()},
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Copy in the entries of this part; values without an entry do not change."""
        for key, value in self.state_dict().items():
            if key in state:
                value.copy_(state[key])


def train_step(
    learner: Learner,
    part: EarlyExitNetwork,
    start: int,
    sgd: Sgd,
    features: Tensor,
    labels: Tensor,
    *,
    return_gradient: bool,
    prior: Tensor | None = None,
) -> StepResult:
    """Train the server's layers on one batch (Hetero-SplitEE): the gradient flows into this part and no further.

    A batch whose loss is not finite changes no weight.

    Args:
        learner: holds the parameters of the part, and perhaps of layers before it.
        part: the layers to train, sharing the learner's parameters.
        start: their start in the learner's vectors.
        sgd: the optimiser.
        features: (B, ...) smashed data, detached.
        labels: (B,) int64.
        return_gradient: return the gradient of the features, too.
        prior: (classes,) that adjusts the logits, if there is one.
    """
    features = channels_last(features.detach()).requires_grad_(return_gradient)
    learner.model.zero_grad()
    loss = F.cross_entropy(adjusted(part(features)[-1], prior), labels)
    loss.backward()
    if loss.isfinite():
        learner.step(sgd, start)
    return StepResult(loss.detach(), features.grad)


@torch.no_grad()
def final_logits(part: EarlyExitNetwork, features: Tensor) -> Tensor:
    """Return the last exit's logits (B, classes) in eval mode; the part is in training mode afterwards."""
    part.eval()
    logits = part(channels_last(features))[-1]
    part.train()
    return logits


def _check(network: EarlyExitNetwork, cut: int) -> None:
    if not 1 <= cut < network.end:
        raise UserError(
            f"splitee.cuts, or a device's cut, is {cut}: choose one of 1..{network.end - 1}, for layers on both sides"
        )
