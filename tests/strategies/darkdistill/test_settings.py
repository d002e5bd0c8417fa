import pytest

from strategies.darkdistill.settings import DarkDistillSettings, DifficultySettings


def test_published_values_are_sound() -> None:
    assert DarkDistillSettings().problems() == []
    assert DarkDistillSettings(variant="parallel", batch=16, server_lr_decay=0.99).problems() == []


def test_every_mistake_is_told_at_once() -> None:
    config = DarkDistillSettings(variant="sideways", batch=1, temperature=0.0, rkd_angle=-1.0, server_lr_decay=1.5)
    told = config.problems()
    assert [line.split()[0] for line in told] == [
        "variant",
        "temperature",
        "rkd_angle",
        "batch",
        "server_lr_decay",
    ]


@pytest.mark.parametrize("value", [float("nan"), -0.5])
def test_nan_is_a_mistake_too(value: float) -> None:
    assert len(DarkDistillSettings(distill_lr=value).problems()) == 1


def test_noise_is_as_wide_as_the_number_of_classes_unless_told() -> None:
    assert DarkDistillSettings().noise_width(100) == 100
    assert DarkDistillSettings(noise_dim=7).noise_width(100) == 7


def test_noise_needs_a_sketch_to_be_added_to() -> None:
    assert DifficultySettings().problems() == []
    assert DifficultySettings(upload="sketch", epsilon=1.0).problems() == []
    assert len(DifficultySettings(epsilon=1.0).problems()) == 1
    assert len(DifficultySettings(upload="guess", bins=0, epsilon=-1.0).problems()) == 3
