"""Learned sample weights (L2W-DEN, Han et al., ECCV 2022): easy samples train shallow exits, hard ones deep exits.

A small weight network maps a sample's losses at all exits to a weight per exit. Every few batches a one-step meta
update trains it: step the early-exit network on half the batch with the weighted loss, compute the loss of each sample
of the other half AT THE EXIT IT WOULD LEAVE FROM, and descend that loss through the step. Numbers and the per-sample
mean follow DarkDistill's published use of the method.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.errors import UserError
from common.exits.assignment import assign_exits
from common.networks.base import EarlyExitNetwork
from common.objectives.base import Loss, exit_losses
from common.sections.objective import ObjectiveConfig
from common.seeding import generator

# With fewer samples a half batch is one sample, which BatchNorm cannot normalise.
SMALLEST_META_BATCH = 4


class WeightNetwork(nn.Module):
    """Losses `(B, E)` -> raw weights `(B, E)` in (-1, 1): Linear, ReLU, Linear, tanh."""

    def __init__(self, num_exits: int, hidden: int, seed: int) -> None:
        super().__init__()
        random = generator("l2w", seed)
        self.hidden = nn.utils.skip_init(nn.Linear, num_exits, hidden)
        self.output = nn.utils.skip_init(nn.Linear, hidden, num_exits)
        for layer in (self.hidden, self.output):
            # torch's own initialisation of a Linear, drawn from our generator.
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=random)
            nn.init.uniform_(layer.bias, -bound, bound, generator=random)

    def forward(self, losses: Tensor) -> Tensor:
        """Return raw weights `(B, E)`."""
        return torch.tanh(self.output(F.relu(self.hidden(losses))))


def centred_weights(raw: Tensor, strength: float) -> Tensor:
    """Return `1 + strength * (raw - mean_e raw)`, `(B, E)`: each sample's weights have mean 1 over the exits.

    L2W-DEN's ImageNet command takes the mean over the whole batch instead. With raw weights in (-1, 1) a weight
    stays within `1 +- 2 * strength * (E - 1) / E`.
    """
    return 1.0 + strength * (raw - raw.mean(1, keepdim=True))


def assigned_loss(logits: Sequence[Tensor], y: Tensor, p: float) -> Tensor:
    """Return the sum over exits of the mean cross-entropy of the samples assigned to that exit.

    Args:
        logits: one `(B, C)` per exit.
        y: labels `(B,)`.
        p: skew of the assignment, see `common.exits.exit_fractions`.
    """
    parts = [
        F.cross_entropy(exit_logits[index], y[index])
        for exit_logits, index in zip(logits, assign_exits(logits, p), strict=True)
        if len(index)
    ]
    return torch.stack(parts).sum()


class LearnedWeights:
    """`sum_e mean_b weight_be * CE(z_e(x_b), y_b)` with weights of a meta-trained weight network.

    With one exit all weights are 1 (joint training) and nothing is learnt. The weight network moves to the batches'
    device.
    """

    def __init__(self, settings: ObjectiveConfig, num_exits: int, seed: int) -> None:
        self.settings = settings
        self.num_exits = num_exits
        self.weight_network = WeightNetwork(num_exits, settings.l2w_hidden, seed)
        self.optimizer = torch.optim.Adam(
            self.weight_network.parameters(), lr=settings.l2w_lr, weight_decay=settings.l2w_weight_decay
        )
        self.batches = 0

    def weights(self, losses: Tensor) -> Tensor:
        """Return the weight of every sample at every exit, `(E, B)`, from its losses `(E, B)`."""
        return centred_weights(self.weight_network(losses.detach().T), self.settings.l2w_strength).T

    def loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor) -> Loss:
        """Return the loss of images `(B, C, H, W)` with labels `(B,)`."""
        self._follow(x.device)
        losses = exit_losses(network(x), y)
        return Loss((self.weights(losses).detach() * losses).mean(1).sum(), losses.detach())

    def before_step(self, network: EarlyExitNetwork, x: Tensor, y: Tensor, lr: float) -> None:
        """Train the weight network on every `l2w_interval`-th batch, the first one included.

        The network's parameters, gradients and BatchNorm statistics stay as they are.

        Args:
            network: in training mode.
            x: images `(B, C, H, W)`; the first half steps the network, the second half judges the step.
            y: labels `(B,)`.
            lr: learning rate of the pseudo step, plain SGD.
        """
        due = self.batches % self.settings.l2w_interval == 0
        self.batches += 1
        if not due or self.num_exits == 1 or len(x) < SMALLEST_META_BATCH:
            return
        self._follow(x.device)
        meta_loss = self.meta_loss(network, x, y, lr)
        parameters = list(self.weight_network.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(meta_loss, parameters), strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    def meta_loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor, lr: float) -> Tensor:
        """Return the assigned loss of the second half batch after a pseudo step on the first half.

        Differentiable in the weight network's parameters, through the step.
        """
        half = len(x) // 2
        trainable = {
            name: parameter.detach().requires_grad_()
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        # Clones take BatchNorm's in-place updates, so the pseudo step leaves the network's own statistics as they are.
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        # Fused attention kernels have no second derivative; the plain one does.
        with sdpa_kernel(SDPBackend.MATH):
            losses = exit_losses(functional_call(network, {**trainable, **buffers}, (x[:half],)), y[:half])
            weighted = (self.weights(losses) * losses).mean(1).sum()
            gradients = torch.autograd.grad(weighted, list(trainable.values()), create_graph=True)
            stepped = {
                name: parameter.detach() - lr * gradient
                for (name, parameter), gradient in zip(trainable.items(), gradients, strict=True)
            }
            logits = functional_call(network, {**stepped, **buffers}, (x[half:],))
        return assigned_loss(logits, y[half:], self.settings.l2w_p)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weight network, its Adam moments and the batch counter, detached clones on the CPU."""
        state = {"batches": torch.tensor(self.batches)}
        for name, parameter in self.weight_network.named_parameters():
            adam = self.optimizer.state[parameter]
            state[f"network.{name}"] = parameter.detach().cpu().clone()
            state[f"adam.step.{name}"] = torch.as_tensor(adam.get("step", 0.0)).cpu().clone()
            for moment in ("exp_avg", "exp_avg_sq"):
                value = adam.get(moment, torch.zeros_like(parameter))
                state[f"adam.{moment}.{name}"] = value.detach().cpu().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that `state_dict` returned.

        Raises:
            UserError: it is of another objective, or for another number of exits.
        """
        own = self.state_dict()
        if {name: value.shape for name, value in state.items()} != {n: v.shape for n, v in own.items()}:
            raise UserError(
                f"the stored weight network does not have {self.num_exits} exits and {self.settings.l2w_hidden} hidden "
                "units (objective.l2w-hidden): set another run.name, or the same network and objective"
            )
        self.batches = int(state["batches"])
        for name, parameter in self.weight_network.named_parameters():
            parameter.data.copy_(state[f"network.{name}"])
            self.optimizer.state[parameter] = {
                "step": state[f"adam.step.{name}"].cpu().clone(),
                "exp_avg": state[f"adam.exp_avg.{name}"].to(parameter.device, copy=True),
                "exp_avg_sq": state[f"adam.exp_avg_sq.{name}"].to(parameter.device, copy=True),
            }

    def _follow(self, device: torch.device) -> None:
        if next(self.weight_network.parameters()).device != device:
            state = self.state_dict()
            self.weight_network.to(device)
            self.load_state_dict(state)
