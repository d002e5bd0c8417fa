"""An exit head as one vector, which is sent, compared and averaged."""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from common.networks import EarlyExitNetwork
from common.networks.heads import ExitHead
from common.weights.flat import FlatState, Layout, StateDict


def head_layout(network: EarlyExitNetwork, position: int) -> Layout:
    """Return keys and shapes of the parameters of the exit after `position` units."""
    parameters = network.head(position).named_parameters()
    return Layout(tuple((f"exits.{position}.{key}", tuple(value.shape)) for key, value in parameters))


def head_vector(state: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return a copy of a head's parameters as one vector (P,)."""
    return torch.cat([state[key].detach().reshape(-1) for key in layout.keys])


def head_state(vector: np.ndarray | Tensor, layout: Layout) -> StateDict:
    """Return a head's parameters by key, inverse of `head_vector`; raises `ValueError` if size or type differ."""
    if tuple(vector.shape) != (layout.sizes[0],) or vector.dtype not in (np.dtype(np.float32), torch.float32):
        expected, received = f"an exit head of {layout.sizes[0]} float32 parameters", tuple(vector.shape)
        raise ValueError(f"{expected} was expected, got {vector.dtype} of shape {received}")
    floats = torch.tensor(vector) if isinstance(vector, np.ndarray) else vector  # a copy: received arrays are read-only
    return FlatState(layout, floats, torch.zeros(0, dtype=torch.int64)).state_dict()


def head_bias(vector: Tensor, layout: Layout) -> Tensor:
    """Return the bias (C,) of the classifier in a head's vector."""
    return next(value for key, value in head_state(vector, layout).items() if key.endswith("linear.bias"))


def with_parameters(head: ExitHead, vector: np.ndarray, layout: Layout) -> ExitHead:
    """Return a copy of a head with other parameters, which do not require gradients."""
    state = {key.split(".", 2)[2]: value for key, value in head_state(vector, layout).items()}
    replaced = copy.deepcopy(head).requires_grad_(False)
    replaced.load_state_dict({**replaced.state_dict(), **state})
    return replaced
