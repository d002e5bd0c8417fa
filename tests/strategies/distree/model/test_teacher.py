"""A teacher is accepted only for the images and the normalisation of its training."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.data import DataConfig, load
from common.data.images import Normalizer, SampleSet
from common.errors import UserError
from common.networks import NetworkSpec, build, without_early_exits
from common.storage.model_file import ModelInfo, save_model
from strategies.distree.model.teacher import load_teacher

NORMALIZE = Normalizer((0.25,), (0.5,))


@pytest.fixture(scope="module")
def digits() -> SampleSet:
    return load(DataConfig(), None).train


@pytest.fixture(scope="module")
def stored(digits: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = without_early_exits(NetworkSpec("lenet", 10, digits.shape, width=3))
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    info = ModelInfo(spec.to_json(), 1, digits.classes, NORMALIZE.mean, NORMALIZE.std, "")
    save_model(path, build(spec, seed=1).state_dict(), info)
    return path


def test_teacher_of_the_same_images_is_loaded(stored: Path, digits: SampleSet) -> None:
    assert load_teacher(stored, digits, NORMALIZE).classes == digits.classes


def test_teacher_of_other_classes_is_refused(stored: Path, digits: SampleSet) -> None:
    with pytest.raises(UserError, match=r"of 10 classes, this run has .* of 2: give the data"):
        load_teacher(stored, replace(digits, classes=("a", "b")), NORMALIZE)


@pytest.mark.parametrize("constants", [((0.5,), (0.5,)), ((0.25,), (0.75,))])
def test_teacher_of_other_normalisation_is_refused(
    stored: Path, digits: SampleSet, constants: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    with pytest.raises(UserError, match=r"data.mean 0.25 and data.std 0.5, this run has .*: give this run the same"):
        load_teacher(stored, digits, Normalizer(*constants))
