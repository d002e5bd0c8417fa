import pytest

from common.settings import read_section
from server.commands.preset import read_preset
from strategies.darkdistill.settings import DarkDistillSettings, DifficultySettings


def test_problems_accept_the_published_values() -> None:
    assert read_section(DarkDistillSettings).problems == []
    assert read_section(DarkDistillSettings, variant="parallel", batch=16, server_lr_decay=0.99).problems == []


def test_problems_list_every_mistake_by_its_key() -> None:
    wrong = {"variant": "sideways", "batch": 1, "temperature": 0.0, "rkd_angle": -1.0, "server_lr_decay": 1.5}
    assert read_section(DarkDistillSettings, **wrong).problems == [
        "darkdistill.variant is 'sideways', must be one of progressive, parallel",
        "darkdistill.server-lr-decay is 1.5, must be at least 0 and at most 1",
        "darkdistill.rkd-angle is -1.0, must be at least 0",
        "darkdistill.temperature is 0.0, must be above 0",
        "darkdistill.batch is 1, must be at least 2, or 0 for the variant's own",
    ]


def test_the_parallel_variant_has_generated_samples_only() -> None:
    assert read_section(DarkDistillSettings, source="validation").problems == []
    assert read_section(DarkDistillSettings, source="validation", variant="parallel").problems == [
        "darkdistill.source is 'validation', but the parallel variant has generated samples only: "
        "choose 'generated', or darkdistill.variant 'progressive'"
    ]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("difficulty_condition", False, "darkdistill.difficulty-condition is false"),
        ("exit_spread", 25.0, "darkdistill.exit-spread is 25.0"),
        ("difficulty_weight", 2.0, "darkdistill.difficulty-weight is 2.0"),
        ("matcher", "learned", "darkdistill.matcher is 'learned'"),
        ("temperature", 1.0, "darkdistill.temperature is 1.0"),
    ],
)
def test_the_parallel_variant_refuses_what_it_does_not_use(name: str, value: object, sentence: str) -> None:
    assert read_section(DarkDistillSettings, **{name: value}).problems == []
    (problem,) = read_section(DarkDistillSettings, variant="parallel", **{name: value}).problems
    assert problem.startswith(f"{sentence}, but the parallel variant does not use it: leave it at ")


def test_the_published_preset_is_the_published_step() -> None:
    values = {key.partition(".")[2]: value for key, value in read_preset("darkdistill-published").items()}
    published, ours = read_section(DarkDistillSettings, **values).section, DarkDistillSettings()
    assert published == ours.changed(distill_weight_decay=1e-3, generator_bounded=False)
    assert ours.distill_weight_decay == 0


def test_batch_and_decay_follow_from_the_variant_unless_given() -> None:
    progressive, parallel = (DarkDistillSettings(variant=name) for name in ("progressive", "parallel"))
    assert (progressive.batch_size, progressive.lr_decay) == (32, 1.0)
    assert (parallel.batch_size, parallel.lr_decay) == (16, 0.99)
    given = parallel.changed(batch=12, server_lr_decay=0.5)
    assert (given.batch_size, given.lr_decay) == (12, 0.5)


@pytest.mark.parametrize("value", [float("nan"), -0.5])
def test_problems_reject_nan_and_negative_values(value: float) -> None:
    assert len(read_section(DarkDistillSettings, distill_lr=value).problems) == 1


def test_noise_width_defaults_to_the_number_of_classes() -> None:
    assert DarkDistillSettings().noise_width(100) == 100
    assert DarkDistillSettings(noise_dim=7).noise_width(100) == 7


def test_epsilon_needs_a_sketch() -> None:
    assert read_section(DifficultySettings).problems == []
    assert read_section(DifficultySettings, upload="sketch", epsilon=1.0).problems == []
    assert read_section(DifficultySettings, epsilon=1.0).problems == [
        'difficulty.epsilon is 1.0, needs difficulty.upload "sketch": pairs get no noise'
    ]
    assert len(read_section(DifficultySettings, upload="guess", bins=0, epsilon=-1.0).problems) == 3
