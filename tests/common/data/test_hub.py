import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.data import DataConfig, load
from common.errors import UserError
from common.sections.data_sets import HUB_SETS

datasets = pytest.importorskip("datasets", reason="the hub needs the simulation extra")

PROJECT = Path(__file__).resolve().parents[3]


def test_downloaded_set_equals_its_files(monkeypatch: pytest.MonkeyPatch, data_root: Path) -> None:
    asked = []

    def load_dataset(repository: str, subset: str | None, split: str) -> "datasets.Dataset":
        asked.append((repository, subset, split))
        files = data_root / "cifar100_tiny" / f"{split}-00000-of-00001.parquet"
        return datasets.Dataset.from_parquet(str(files), keep_in_memory=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub = load(DataConfig(name="cifar100"), None)
    from_files = load(DataConfig(name="cifar100", root=str(data_root / "cifar100_tiny")), None)
    assert asked == [("uoft-cs/cifar100", None, "train"), ("uoft-cs/cifar100", None, "test")]
    assert from_hub.classes == from_files.classes
    for one, other in ((from_hub.train, from_files.train), (from_hub.test, from_files.test)):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)


def test_downloaded_texts_become_token_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["World", "Sports"])}
    )

    def load_dataset(repository: str, subset: str | None, split: str) -> "datasets.Dataset":
        assert (repository, subset) == ("fancyzhx/ag_news", None)
        rows = {"text": ["Talks resume", "A late goal"], "label": [0, 1]}
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load(DataConfig(name="ag_news", length=4), None)
    assert data.classes == ("World", "Sports")
    assert data.train.labels.tolist() == [0, 1]
    assert (data.train.inputs != 0).sum(dim=1).tolist() == [2, 3]


@pytest.mark.parametrize("name", HUB_SETS)
def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=rf"'{name}' cannot be downloaded .*no route to host.*data\.root") as caught:
        load(DataConfig(name=name), None)
    assert "\n" not in str(caught.value)


def test_real_loader_fails_with_the_same_line_when_offline(tmp_path: Path) -> None:
    program = """
from common.data import DataConfig, load
from common.errors import UserError
try:
    load(DataConfig(name="svhn"), None)
except UserError as error:
    print(error)
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "'svhn' cannot be downloaded" in line
    assert "data.root" in line
