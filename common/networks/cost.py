"""Costs of each unit and exit, measured by running them: torch counts the FLOPs and the tensors kept for backward."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from common.networks.base import EarlyExitNetwork
from common.networks.heads import ExitHead

BYTES = 4  # of a float32
COUNTED_BATCH = 2  # BatchNorm cannot train on a single sample


@dataclass(frozen=True)
class UnitCost:
    """Costs of one unit or exit head; all but the parameters are per sample."""

    parameters: int
    macs: int  # multiply-accumulates of one forward pass
    activation_bytes: int  # of its output
    training_bytes: int  # of the tensors kept for the backward pass and the gradient of its output
    frozen_parameters: int = 0  # those of `parameters` that are not trained (LoRA)


@dataclass(frozen=True)
class CostTable:
    """Costs of a whole network, and of the parts of it that a device may hold."""

    units: tuple[UnitCost, ...]
    exits: dict[int, UnitCost]  # by position: the number of units before the exit
    tiers: tuple[int, ...]  # units of each depth tier

    def macs(self, exit_index: int) -> int:
        """Return MACs of one sample that leaves at this exit, counted from 0, earlier heads included."""
        return self.cut_macs(sorted(self.exits)[exit_index])

    def tier_macs(self, depth: int) -> int:
        """Return MACs of one sample's forward pass through tier `depth`, counted from 1."""
        return self.cut_macs(self.tiers[depth - 1])

    def tier_parameters(self, depth: int) -> int:
        """Return the number of parameters of tier `depth`, counted from 1."""
        return self.cut_parameters(self.tiers[depth - 1])

    def tier_training_memory(self, depth: int, batch_size: int) -> int:
        """Return the bytes that training tier `depth`, counted from 1, needs (see cut_training_memory)."""
        return self.cut_training_memory(self.tiers[depth - 1], batch_size)

    def tier_uploads(self, depth: int) -> int:
        """Return how many of tier `depth`'s parameters travel back from a device: the trained ones."""
        return sum(part.parameters - part.frozen_parameters for part in self._prefix(self.tiers[depth - 1]))

    def cut_macs(self, cut: int) -> int:
        """Return MACs of one sample's forward pass through the units before `cut` and the exits on them."""
        return sum(part.macs for part in self._prefix(cut))

    def cut_parameters(self, cut: int) -> int:
        """Return the number of parameters of the units before `cut` and the exits on them."""
        return sum(part.parameters for part in self._prefix(cut))

    def cut_training_memory(self, cut: int, batch_size: int) -> int:
        """Return the bytes that training the units before `cut` and the exits on them needs.

        These are weights, gradients and momentum in float32, and per sample the tensors for the backward pass. A head
        made on demand at the cut, the batch itself and torch's own footprint are not counted.
        """
        parts = self._prefix(cut)
        weights = sum(3 * part.parameters - 2 * part.frozen_parameters for part in parts)
        return BYTES * weights + batch_size * sum(part.training_bytes for part in parts)

    def forward_memory(self, batch_size: int) -> int:
        """Return the bytes that a forward pass of the whole needs: its weights, and the largest input plus output."""
        sizes = [0, *(unit.activation_bytes for unit in self.units)]
        largest = max(before + after for before, after in pairwise(sizes))
        return BYTES * self.cut_parameters(len(self.units)) + batch_size * largest

    def to_json(self) -> str:
        """Return the table as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "CostTable":
        """Return the table that `to_json` wrote."""
        values = json.loads(text)
        return cls(
            units=tuple(UnitCost(**unit) for unit in values["units"]),
            exits={int(position): UnitCost(**head) for position, head in values["exits"].items()},
            tiers=tuple(values["tiers"]),
        )

    def _prefix(self, cut: int) -> list[UnitCost]:
        return [*self.units[:cut], *(head for position, head in self.exits.items() if position <= cut)]


def cost_table(network: EarlyExitNetwork) -> CostTable:
    """Return the costs of a whole network or a prefix, counted in one training pass of a copy on the CPU.

    Raises:
        ValueError: the network is a suffix, which takes features and has no table of its own.
    """
    if network.start != 0:
        raise ValueError("count the whole network: a suffix's units are in its table")
    network = copy.deepcopy(network).cpu().train()
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    meter = _Meter(parameters)
    units: list[UnitCost] = []
    exits: dict[int, UnitCost] = {}
    tokens: list[Tensor] = []  # of recurrent exits
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        x = network.example(COUNTED_BATCH)
        for index, unit in enumerate(network.units.values()):
            x, cost = meter.measure(unit, unit, x)
            units.append(cost)
            position = index + 1
            if position in network.exit_positions:
                head = network.head(position)
                output, exits[position] = meter.measure(head, _classifier(head), x)
                if network.recurrent is not None:
                    tokens.append(output)
                    _, shared = meter.measure(network.recurrent, network.recurrent, torch.stack(tokens, dim=1))
                    exits[position] = _with_shared(exits[position], shared, first=len(tokens) == 1)
    tiers = tuple(position for position in network.tier_positions if position <= len(units))
    return CostTable(tuple(units), exits, tiers)


def _with_shared(head: UnitCost, shared: UnitCost, *, first: bool) -> UnitCost:
    """Return a recurrent exit's cost; the classifier's parameters count for the first exit, which all parts have."""
    return UnitCost(
        parameters=head.parameters + (shared.parameters if first else 0),
        macs=head.macs + shared.macs,
        activation_bytes=shared.activation_bytes,
        training_bytes=head.training_bytes + shared.training_bytes,
        frozen_parameters=head.frozen_parameters,
    )


def _classifier(head: ExitHead) -> Callable[[Tensor], Tensor]:
    return lambda x: cast(Tensor, head(head.pooled(x)))


class _FlopCounter(TorchDispatchMode):
    """Counts FLOPs by torch's formulas, as `FlopCounterMode` does, which imports torch's compiler: 150 MB, a second."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imports Triton, which only those that count need

        super().__init__()
        self.flops, self._formulas = 0, flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import the compiler to keep it away from this mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if formula := self._formulas.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        return output


class _Meter:
    """Measures modules one after another; a tensor that two of them keep for backward counts for the first."""

    def __init__(self, parameters: set[int]) -> None:
        self._counted = parameters
        self._kept: list[torch.UntypedStorage] = []

    def measure(self, module: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, UnitCost]:
        """Return call(x) and its cost."""
        first = len(self._kept)
        with saved_tensors_hooks(self._keep, lambda tensor: tensor), _FlopCounter() as counter:
            output = call(x)
        kept = sum(storage.nbytes() for storage in self._kept[first:])
        output_bytes = output.nbytes // COUNTED_BATCH
        return output, UnitCost(
            parameters=sum(p.numel() for p in module.parameters()),
            macs=counter.flops // 2 // COUNTED_BATCH,
            activation_bytes=output_bytes,
            training_bytes=kept // COUNTED_BATCH + output_bytes,
            frozen_parameters=sum(p.numel() for p in module.parameters() if not p.requires_grad),
        )

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._counted:
            self._counted.add(storage._cdata)
            # Kept alive, so that no later storage gets the same address.
            self._kept.append(storage)
        return tensor
