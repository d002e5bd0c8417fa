import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import DataConfig, load
from common.data.arrays import _load
from common.data.fingerprint import look_again
from common.data.partition import partition
from common.errors import UserError

PROJECT = Path(__file__).resolve().parents[3]


def test_digits_split_never_changes(tmp_path: Path) -> None:
    data = load(DataConfig(), tmp_path)
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.input_shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert data.train.inputs.dtype == torch.uint8
    assert data.train.inputs.max() == 255
    assert torch.bincount(data.test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert data.natural is None


def test_cache_equals_decoding(tmp_path: Path) -> None:
    config = DataConfig(image_size=12, limit=100)
    in_memory = load(config, None)
    for _ in ("written", "read"):
        _load.cache_clear()
        cached = load(config, tmp_path)
        for one, other in ((in_memory.train, cached.train), (in_memory.test, cached.test)):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.labels, other.labels)
            assert one.classes == other.classes
    assert len(cached.train) == 100
    assert cached.input_shape == (1, 12, 12)


def test_source_that_cannot_be_read_is_not_reported_as_a_full_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "digits.csv")

    monkeypatch.setattr("common.data.arrays.read_digits", refuse)
    with pytest.raises(UserError, match=r"the set digits cannot be read \(.*Permission denied.*digits.csv"):
        load(DataConfig(), tmp_path)


def test_process_decodes_once_for_all_partitions(tmp_path: Path) -> None:
    assert load(DataConfig(), tmp_path) is load(DataConfig(partitioner="dirichlet", alpha=0.1, mean="0.1"), tmp_path)
    assert load(DataConfig(), tmp_path) is not load(DataConfig(limit=10), tmp_path)


def test_merged_set_has_both_parts_and_no_test_set(tmp_path: Path) -> None:
    apart = load(DataConfig(limit=100), tmp_path)
    config = DataConfig(limit=100, client_test=0.25)
    for cache in (None, tmp_path):
        merged = load(config, cache)
        assert torch.equal(merged.train.inputs, torch.cat([apart.train.inputs, apart.test.inputs]))
        assert torch.equal(merged.train.labels, torch.cat([apart.train.labels, apart.test.labels]))
        assert (len(merged.test), merged.test.shape, merged.classes) == (0, (1, 8, 8), apart.classes)
    assert load(DataConfig(limit=100, client_test=0.5), tmp_path) is merged
    _load.cache_clear()
    assert torch.equal(load(config, tmp_path).train.inputs, merged.train.inputs)
    assert len(load(DataConfig(limit=100), tmp_path).test) == 359


def test_writing_to_images_leaves_the_cache_unchanged(tmp_path: Path) -> None:
    load(DataConfig(), tmp_path).train.inputs.zero_()
    _load.cache_clear()
    assert load(DataConfig(), tmp_path).train.inputs.max() == 255


def test_damaged_cache_is_written_anew(tmp_path: Path) -> None:
    expected = load(DataConfig(), tmp_path).train.inputs.clone()
    (file,) = tmp_path.glob("*/train_inputs.npy")
    file.write_bytes(file.read_bytes()[:1000])
    _load.cache_clear()
    assert torch.equal(load(DataConfig(), tmp_path).train.inputs, expected)


def test_changed_files_are_decoded_again(tmp_path: Path, data_root: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(data_root / "cifar10_tiny", root)
    config = DataConfig(name="cifar10", root=str(root))
    before = load(config, tmp_path / "cache").train.inputs.clone()
    shutil.copyfile(data_root / "cifar100_tiny" / "train-00000-of-00001.parquet", root / "train-00000-of-00001.parquet")
    shutil.copyfile(data_root / "cifar100_tiny" / "test-00000-of-00001.parquet", root / "test-00000-of-00001.parquet")
    assert len(load(config, tmp_path / "cache").classes) == 10
    look_again()
    after = load(config, tmp_path / "cache")
    assert len(after.classes) == 100
    assert not torch.equal(after.train.inputs, before)


def test_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root is .*nowhere, which is not a folder"):
        load(DataConfig(name="cifar10", root=str(tmp_path / "nowhere")), None)


def test_digits_have_no_natural_clients() -> None:
    with pytest.raises(UserError, match="'digits' has no column 'writer'"):
        load(DataConfig(partitioner="natural", column="writer"), None)


def test_cached_data_and_partitions_need_no_slow_package(tmp_path: Path) -> None:
    config = DataConfig(partitioner="dirichlet", alpha=0.3)
    parts = partition(config, load(config, tmp_path).train.labels, 5, 1, tmp_path)
    program = f"""
import sys
from pathlib import Path
from common.data import DataConfig, load
from common.data.partition import partition
cache, config = Path({str(tmp_path)!r}), DataConfig(partitioner="dirichlet", alpha=0.3)
parts = partition(config, load(config, cache).train.labels, 5, 1, cache)
slow = {{"datasets", "flwr_datasets", "pyarrow", "sklearn", "pandas"}} & set(sys.modules)
assert not slow, slow
print(*(sum(part.tolist()) for part in parts))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(int(np.sum(part))) for part in parts]
