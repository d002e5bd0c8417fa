from functools import partial

import pytest

from common.capacity import Capacity, lacking
from common.data import Normalizer
from common.errors import UserError
from common.exits import ThresholdPolicy
from common.networks import NetworkSpec, build
from common.storage.model_file import StoredModel
from strategies.distree.model.parts import STUDENTS, StudentCosts
from strategies.distree.model.students import build_students, students_spec
from strategies.distree.model.widths import Match, describe_matches, match_devices, match_widths
from strategies.distree.settings import DistrEESettings

TEACHER = NetworkSpec("wrn16", 10, (1, 8, 8), width=2)
BACKBONE = NetworkSpec("wrn16", 10, (1, 8, 8))
WIDEST = "the widest on offer"


def macs(width: int) -> float:
    return 100.0 * width**2


def lacks_memory(device: Capacity, width: int) -> str:
    return lacking(device, 4_000 * width**2, macs=0, bits=0)


@pytest.mark.parametrize(
    ("devices", "widths"),
    [
        # width 1 on the slowest takes 2 s: 400, 900, 1600 MACs need 4, 9, 16 times its speed
        ([Capacity(compute=100), Capacity(compute=399), Capacity(compute=400), Capacity(compute=1700)], [1, 1, 2, 4]),
        ([Capacity(compute=1), Capacity(compute=16, memory=36_000), Capacity(compute=16, memory=35_999)], [1, 3, 2]),
        ([Capacity(), Capacity(memory=4_000)], [4, 1]),
        ([Capacity(compute=5), Capacity()], [1, 4]),
    ],
)  # fmt: skip
def test_device_gets_the_widest_student_without_delay(devices: list[Capacity], widths: list[int]) -> None:
    assert [width for width, _ in match_widths(devices, macs, lacks_memory)] == widths


def test_match_states_why_a_student_is_not_wider() -> None:
    devices = [Capacity(compute=200), Capacity(compute=20_000), Capacity(memory=3e6)]
    assert match_widths(devices, macs, lacks_memory, widths=(30, 5, 10)) == [
        (5, "since width 10 would take 100000.00 ms an image, more than the slowest device's 25000.00 ms"),
        (30, WIDEST),
        (10, "since width 30 needs 3.6 MB of 3.0 MB"),
    ]


def test_device_too_small_for_any_student_is_refused() -> None:
    message = r"no student suits device 2 of distree\.devices, since width 1 needs 0\.0 MB of 0\.0 MB"
    with pytest.raises(UserError, match=message):
        match_widths([Capacity(), Capacity(memory=3_999)], macs, lacks_memory)


@pytest.fixture(scope="module")
def teacher() -> StoredModel:
    return StoredModel(
        build(TEACHER, seed=0), TEACHER, tuple("0123456789"), Normalizer((0.5,), (0.5,)), ThresholdPolicy(())
    )


def to_hold(device: Capacity, costs: StudentCosts, number: int) -> str:
    return lacking(device, costs.table(number).forward_memory(1), macs=0, bits=0)


def test_devices_are_matched_by_the_backbone_costs(teacher: StoredModel) -> None:
    made = partial(students_spec, TEACHER, BACKBONE, [range(128)], pooling=DistrEESettings().pooling)
    costs = [STUDENTS.costs(build_students(made([width]), 0)) for width in (1, 2)]
    narrow, wide = (STUDENTS.macs(cost, 1) for cost in costs)
    assert narrow > 1_600_000
    just, short = 1001 * wide / narrow, 999 * wide / narrow
    match = partial(match_devices, backbone=BACKBONE, teacher=teacher, lacks=to_hold)
    settings = DistrEESettings(students=3, devices=f"compute={just}; compute=1kFLOPS ;compute={short}")
    found = match(settings)
    assert [(m.device, m.width) for m in found] == [
        (f"compute={just}", 2), ("compute=1kFLOPS", 1), (f"compute={short}", 1),
    ]  # fmt: skip
    needs = costs[1].table(1).forward_memory(1)
    settings = DistrEESettings(students=2, devices=f"memory={needs}B;memory={needs - 1}B")
    assert [m.width for m in match(settings)] == [2, 1]
    assert match(DistrEESettings()) == ()


def test_widths_are_multiples_of_the_configured_one(teacher: StoredModel) -> None:
    settings = DistrEESettings(students=1, devices="memory=64GB")
    for name, width, widest in (("wrn16", 0, 4), ("wrn16", 2, 8), ("lenet", 0, 24)):
        backbone = NetworkSpec(name, 10, (1, 8, 8), width=width)
        assert match_devices(settings, backbone, teacher, to_hold) == (Match("memory=64GB", widest, WIDEST),)


def test_students_are_ordered_by_width_then_device() -> None:
    names = ("high", "memory=1GB", "low", "compute=1GFLOPS,memory=32MB", "compute=2GFLOPS,memory=32MB")
    wide, *equal = (Match(name, width, WIDEST) for name, width in zip(names, (3, 2, 2, 2, 2), strict=True))
    expected = [names[i] for i in (3, 4, 2, 1, 0)]
    assert [m.device for m in sorted([wide, *equal], key=lambda m: m.order)] == expected


def test_description_names_width_and_reason() -> None:
    found = (Match("low", 1, "since width 2 needs 9.0 MB of 8.0 MB"), Match("memory=1GB", 4, WIDEST))
    assert describe_matches(found) == [
        "student 1, for low: width 1, since width 2 needs 9.0 MB of 8.0 MB",
        "student 2, for memory=1GB: width 4, the widest on offer",
    ]
