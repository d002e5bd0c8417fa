"""A stored model that torch computes."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.runtimes.base import HalfOutputs, Inference, Leaves
from common.console.samples import Takes
from common.devices import keep_memory, pick_device
from common.errors import UserError
from common.networks import cost_table
from common.storage.model_file import StoredModel, load_model
from strategies.hetero_splitee.origin import CLIENT
from strategies.hetero_splitee.statistics import SERVER_HALF


class TorchNetwork:
    """See `base.Runtime`; the network moves to the device."""

    def __init__(self, stored: StoredModel, device: torch.device) -> None:
        self._device = device
        self.network, self._normalise = stored.network.to(device), stored.normalizer.to(device)
        self.run, self.cut, self.classes, self.policy = stored.run, stored.cut, stored.classes, stored.policy
        self.client: int | None = stored.values.get(CLIENT)
        self.takes = Takes(stored.network.input_shape, stored.network.vocabulary)
        self._stored = stored

    @classmethod
    def open(cls, path: Path, threads: int, device: str, *, split: bool) -> "TorchNetwork":
        """Load a model file or folder; raises `UserError` when there is none, or it is not of this kind."""
        stored = load_model(path)
        if split and not stored.cut:
            raise UserError(
                f"--model {path} is not a device's part of a split network: give the folder client-... that a device "
                "stored after a run of hetero_splitee"
            )
        if not split and stored.values.get(SERVER_HALF):
            raise UserError(
                f"--model {path} is the server's half of a split network: serve it with "
                "`python -m server offload`, and give the folder that a device stored"
            )
        torch.set_num_threads(threads)
        keep_memory()
        return cls(stored, pick_device(device))

    @cached_property
    def macs(self) -> tuple[int, ...]:
        """MACs of a sample that leaves at each exit, shallow to deep; to count them the network runs once."""
        return exit_macs(self._stored)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample's features at the cut."""
        with torch.no_grad():
            example = self.network.example(1).to(self._device)
            return tuple(self.network.features_at(example, self.cut).shape[1:])

    def infer(self, inputs: NDArray[Any], leaves: Leaves) -> Inference:
        """Run early-exit inference."""
        found = self.network.infer(self._input(inputs), leaves)
        return Inference(found.logits.cpu().numpy(), found.exits.cpu().numpy())

    @torch.no_grad()
    def half(self, inputs: NDArray[Any]) -> HalfOutputs:
        """Run all of a split network's device half."""
        found = self.network.forward_exits(self._input(inputs))
        return HalfOutputs(found.logits[-1].cpu().numpy(), found.trunk.cpu().numpy())

    def _input(self, inputs: NDArray[Any]) -> torch.Tensor:
        return self._normalise(torch.from_numpy(np.ascontiguousarray(inputs)).to(self._device))


def exit_macs(stored: StoredModel) -> tuple[int, ...]:
    """Return the MACs of a sample that leaves at each exit, shallow to deep."""
    costs = cost_table(stored.network)
    return tuple(costs.macs(index) for index in range(len(stored.network.exit_positions)))
