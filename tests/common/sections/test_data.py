import pytest

from common.data import DataConfig
from common.sections.data import constants
from common.settings import read_section


def test_defaults_have_no_problems() -> None:
    assert read_section(DataConfig).problems == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "cifar11"}, "data.name is 'cifar11', must be one of digits, bbc_news, cifar10"),
        ({"name": "folder"}, "data.root"),
        ({"name": "text"}, "data.root"),
        ({"name": "devices", "image_size": 8}, "data.classes"),
        ({"name": "devices", "classes": ("cat", "dog")}, "data.image-size"),
        (
            {"name": "devices", "image_size": 8, "classes": ("a/b", "cat", "a-b")},
            "data.classes has 'a/b' and 'a-b', which would share a folder on a device",
        ),
        ({"root": "/some/images"}, "data.root is '/some/images', but the set 'digits' is embedded"),
        ({"name": "bbc_news", "root": "/some/texts"}, "bbc_news"),
        ({"channels": 2}, "data.channels is 2"),
        ({"length": 0}, "data.length"),
        ({"vocabulary": 1}, "data.vocabulary"),
        ({"name": "cifar10", "root": "images"}, "absolute"),
        ({"partitioner": "random"}, "data.partitioner"),
        ({"partitioner": "natural"}, "data.column"),
        ({"alpha": 0.0}, "data.alpha"),
        ({"alpha": float("nan")}, "data.alpha"),
        ({"shards_per_client": 0}, "data.shards-per-client"),
        ({"image_size": -1}, "data.image-size"),
        ({"image_size": 5000}, "data.image-size is 5000, must be at least 0 and at most 4096"),
        ({"validation": 1.0}, "data.validation is 1.0, must be at least 0 and below 1"),
        ({"client_test": 1.0}, "data.client-test is 1.0, must be at least 0 and below 1"),
        ({"limit": -1}, "data.limit"),
        ({"mean": "0.5;0.5"}, "data.mean"),
        ({"mean": "inf"}, "data.mean"),
        ({"std": "0.5,0"}, "data.std"),
    ],
)
def test_each_mistake_names_its_key(values: dict[str, object], words: str) -> None:
    problems = read_section(DataConfig, **values).problems
    assert len(problems) == 1
    assert words in problems[0]
    assert "\n" not in problems[0]


def test_all_mistakes_are_reported_at_once() -> None:
    assert len(read_section(DataConfig, name="x", partitioner="y", alpha=-1, limit=-1, std="-1").problems) == 5


def test_constants_are_read_from_comma_separated_text() -> None:
    assert constants("") == ()
    assert constants("0.1, 0.2,0.3") == (0.1, 0.2, 0.3)
