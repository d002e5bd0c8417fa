import math

import pytest
import torch

from strategies.cafedistill.features import FeatureWatch, warning


def test_dead_channels_are_those_that_are_zero_for_every_counted_sample():
    watch = FeatureWatch()
    watch.see([torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, -1.0], [0.0, 2.0]])])
    watch.keep()
    watch.see([torch.tensor([[0.0, 2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0]])])
    watch.keep()
    watch.see([torch.ones(1, 4), torch.ones(1, 2)])  # not counted
    assert watch.metrics() == {"dead_channels_1": 0.5, "dead_channels_2": 0.5}


def test_gradient_norm_is_the_largest_of_all_steps():
    watch = FeatureWatch()
    for gradient in ([3.0, 4.0], [0.0, 6.0], [1.0, 0.0]):
        watch.step(torch.tensor(gradient))
    assert watch.metrics() == {"gradient_norm": 6.0}


def test_watch_without_any_batch_says_nothing():
    watch = FeatureWatch()
    watch.keep()
    assert watch.metrics() == {}


def test_features_give_no_gradient_to_the_watch():
    watch, feature = FeatureWatch(), torch.ones(2, 3, requires_grad=True)
    watch.see([feature])
    watch.keep()
    assert not watch._largest[0].requires_grad


@pytest.mark.parametrize(
    "metrics", [{}, {"loss": 1.0}, {"dead_channels_1": 0.49, "gradient_norm": 19.9}, {"dead_channels_1": math.nan}]
)
def test_features_that_live_need_no_warning(metrics):
    assert warning(metrics) == ""


def test_warning_names_the_worst_exit():
    found = warning({"loss": 1.0, "dead_channels_1": 0.5625, "dead_channels_2": 0.3, "gradient_norm": 1.04})
    assert found.startswith(
        "features die on the clients: 56 % of the channels at exit 1 are zero for every sample, the largest gradient "
        "norm is 1.0; lower cafedistill.kd-weight"
    )


def test_a_steep_gradient_warns_before_the_channels_are_dead():
    found = warning({"dead_channels_1": 0.0, "dead_channels_2": 0.25, "gradient_norm": 78.04})
    assert "25 % of the channels at exit 2 are zero for every sample, the largest gradient norm is 78.0;" in found
