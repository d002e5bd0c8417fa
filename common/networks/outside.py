"""Networks from outside this app: a function that `network.name` names returns their trunk (README of this folder)."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from common import plugins
from common.errors import UserError
from common.networks.base import EarlyExitNetwork, Trunk
from common.seeding import seeded
from common.weights.flat import FlatState
from common.weights.folding import UnfitError, check_values

KEY = "network.name"
DTYPES = (torch.float32, torch.int64)  # of what travels: weights and statistics, counters


def outside_trunk(name: str, spec: Any) -> Trunk:
    """Return what the named function makes of a network's spec.

    Raises `UserError` if the function cannot be had, fails, or returns something else than a trunk of separate units.
    """
    trunk = plugins.call(KEY, name, spec)
    if not isinstance(trunk, Trunk):
        _refuse(name, f"it returns {type(trunk).__name__}, must return common.networks.base.Trunk")
    if not trunk.units or not all(isinstance(unit, nn.Module) for unit in trunk.units):
        _refuse(name, "its units must be torch modules, one or more")
    if len(trunk.widths) != len(trunk.units):
        _refuse(name, f"it gives {len(trunk.widths)} widths for {len(trunk.units)} units: give one for each")
    exits = trunk.exits
    if exits and (exits[0] < 1 or exits[-1] != len(trunk.units) or any(b <= a for a, b in pairwise(exits))):
        _refuse(name, f"its exits are {exits}, must rise from 1 or more to its number of units, {len(trunk.units)}")
    if not 0 <= trunk.latent_unit < len(trunk.units):
        _refuse(name, f"its latent unit is {trunk.latent_unit}, must be one of its {len(trunk.units)} units, from 0")
    seen: dict[int, str] = {}
    for index, unit in enumerate(trunk.units):
        for key, tensor in unit.state_dict(keep_vars=True).items():
            place = f"{key} of unit {index}"
            if tensor.dtype not in DTYPES:
                _refuse(name, f"{place} is {tensor.dtype}: give float32, or int64 for a counter")
            if other := seen.get(id(tensor)):
                _refuse(name, f"{other} and {place} are one tensor: give each name a tensor of its own")
            seen[id(tensor)] = place
    return trunk


def take_planes(units: Iterable[nn.Module]) -> None:
    """Give units their maps contiguous, as torch does by default: with channels last `view` would fail in them."""
    for unit in units:
        unit.register_forward_pre_hook(_planes)


def _planes(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in inputs)


def check_network(name: str, first: EarlyExitNetwork, second: EarlyExitNetwork) -> None:
    """Check the contract on two builds of a named network from one seed, of which the first is used up.

    Raises `UserError` if they differ or share tensors; if the units do not chain, change their input in place or keep
    something from one batch to the next; if shapes are not those that the trunk gives; or if it cannot be trained.
    """
    _check_builds(name, first.state_dict(), second.state_dict())
    _check_values(name, first.state_dict())
    network = first.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad(), seeded("check", 0):
        x = network.example(3)
        if not network.vocabulary:
            x = torch.rand_like(x)
        for index, unit in enumerate(network.units.values()):
            if index == network.latent_unit and tuple(x.shape[1:]) != tuple(network.latent_shape):
                _refuse(
                    name, f"its latent shape is {network.latent_shape}, but unit {index} takes {tuple(x.shape[1:])}"
                )
            x = _through(name, index, unit, x)
            _check_head(name, network, index, x)
    for key, value in network.state_dict().items():
        if not torch.equal(value, before[key]):
            _refuse(name, f"{key} changes while the network only predicts: keep nothing between batches in eval mode")
    try:
        with seeded("check", 1):
            torch.stack(network.train()(network.example(2))).sum().backward()
    except Exception as error:
        raise UserError(f"{KEY} {name!r} cannot be trained: {type(error).__name__}: {error}") from error


def _check_builds(name: str, one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    if [(key, value.shape) for key, value in one.items()] != [(key, value.shape) for key, value in two.items()]:
        _refuse(name, "two calls give other names or shapes: they must depend on the spec alone")
    for key, value in one.items():
        if value.numel() and value.data_ptr() == two[key].data_ptr():
            _refuse(name, f"two calls return the same tensor for {key}: make new modules at every call")
        if not torch.equal(value, two[key]):
            _refuse(name, f"two calls with one seed give other weights for {key}: draw them from torch's global state")


def _check_values(name: str, state: dict[str, Tensor]) -> None:
    """Refuse values with which every client's update would be rejected."""
    try:
        check_values(FlatState.of(state))
    except UnfitError as error:
        _refuse(name, f"{error}: give other values, or register a constant buffer with persistent=False")


def _through(name: str, index: int, unit: nn.Module, x: Tensor) -> Tensor:
    """Return a unit's output for x (B, ...), after checks of its type, its batch, and what it leaves behind."""
    given = x.clone()
    try:
        output, again = unit(x), unit(given.clone())
    except Exception as error:
        before = "the input" if index == 0 else f"what unit {index - 1} returns"
        problem = f"unit {index} does not take {before}, {tuple(given.shape)}: {type(error).__name__}: {error}"
        raise UserError(f"{KEY} {name!r}: {problem}") from error
    if not isinstance(output, Tensor) or output.shape[:1] != given.shape[:1]:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        _refuse(name, f"unit {index} returns {found}, must be one tensor with the {len(given)} samples in front")
    if not torch.equal(x, given):
        _refuse(name, f"unit {index} changes its input in place: the exit before it has read it, so use inplace=False")
    if not torch.equal(output, again):
        _refuse(name, f"unit {index} gives another result for the same input: keep nothing between batches")
    return output


def _check_head(name: str, network: EarlyExitNetwork, index: int, x: Tensor) -> None:
    """Check the head of an exit after unit `index`, whose output is x."""
    width = network.architecture.widths[index]
    head = network.architecture.new_head(index + 1)
    try:
        shape = tuple(head.pooled(x).shape)
        head(head.pooled(x))
    except Exception as error:
        problem = f"an exit after unit {index} does not take {tuple(x.shape)}: {type(error).__name__}: {error}"
        raise UserError(f"{KEY} {name!r}: {problem}") from error
    if shape != (len(x), width):
        _refuse(name, f"width {index} is {width}, but the feature after unit {index} is {shape[1:]}")


def _refuse(name: str, problem: str) -> NoReturn:
    raise UserError(f"{KEY} {name!r}: {problem}")
