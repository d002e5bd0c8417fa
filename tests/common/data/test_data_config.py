import pytest

from common.data import DataConfig
from common.data.config import constants


def test_defaults_have_no_problems() -> None:
    assert DataConfig().problems() == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DataConfig(name="cifar11"), "cifar11"),
        (DataConfig(name="folder"), "data.root"),
        (DataConfig(name="text"), "data.root"),
        (DataConfig(root="/some/images"), "digits"),
        (DataConfig(name="bbc_news", root="/some/texts"), "bbc_news"),
        (DataConfig(length=0), "data.length"),
        (DataConfig(vocabulary=1), "data.vocabulary"),
        (DataConfig(name="cifar10", root="images"), "absolute"),
        (DataConfig(partitioner="random"), "data.partitioner"),
        (DataConfig(partitioner="natural"), "data.column"),
        (DataConfig(alpha=0.0), "data.alpha"),
        (DataConfig(alpha=float("nan")), "data.alpha"),
        (DataConfig(shards_per_client=0), "data.shards-per-client"),
        (DataConfig(image_size=-1), "data.image-size"),
        (DataConfig(validation=1.0), "data.validation"),
        (DataConfig(client_test=1.0), "data.client-test"),
        (DataConfig(limit=-1), "data.limit"),
        (DataConfig(mean="0.5;0.5"), "data.mean"),
        (DataConfig(mean="inf"), "data.mean"),
        (DataConfig(std="0.5,0"), "data.std"),
    ],
)
def test_each_mistake_is_named(config: DataConfig, words: str) -> None:
    problems = config.problems()
    assert len(problems) == 1
    assert words in problems[0]
    assert "\n" not in problems[0]


def test_all_mistakes_are_told_at_once() -> None:
    assert len(DataConfig(name="x", partitioner="y", alpha=-1, limit=-1, std="-1").problems()) == 5


def test_constants() -> None:
    assert constants("") == ()
    assert constants("0.1, 0.2,0.3") == (0.1, 0.2, 0.3)
