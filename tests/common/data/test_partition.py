import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.data import DataConfig, with_samples
from common.data.partition import partition
from common.errors import UserError
from common.flower.processes import PROJECT

pytest.importorskip("flwr_datasets", reason="partitions need the simulation extra")
datasets = pytest.importorskip("datasets")

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 50))


def _sizes(parts: list[np.ndarray]) -> list[int]:
    return [len(part) for part in parts]


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards"])
def test_parts_are_sorted_disjoint_and_fixed_by_the_seed(name: str) -> None:
    config = DataConfig(partitioner=name)
    once, again, other = (partition(config, LABELS, 10, seed, None) for seed in (1, 1, 2))
    joined = np.concatenate(once)
    assert len(once) == 10
    assert all(np.all(part[1:] > part[:-1]) for part in once)
    assert sorted(joined.tolist()) == list(range(500))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))


def test_iid_parts_are_even_and_shuffled() -> None:
    parts = partition(DataConfig(), np.sort(LABELS), 7, 1, None)
    assert max(_sizes(parts)) - min(_sizes(parts)) <= 1
    assert min(len(np.unique(np.sort(LABELS)[part])) for part in parts) >= 9


def test_shards_give_few_classes() -> None:
    parts = partition(DataConfig(partitioner="shards", shards_per_client=2), LABELS, 5, 1, None)
    assert _sizes(parts) == [100] * 5
    assert all(len(np.unique(LABELS[part])) == 2 for part in parts)


def test_smaller_alpha_is_more_skewed() -> None:
    def largest_share(alpha: float) -> float:
        parts = partition(DataConfig(partitioner="dirichlet", alpha=alpha), LABELS, 5, 1, None)
        return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts if len(part)]))

    assert largest_share(1000.0) < 0.15
    assert largest_share(0.1) > 0.3


def test_dirichlet_gives_each_client_two_samples_if_possible() -> None:
    parts = partition(DataConfig(partitioner="dirichlet", alpha=0.3), LABELS, 20, 3, None)
    assert min(_sizes(parts)) >= 2


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_dirichlet_with_too_many_clients_leaves_some_empty(alpha: float) -> None:
    parts = partition(DataConfig(partitioner="dirichlet", alpha=alpha), LABELS, 100, 1, None)
    assert sorted(np.concatenate(parts).tolist()) == list(range(500))
    assert 0 < len(with_samples(parts)) < 100
    assert all(len(parts[client]) for client in with_samples(parts))


def test_natural_clients_own_their_values() -> None:
    owners = np.array(["bob", "ann", "zoe", "ann", "bob"])
    config = DataConfig(partitioner="natural", column="writer")
    parts = partition(config, np.zeros(5, dtype=np.int64), 2, 1, None, owners)
    assert [part.tolist() for part in parts] == [[1, 3], [0, 4]]


@pytest.mark.parametrize(
    ("config", "clients", "natural", "message"),
    [
        (DataConfig(), 501, None, "501 clients .*'iid' need 501 training samples, but the set has only 500"),
        (DataConfig(), 0, None, "clients.count is 0, must be at least 1"),
        (DataConfig(partitioner="dirichlet"), 501, None, r"lower clients\.count"),
        (DataConfig(partitioner="shards", shards_per_client=6), 100, None, r"need 600 .*data\.shards-per-client"),
        (DataConfig(partitioner="natural", column="w"), 2, None, "has no natural clients"),
        (DataConfig(partitioner="natural", column="w"), 3, np.arange(500) % 2, "3 values .* column 'w', .* only 2"),
    ],
)
def test_impossible_deal_is_refused(config: DataConfig, clients: int, natural: np.ndarray | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        partition(config, LABELS, clients, 1, None, natural)
    assert "\n" not in str(caught.value)


def test_cache_equals_dealing_including_empty_parts(tmp_path: Path) -> None:
    config = DataConfig(partitioner="dirichlet", alpha=0.05)
    fresh = partition(config, LABELS, 100, 1, None)
    for _ in ("written", "read"):
        kept = partition(config, LABELS, 100, 1, tmp_path)
        assert [part.tolist() for part in kept] == [part.tolist() for part in fresh]
        assert all(part.dtype == np.int64 for part in kept)


def test_each_relevant_setting_has_its_own_cache_entry(tmp_path: Path) -> None:
    partition(DataConfig(), LABELS, 5, 1, tmp_path)
    partition(DataConfig(alpha=9.0, mean="0.1"), LABELS, 5, 1, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    partition(DataConfig(), LABELS, 5, 2, tmp_path)
    partition(DataConfig(), LABELS, 6, 1, tmp_path)
    partition(DataConfig(), LABELS[::-1], 5, 1, tmp_path)
    partition(DataConfig(partitioner="shards"), LABELS, 5, 1, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(),
        DataConfig(partitioner="dirichlet", alpha=0.3),
        DataConfig(partitioner="shards", shards_per_client=3),
        DataConfig(partitioner="natural", column="c"),
    ],
    ids=lambda config: config.partitioner,
)
def test_parts_equal_those_of_a_hugging_face_dataset(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    natural = np.asarray([f"client {value}" for value in np.random.default_rng(1).integers(0, 12, len(LABELS))])
    fast = partition(config, LABELS, 12, 1, None, natural)
    module = sys.modules["common.data.partition"]
    monkeypatch.setattr(module, "Table", datasets.Dataset.from_dict)
    plain = partition(config, LABELS, 12, 1, None, natural)
    assert len(fast) == len(plain) == 12
    assert all(np.array_equal(a, b) for a, b in zip(fast, plain, strict=True))


def test_missing_extra_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[simulation\]'"):
        partition(DataConfig(), LABELS, 2, 1, None)


DEAL = """
import sys
import numpy as np
from common.data import DataConfig
from common.data.partition import partition
partition(DataConfig(), np.arange(20) % 2, 4, 1, None)
assert not {"seaborn", "matplotlib"} & set(sys.modules)
from flwr_datasets.visualization import plot_label_distributions
"""


def test_dealing_imports_no_plots() -> None:
    subprocess.run([sys.executable, "-c", DEAL], cwd=PROJECT, check=True)
