"""One client's view of the data: its own folder on a device, else its partition of a shared set."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import paths
from common.data import client_split, device_data, load, normalizer, partition, with_samples
from common.data.config import DataConfig
from common.data.images import Normalizer, SampleSet
from common.errors import UserError

KEPT_CLIENTS = 64  # a worker keeps this many clients' tensors; making them anew costs a fraction of training on them


@dataclass(frozen=True)
class ClientData:
    """A client's training and validation images, ready for the network."""

    x: Tensor  # (N, C, H, W) float32, normalised, on the device
    y: Tensor  # (N,) int64
    validation_x: Tensor
    validation_y: Tensor


@dataclass(frozen=True)
class Population:
    """The shared set and how it is dealt: what decides a virtual client's images."""

    data: DataConfig
    clients: int
    seed: int

    def split(self, client: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return a client's training and validation indices into the shared training set.

        Raises `UserError` when there is no such client.
        """
        if not 0 <= client < self.clients:
            raise UserError(f"there is no client {client}: clients.count is {self.clients}, ids start at 0")
        return client_split(_partitions(self)[client], self.data.validation, self.seed, client)

    def validation(self) -> NDArray[np.int64]:
        """Return the union of all clients' validation indices, sorted: the server's validation set."""
        return np.sort(np.concatenate([self.split(client)[1] for client in with_samples(_partitions(self))]))


@lru_cache(maxsize=KEPT_CLIENTS)
def shared_data(population: Population, client: int, device: torch.device) -> ClientData:
    """Return a virtual client's images."""
    source = load(population.data, paths.cache_root()).train
    train, validation = population.split(client)
    normalize = normalizer(population.data, source.shape[0])
    return _ready(source.subset(train), source.subset(validation), normalize, device)


@lru_cache(maxsize=1)
def own_data(
    folder: str,
    data: DataConfig,
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    seed: int,
    device: torch.device,
) -> ClientData:
    """Return a device's own images, resized to `shape` (C, H, W).

    Raises `UserError` for classes that the server does not know.
    """
    train, validation = device_data(Path(folder), classes, shape, data.validation, seed)
    return _ready(train, validation, normalizer(data, shape[0]), device)


def _ready(train: SampleSet, validation: SampleSet, normalize: Normalizer, device: torch.device) -> ClientData:
    return ClientData(
        normalize(train.inputs).to(device), train.labels.to(device),
        normalize(validation.inputs).to(device), validation.labels.to(device),
    )  # fmt: skip


@lru_cache(maxsize=4)
def _partitions(population: Population) -> list[NDArray[np.int64]]:
    source, cache = load(population.data, paths.cache_root()), paths.cache_root()
    labels = source.train.labels
    return partition(population.data, labels, population.clients, population.seed, cache, natural=source.natural)
