from typing import get_args

import pytest

from common.capacity import Capacity
from common.errors import UserError
from common.settings import read_section
from strategies.distree.exits.policies import RULES
from strategies.distree.settings import DistrEESettings, read_device


def test_devices_are_declared_like_node_capacities() -> None:
    settings = DistrEESettings(students=3, devices="low; memory=512MB,compute=20GFLOPS ;bandwidth=10Mbps")
    assert [read_device(text) for text in settings.declared] == [
        Capacity(64e6, 1e9), Capacity(512e6, 20e9), Capacity(bandwidth=10e6),
    ]  # fmt: skip
    assert DistrEESettings().declared == ()


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("low", "distree.devices names 1 devices, distree.students is 2: name one device per student"),
        ("low;low;low", "distree.devices names 3 devices, distree.students is 2: name one device per student"),
        ("low;", "distree.devices: '': write low, medium, high, or KEY=VALUE with memory, compute, bandwidth, such as"),
        ("low;huge", "distree.devices: 'huge': write low, medium, high, or KEY=VALUE with memory, compute, bandwidth"),
        ("low;depth=2", "distree.devices: 'depth=2': write low, medium, high, or KEY=VALUE with memory, compute, ba"),
        ("low;memory=1GB,cut=2", "distree.devices: 'memory=1GB,cut=2': write low, medium, high, or KEY=VALUE with"),
        ("low;memory=much", "distree.devices: memory='much' cannot be read: write a number with a unit"),
        ("auto;low", "distree.devices: 'auto' would measure the server: write what the device has"),
    ],
)
def test_invalid_devices_are_refused(devices: str, message: str) -> None:
    (problem,) = read_section(DistrEESettings, devices=devices).problems
    assert problem.startswith(message)


def test_widths_and_devices_exclude_each_other() -> None:
    (problem,) = read_section(DistrEESettings, devices="low;high", widths=(1, 2)).problems
    assert problem.startswith("distree.widths is 1,2, but distree.devices decides the widths: leave one")
    with pytest.raises(UserError, match="would measure the server"):
        read_device("auto")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 1.5}, "distree.alpha is 1.5, must be at least 0 and at most 1"),
        ({"kept_edges": 2.0}, "distree.kept-edges is 2.0, must be at least 1e-06 and at most 1"),
        ({"widths": (1, 0)}, "distree.widths is 1,0, every width must be at least 1"),
        ({"exit_weights": (2.5, -1.0)}, "distree.exit-weights is 2.5,-1, every weight must be at least 0"),
        ({"exit_weights": (0.0, 0.0)}, "distree.exit-weights is 0,0, the weights must not all be 0"),
        ({"public": "nothing"}, "distree.public is 'nothing': data.name is 'nothing', must be one of digits"),
        (
            {"public": "cifar10:photos"},
            "distree.public is 'cifar10:photos': data.root is 'photos', must be an absolute",
        ),
        ({"without_teacher": "public"}, "distree.without-teacher is 'public': set distree.public, such as"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    (problem,) = read_section(DistrEESettings, **values).problems
    assert problem.startswith(message)


def test_every_exit_rule_has_a_policy() -> None:
    assert get_args(DistrEESettings.model_fields["exit_rule"].annotation) == tuple(RULES)
