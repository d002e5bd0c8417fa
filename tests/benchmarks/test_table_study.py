import math

import pytest

from benchmarks.tables import study


def runs(*means: float, samples: int = 100) -> dict[int, study.Cell]:
    histogram = [samples - 10, 10]
    accuracy = [{"mean": mean, "exits": [mean], "calibrated": {"exit_histogram": histogram}} for mean in means]
    return {seed: {"accuracy": value, "client_accuracy": {}} for seed, value in enumerate(accuracy, start=1)}


def test_interval_is_students_over_paired_seeds() -> None:
    mean, low, high = study.interval(runs(0.51, 0.52, 0.53, 0.9), runs(0.5, 0.5, 0.5), study.mean_of_exits)
    half = 4.302653 * 0.01 / math.sqrt(3)  # two degrees of freedom; the fourth run has no pair
    assert (mean, low, high) == pytest.approx((0.02, 0.02 - half, 0.02 + half), rel=1e-5)
    with pytest.raises(ValueError, match="two shared seeds"):
        study.interval(runs(0.5), runs(0.5), study.mean_of_exits)


def test_sample_error_is_binomial() -> None:
    found = runs(0.8, 1.0, samples=400)
    assert study.sample_count(found[1]) == 400
    assert study.sample_error(found, study.mean_of_exits) == pytest.approx(math.sqrt(0.9 * 0.1 / 400))


def test_interval_that_knows_the_number_of_test_images() -> None:
    found, base = runs(0.91, 0.92, 0.93, samples=400), runs(0.9, 0.9, 0.9, samples=400)
    mean, low, high = study.interval_with_samples(found, base, study.mean_of_exits)
    of_seeds, of_samples = 4.302653 * 0.01 / math.sqrt(3), 1.959964 * math.sqrt(2 * 0.9 * 0.1 / 400)
    half = math.sqrt(of_seeds**2 + of_samples**2)
    assert (mean, low, high) == pytest.approx((0.02, 0.02 - half, 0.02 + half), rel=1e-5)


def test_mean_of_the_last_evaluations_counts_rounds_as_numbers() -> None:
    cell = {"run": "a-s1", "means": {"2": 0.1, "8": 0.3, "10": 0.5}}
    assert study.last_means(cell, 2) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="a-s1 has 3 evaluations, not 4"):
        study.last_means(cell, 4)
