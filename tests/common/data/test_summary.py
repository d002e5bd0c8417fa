import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.data import DataConfig, SampleSet, TrainTest
from common.data.summary import DataSummary, Dealt

PARTS = [np.arange(3), np.arange(0), np.arange(4)]
CLASSES = ("box", "ring")


def _set(labels: list[int], shape: tuple[int, ...] = (1, 8, 8)) -> SampleSet:
    return SampleSet(torch.zeros((len(labels), *shape), dtype=torch.uint8), torch.tensor(labels), CLASSES)


@pytest.fixture
def summary() -> DataSummary:
    source = TrainTest(_set([0, 0, 1]), _set([1]), notes=("left out: 1 file",), digest="abc")
    return DataSummary.of(DataConfig(name="folder", root="/data"), source, Dealt.of(PARTS), "dealt")


def test_lines_show_counts_shape_clients_and_notes(summary: DataSummary) -> None:
    assert summary.lines() == [
        "data folder in /data: 3 train, 1 test; 2 classes; grey images of 8x8",
        "  classes (train/test): box 2/0, ring 1/1",
        "  3 clients: least 0, median 3, most 4 samples; 1 without samples (1)",
        "  note: left out: 1 file",
        "  note: dealt",
    ]
    assert replace(summary, shape=(3, 4, 5)).kind() == "RGB images of 5x4"
    assert replace(summary, shape=(32,)).kind() == "texts, 32 tokens of each"


def test_many_classes_are_shortened_in_a_log_alone(summary: DataSummary) -> None:
    many = replace(summary, classes=tuple(map(str, range(100))), counts={"train": (1,) * 100})
    assert many.lines()[1].endswith("19 1 and 80 more")
    assert len(many.rows()) == 100


def test_own_validation_split_is_counted() -> None:
    source = TrainTest(_set([0]), _set([]), validation=_set([1, 1]))
    assert DataSummary.of(DataConfig(), source, None).counts == {"train": (1, 0), "validation": (0, 2)}


def test_summary_survives_json(summary: DataSummary) -> None:
    text = summary.to_json()
    assert json.loads(text)["lines"] == summary.lines()
    assert DataSummary.from_json(text) == summary
    assert DataSummary.from_json(replace(summary, dealt=None).to_json()).dealt is None


def test_differences_name_what_has_changed(summary: DataSummary) -> None:
    assert summary.differences(replace(summary, root="/copy", notes=(), dealt=None)) == []
    for changes, sentence in (
        ({"classes": ("box", "cross", "ring")}, "classes added: cross"),
        ({"classes": ("box",)}, "classes gone: ring"),
        ({"classes": ("ring", "box")}, "its classes are in another order"),
        ({"counts": {"train": (2, 2), "test": (0, 1)}}, "4 train samples in place of 3"),
        ({"counts": {"train": (2, 1)}}, "0 test samples in place of 1"),
        ({"shape": (3, 8, 8)}, "RGB images of 8x8 in place of grey images of 8x8"),
        ({"digest": "abd"}, "the same number of samples, but other samples, labels or clients' names"),
    ):
        assert summary.differences(replace(summary, **changes)) == [sentence]
