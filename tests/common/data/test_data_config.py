import pytest

from common.data import DataConfig
from common.data.config import constants


def test_defaults_have_no_problems() -> None:
    assert DataConfig().problems() == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DataConfig(name="cifar11"), "data.name is 'cifar11', must be one of digits, bbc_news, cifar10"),
        (DataConfig(name="folder"), "data.root"),
        (DataConfig(name="text"), "data.root"),
        (DataConfig(name="devices", image_size=8), "data.classes"),
        (DataConfig(name="devices", classes=("cat", "dog")), "data.image-size"),
        (DataConfig(root="/some/images"), "data.root is '/some/images', but the set 'digits' is embedded"),
        (DataConfig(name="bbc_news", root="/some/texts"), "bbc_news"),
        (DataConfig(channels=2), "data.channels is 2"),
        (DataConfig(length=0), "data.length"),
        (DataConfig(vocabulary=1), "data.vocabulary"),
        (DataConfig(name="cifar10", root="images"), "absolute"),
        (DataConfig(partitioner="random"), "data.partitioner"),
        (DataConfig(partitioner="natural"), "data.column"),
        (DataConfig(alpha=0.0), "data.alpha"),
        (DataConfig(alpha=float("nan")), "data.alpha"),
        (DataConfig(shards_per_client=0), "data.shards-per-client"),
        (DataConfig(image_size=-1), "data.image-size"),
        (DataConfig(image_size=5000), "data.image-size is 5000, must be at most 4096"),
        (DataConfig(validation=1.0), "data.validation is 1.0, must be at least 0 and below 1"),
        (DataConfig(client_test=1.0), "data.client-test is 1.0, must be at least 0 and below 1"),
        (DataConfig(limit=-1), "data.limit"),
        (DataConfig(mean="0.5;0.5"), "data.mean"),
        (DataConfig(mean="inf"), "data.mean"),
        (DataConfig(std="0.5,0"), "data.std"),
    ],
)
def test_each_mistake_names_its_key(config: DataConfig, words: str) -> None:
    problems = config.problems()
    assert len(problems) == 1
    assert words in problems[0]
    assert "\n" not in problems[0]


def test_all_mistakes_are_reported_at_once() -> None:
    assert len(DataConfig(name="x", partitioner="y", alpha=-1, limit=-1, std="-1").problems()) == 5


def test_constants_are_read_from_comma_separated_text() -> None:
    assert constants("") == ()
    assert constants("0.1, 0.2,0.3") == (0.1, 0.2, 0.3)
