"""Deal the training samples to clients with the partitioners of flwr-datasets."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.data.cache import Json, cached, content_key
from common.data.support import require
from common.errors import UserError
from common.sections.data import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr_datasets.partitioner import Partitioner

_FORMAT = 1
PLOTS = "flwr_datasets.visualization"
# flwr-datasets samples anew until every client can train (BatchNorm needs two samples).
_WANTED_SAMPLES = 2

Parts = list[NDArray[np.int64]]


def partition(
    config: DataConfig,
    labels: Tensor | NDArray[np.int64],
    num_clients: int,
    seed: int,
    cache: Path | None,
    natural: NDArray[np.generic] | None = None,
) -> Parts:
    """Return one sorted index array per client, disjoint, the same for the same arguments.

    A skewed Dirichlet distribution may leave a client without samples (`with_samples` returns the others). `shards`
    leaves out fewer samples than the number of shards. `natural` deals to the first `num_clients` values of the column
    in sorted order.

    Args:
        config: its partitioner and that partitioner's setting.
        labels: (N,), of the training set.
        num_clients: number of parts.
        seed: of the partitioner.
        cache: folder that keeps the result, so that later processes need not import flwr-datasets (a second).
        natural: the column's value per sample (N,), for data.partitioner = natural.

    Raises:
        UserError: the set has too few samples or values for so many clients.
    """
    targets = np.asarray(labels, dtype=np.int64)
    owners = natural if config.partitioner == "natural" else None
    _check(config, targets, num_clients, owners)
    if cache is None:
        return _deal(config, targets, num_clients, seed, owners)
    setting: dict[str, Json] = {"dirichlet": config.alpha, "shards": config.shards_per_client}
    key = content_key(
        "partition",
        _FORMAT,
        config.partitioner,
        setting.get(config.partitioner),
        num_clients,
        seed,
        _digest(targets),
        None if owners is None else _digest(owners),
    )
    return cached(cache, key, lambda folder: _write(_deal(config, targets, num_clients, seed, owners), folder), _read)


def with_samples(parts: Sequence[NDArray[np.int64]]) -> list[int]:
    """Return the clients that have at least one sample; the others cannot take part."""
    return [client for client, indices in enumerate(parts) if len(indices)]


def _check(
    config: DataConfig, targets: NDArray[np.int64], num_clients: int, owners: NDArray[np.generic] | None
) -> None:
    if num_clients < 1:
        raise UserError(f"clients.count is {num_clients}, must be at least 1")
    if config.partitioner == "natural":
        if owners is None or len(owners) != len(targets):
            raise UserError(f"the set {config.name!r} has no natural clients: choose another data.partitioner")
        available, unit = len(np.unique(owners)), f"values in the column {config.column!r}"
        needed, remedy = num_clients, "lower clients.count"
    elif config.partitioner == "shards":
        available, unit = len(targets), "training samples"
        needed, remedy = num_clients * config.shards_per_client, "lower clients.count or data.shards-per-client"
    else:
        available, unit = len(targets), "training samples"
        needed, remedy = num_clients, "lower clients.count or use more data (data.limit)"
    if needed > available:
        raise UserError(
            f"{num_clients} clients with data.partitioner {config.partitioner!r} need {needed} {unit}, "
            f"but the set has only {available}: {remedy}"
        )


def _deal(
    config: DataConfig,
    targets: NDArray[np.int64],
    num_clients: int,
    seed: int,
    owners: NDArray[np.generic] | None,
) -> Parts:
    def draw(smallest: int) -> Parts:
        return _indices(_partitioner(config, num_clients, seed, smallest), targets, owners, num_clients, seed)

    try:
        return draw(_WANTED_SAMPLES)
    except ValueError:
        # Eleven draws each left a client with too few samples: the first draw is kept, such clients included.
        return draw(0)


def _partitioner(config: DataConfig, num_clients: int, seed: int, smallest: int) -> Partitioner:
    package = _partitioners()
    if config.partitioner == "dirichlet":
        return package.DirichletPartitioner(
            num_partitions=num_clients,
            partition_by="label",
            alpha=float(config.alpha),
            min_partition_size=smallest,
            self_balancing=False,
            seed=seed,
        )
    if config.partitioner == "shards":
        return package.ShardPartitioner(
            num_partitions=num_clients,
            partition_by="label",
            num_shards_per_partition=config.shards_per_client,
            seed=seed,
        )
    if config.partitioner == "natural":
        return package.NaturalIdPartitioner(partition_by="natural")
    return package.IidPartitioner(num_partitions=num_clients)


def _partitioners() -> ModuleType:
    """Import flwr-datasets' partitioners without its plots, whose packages take longer than all the others."""
    left_out = PLOTS not in sys.modules
    if left_out:
        sys.modules[PLOTS] = ModuleType(PLOTS)
    try:
        return require("flwr_datasets.partitioner", "dealing data to virtual clients")
    finally:
        if left_out:
            sys.modules.pop(PLOTS)  # so that they can be imported later


def _indices(
    partitioner: Partitioner,
    targets: NDArray[np.int64],
    owners: NDArray[np.generic] | None,
    num_clients: int,
    seed: int,
) -> Parts:
    """Run a partitioner over a table of labels without images.

    The table is shuffled first, as FederatedDataset does: some partitioners cut it in its given order.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    columns: dict[str, NDArray[np.generic]] = {"index": order, "label": targets[order]}
    if owners is not None:
        columns["natural"] = owners[order]
    # flwr-datasets warns at every repeated draw and shows a progress bar of its own.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        # the public setter takes no other class
        partitioner._dataset = cast("Dataset", Table(columns))
        parts = [partitioner.load_partition(client)["index"][:] for client in range(num_clients)]
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]


class Table:
    """The operations of a `datasets.Dataset` that partitioners use; the real one takes 10 ms for every client."""

    def __init__(self, columns: Mapping[str, NDArray[np.generic]]) -> None:
        self._columns = columns
        self.num_rows = len(columns["index"])

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, column: str) -> NDArray[np.generic]:
        return self._columns[column]

    def unique(self, column: str) -> list[object]:
        """Return the column's values, each once."""
        values: list[object] = np.unique(self._columns[column]).tolist()
        return values

    def select(self, indices: Sequence[int]) -> Table:
        """Return these rows."""
        rows = np.asarray(indices, dtype=np.int64)
        return Table({name: values[rows] for name, values in self._columns.items()})

    def shard(self, num_shards: int, index: int, contiguous: bool) -> Table:
        """Return one of several parts, each of neighbouring rows; the first ones take a row more than the others."""
        assert contiguous
        size, more = divmod(self.num_rows, num_shards)
        start = size * index + min(index, more)
        return self.select(range(start, start + size + (index < more)))

    def sort(self, column: str) -> Table:
        """Return all rows in the order of a column's values, equal ones in their present order."""
        return self.select(np.argsort(self._columns[column], kind="stable").tolist())


def _digest(values: NDArray[np.generic]) -> str:
    return hashlib.sha256(f"{values.dtype.str}{values.shape}".encode() + values.tobytes()).hexdigest()


def _write(parts: Parts, folder: Path) -> None:
    np.save(folder / "indices.npy", np.concatenate(parts), allow_pickle=False)
    np.save(folder / "ends.npy", np.cumsum([len(part) for part in parts]), allow_pickle=False)


def _read(folder: Path) -> Parts:
    indices = np.load(folder / "indices.npy", allow_pickle=False)
    return np.split(indices, np.load(folder / "ends.npy", allow_pickle=False)[:-1])
