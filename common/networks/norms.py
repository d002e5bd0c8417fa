"""Normalisation by groups of channels in the place of batch norm (GroupNorm, Wu and He, ECCV 2018).

GroupNorm has no running statistics and does not depend on the other samples of a batch. So nothing of it has to be
averaged or kept apart where clients' data, or the depths of their cuts, differ (Hsieh et al., ICML 2020).
"""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import UserError
from common.networks.heads import ExitHead

CHANNELS = 8  # of a group, at least: fewer have a poor mean and variance at the last, small maps
GROUPS = 32  # at most, as published


def group_count(channels: int) -> int:
    """Return into how many groups GroupNorm divides channels.

    The most that divide them, up to 32, with 8 channels or more in each; 1, which is a LayerNorm over the map, where
    none does.
    """
    return max((g for g in range(1, min(GROUPS, channels // CHANNELS) + 1) if channels % g == 0), default=1)


def normalised_by_groups(units: list[nn.Module], name: str) -> list[nn.Module]:
    """Return a trunk's units with GroupNorm for every batch norm; without any, after every convolution of a chain.

    Units with batch norm are changed in place. The weights of all other layers, and their order, stay.

    Raises:
        UserError: the trunk, of this network's name, has neither batch norm nor a chain with a convolution.
    """
    if any(_has_batch_norm(unit) for unit in units):
        return [replaced(unit) for unit in units]
    inserted = [_inserted(unit) if isinstance(unit, nn.Sequential) else unit for unit in units]
    if not any(isinstance(module, nn.GroupNorm) for unit in inserted for module in unit.modules()):
        raise UserError(
            f"network.norm is 'group', but network.name {name!r} has no batch norm to replace: set network.norm=batch"
        )
    return inserted


def head_by_groups(head: Callable[[int, int], ExitHead], width: int, classes: int) -> ExitHead:
    """Return a new exit head (width, classes) with GroupNorm for its batch norm, if it has one."""
    new = head(width, classes)
    replaced(new)
    return new


def replaced(module: nn.Module) -> nn.Module:
    """Replace every batch norm inside a module, or the module itself, and return it."""
    if isinstance(module, _BatchNorm):
        return nn.GroupNorm(group_count(module.num_features), module.num_features, eps=module.eps)
    for key, child in module.named_children():
        setattr(module, key, replaced(child))
    return module


def _has_batch_norm(unit: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in unit.modules())


def _inserted(chain: nn.Sequential) -> nn.Sequential:
    modules: list[nn.Module] = []
    for module in chain:
        modules.append(module)
        if isinstance(module, nn.Conv2d):
            modules.append(nn.GroupNorm(group_count(module.out_channels), module.out_channels))
    return nn.Sequential(*modules)
