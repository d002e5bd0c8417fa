"""One client's view of the data: its own folder on a device, else its partition of a shared set."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from logging import WARNING
from pathlib import Path

import numpy as np
import torch
from flwr.supercore import log
from numpy.typing import NDArray
from torch import Tensor

from common import paths
from common.data import ClientSplit, client_split, device_data, load, normalizer, with_samples
from common.data.dataset import TrainTest
from common.data.fingerprint import fingerprint
from common.data.images import Normalizer, SampleSet
from common.data.partition import partition
from common.errors import UserError
from common.sections.data import DataConfig

KEPT_CLIENTS = 64  # clients whose tensors a worker keeps; making them anew costs a fraction of training on them


@dataclass(frozen=True)
class ClientData:
    """A client's own samples, ready for the network. Without `data.client-test` the test part is empty."""

    x: Tensor  # (N, C, H, W) float32, normalised, or (N, L) int64 token ids; on the device
    y: Tensor  # (N,) int64
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Population:
    """The shared set and how it is dealt; together they decide a virtual client's samples."""

    data: DataConfig
    clients: int
    seed: int

    def split(self, client: int) -> ClientSplit:
        """Return a client's training, validation and test indices into the shared training set.

        Raises `UserError` when the client does not exist.
        """
        if not 0 <= client < self.clients:
            raise UserError(f"client {client} does not exist: clients.count is {self.clients}, ids start at 0")
        indices = self.parts()[client]
        return client_split(indices, self.data.validation, self.seed, client, test=self.data.client_test)

    def validation(self) -> NDArray[np.int64]:
        """Return the union of all clients' validation indices, sorted."""
        return np.sort(np.concatenate([self.split(client).validation for client in with_samples(self.parts())]))

    def server_validation(self) -> SampleSet:
        """Return the server's validation set: the set's own, else all clients' validation samples."""
        source = load(self.data, paths.cache_root())
        return source.train.subset(self.validation()) if source.validation is None else source.validation

    def parts(self) -> list[NDArray[np.int64]]:
        """Return each client's indices, before they are split."""
        return _partitions(self, load(self.data, paths.cache_root()))


@dataclass(frozen=True)
class OwnFolder:
    """A device's folder of images, and what the run makes of them; together they decide the device's samples."""

    folder: str
    data: DataConfig
    classes: tuple[str, ...]  # the run's
    shape: tuple[int, ...]  # (C, H, W), to which images are resized
    seed: int


def shared_data(population: Population, client: int, device: torch.device) -> ClientData:
    """Return a virtual client's samples; later calls in this process return the same object while the set is."""
    return _shared_data(population, load(population.data, paths.cache_root()), client, device)


@lru_cache(maxsize=KEPT_CLIENTS)
def _shared_data(population: Population, source: TrainTest, client: int, device: torch.device) -> ClientData:
    everything = _resident(source, device)
    parts = tuple(everything.subset(part) for part in population.split(client))
    return _ready(parts, normalizer(population.data, source.input_shape[0]), device)


@lru_cache(maxsize=1)
def _resident(source: TrainTest, device: torch.device) -> SampleSet:
    """Return what is dealt to all clients, as uint8 on a GPU that has room for it."""
    return source.train.resident(device)


def own_data(own: OwnFolder, device: torch.device) -> ClientData:
    """Return a device's own images; the same object until `look_again` finds other files.

    Raises `UserError` for classes that the run does not have, and when the run's data are texts.
    """
    return _own_data(own, fingerprint(own.folder), device)


@lru_cache(maxsize=1)
def _own_data(own: OwnFolder, files: str, device: torch.device) -> ClientData:
    data = own.data
    if data.is_text:
        raise UserError(f"{own.folder} holds images, but this run's data are texts: take part in a run with images")
    channels, height, width = own.shape
    found = device_data(
        Path(own.folder), own.classes, (channels, height, width), data.validation, own.seed, test=data.client_test,
        skip_damaged=data.skip_damaged,
    )  # fmt: skip
    for note in found.notes:
        log(WARNING, "%s: %s", own.folder, note)
    return _ready((found.train, found.validation, found.test), normalizer(data, channels), device)


def _ready(parts: Iterable[SampleSet], normalize: Normalizer, device: torch.device) -> ClientData:
    """Return training, validation and test samples, given in this order, as a network takes them."""
    normalize = normalize.to(device)
    there = (part.to(device) for part in parts)
    pairs = ((normalize(part.inputs), part.labels) for part in there)
    return ClientData(*chain.from_iterable(pairs))


@lru_cache(maxsize=4)
def _partitions(population: Population, source: TrainTest) -> list[NDArray[np.int64]]:
    return partition(
        population.data, source.train.labels, population.clients, population.seed, paths.cache_root(),
        natural=source.natural,
    )  # fmt: skip
