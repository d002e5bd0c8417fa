from typing import Any

import pytest
import torch

from common.capacity import ROUND_SECONDS, Capacity, Choice, parse_capacity
from common.config import RunConfig, Value, load_config
from common.errors import UserError
from common.networks import NetworkSpec, build, cost_table
from strategies.distree.model.parts import LEAN, STUDENTS, StudentCosts
from strategies.distree.model.stored import exit_macs
from strategies.distree.model.students import Students, build_students, students_spec
from strategies.registry import all_settings

IMAGE = (3, 8, 8)
TEACHER = NetworkSpec("wrn16", 4, IMAGE, width=2)
BACKBONE = NetworkSpec("wrn16", 4, IMAGE, exits=(1, 3, 7))
PARTITION = ((0, 3, 5, 9), (1, 7), (2, 4, 6))
SAMPLES, BATCH = 100, 8


def config(**changes: Value) -> RunConfig:
    flat: dict[str, Value] = {"train.batch-size": BATCH, "distree.students": 3}
    return load_config(
        flat | {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}, all_settings()
    )


@pytest.fixture(scope="module")
def whole() -> Students:
    """Return two narrow students and a wide one."""
    return build_students(students_spec(TEACHER, BACKBONE, PARTITION, (1, 1, 2)), seed=3)


@pytest.fixture(scope="module")
def costs(whole: Students) -> StudentCosts:
    return STUDENTS.costs(whole)


def choose(costs: StudentCosts, client: int = 0, changes: dict[str, Any] | None = None, **capacity: float) -> Choice:
    return STUDENTS.choose(Capacity(**capacity), costs, config(**(changes or {})), SAMPLES, client)  # type: ignore[arg-type]


def test_device_trains_its_student_columns_and_bias(whole: Students) -> None:
    part = STUDENTS.take(whole, 2)
    state, everything = part.state_dict(), whole.state_dict()
    assert all(torch.equal(value, everything[key]) for key, value in state.items())
    assert {key.split(".")[1] for key in state if key.startswith("networks.")} == {"2"}
    frozen = {key for key, parameter in part.named_parameters() if not parameter.requires_grad}
    assert frozen == {"classifier.blocks.1", "classifier.blocks.3"}
    with torch.no_grad():
        part.classifier.bias += 1
    assert not torch.equal(part.classifier.bias, whole.classifier.bias)
    for number in (0, 4):
        with pytest.raises(UserError, match=rf"student {number}: this run has the students 1\.\.3"):
            STUDENTS.take(whole, number)


def test_costs_equal_the_networks_and_survive_json(whole: Students, costs: StudentCosts) -> None:
    assert STUDENTS.read_costs(costs.to_json()) == costs
    assert list(STUDENTS.numbers(costs, config())) == [1, 2, 3]
    for number, student in whole.numbered():
        part = STUDENTS.take(whole, number)
        assert STUDENTS.parameters(costs, number) == sum(p.numel() for p in part.parameters())
        assert STUDENTS.exit_macs(costs, number) == exit_macs(student)
        assert STUDENTS.macs(costs, number) == exit_macs(student)[-1]
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        held = sum(p.numel() for p in part.parameters() if not p.requires_grad)
        activations = costs.training_memory(number, 1) - costs.training_memory(number, 0)
        assert costs.training_memory(number, 5) == 4 * (3 * trained + held) + 5 * activations
        assert activations == cost_table(student).cut_training_memory(7, 1) - cost_table(student).cut_training_memory(
            7, 0
        )


def test_students_that_differ_only_in_filters_are_alike(costs: StudentCosts) -> None:
    assert costs.alike == ((1, 2), (3,))


def test_teacher_memory_is_weights_and_two_neighbouring_features(costs: StudentCosts) -> None:
    network, kept = build(TEACHER, seed=0).eval(), []
    x = network.example(1)
    for unit in network.units.values():
        before, x = x, unit(x)
        kept.append(x.numel() + (before.numel() if kept else 0))
    weights = sum(p.numel() for p in network.parameters())
    assert costs.teacher_memory(0) == 4 * weights
    assert costs.teacher_memory(3) == 4 * weights + 3 * 4 * max(kept)


def test_device_takes_the_dearest_student_it_can_train(costs: StudentCosts) -> None:
    lean = {"distree__without_teacher": "public", "distree__public": "digits"}
    assert choose(costs) == Choice(3, "no limit declared")
    needs = [costs.training_memory(number, BATCH) for number in (1, 2, 3)]
    assert choose(costs, changes=lean, memory=needs[2]).part == 3
    assert choose(costs, changes=lean, memory=needs[2] - 1).part == 1
    assert choose(costs, changes=lean, memory=needs[2] - 1, client=1).part == 2
    assert choose(costs, changes=lean, memory=max(needs[:2])).part == 1
    small = choose(costs, changes=lean, memory=max(needs[:2]) - 1)
    size = f"{max(needs[:2]) / 1e6:.1f} MB"
    assert small == Choice(0, f"nothing fits: student 1 needs {size} of {size}")
    just = 2 * 3 * STUDENTS.macs(costs, 3) * SAMPLES / ROUND_SECONDS
    assert choose(costs, compute=just).part == 3
    assert choose(costs, compute=0.99 * just).part == 1
    link = 64 * STUDENTS.parameters(costs, 3) / ROUND_SECONDS
    assert choose(costs, bandwidth=link).part == 3
    assert choose(costs, bandwidth=0.98 * link) == Choice(1, "student 3 would take 61 s on the link, more than 60 s")


def test_clients_take_turns_among_alike_students(costs: StudentCosts) -> None:
    slow = 2 * 3 * max(STUDENTS.macs(costs, number) for number in (1, 2)) * SAMPLES / ROUND_SECONDS
    assert [choose(costs, client, compute=slow).part for client in range(5)] == [1, 2, 1, 2, 1]


def test_matched_students_are_taken_by_their_devices() -> None:
    """Two students of equal width for unequal memory, and a wide one; every device could train each of them."""
    devices = ("memory=1GB,compute=1TFLOPS", "memory=2GB,compute=1TFLOPS", "memory=2GB,compute=2TFLOPS")
    spec = students_spec(TEACHER, BACKBONE, PARTITION, (1, 1, 2), devices)
    costs = STUDENTS.costs(build_students(spec, seed=3))
    assert STUDENTS.read_costs(costs.to_json()) == costs
    assert costs.devices == devices
    assert costs.alike == ((1,), (2,), (3,))
    for client in (0, 1):
        for number, device in enumerate(devices, start=1):
            capacity = parse_capacity(dict(pair.split("=") for pair in device.split(",")))
            assert STUDENTS.choose(capacity, costs, config(), SAMPLES, client).part == number
    assert choose(costs, memory=2e9, compute=1.9e12) == Choice(
        2, "student 3 is for devices of at least memory=2GB,compute=2TFLOPS"
    )
    assert choose(costs).part == 3
    assert choose(costs, memory=3e9).part == 3
    weaker = choose(costs, memory=0.5e9)
    assert weaker == Choice(1, "student 2 is for devices of at least memory=2GB,compute=1TFLOPS")
    assert choose(costs, memory=1000).part == 0


def test_students_for_equal_devices_are_alike() -> None:
    spec = students_spec(TEACHER, BACKBONE, PARTITION, (1, 1, 1), ("low", "memory=64MB,compute=1GFLOPS", "medium"))
    assert STUDENTS.costs(build_students(spec, seed=3)).alike == ((1, 2), (3,))


def test_declared_student_overrides_the_choice(costs: StudentCosts) -> None:
    for number in (1, 2, 3):
        found = STUDENTS.choose(parse_capacity({"student": number}), costs, config(), SAMPLES, 4)
        assert found == Choice(number, f"declared student {number}")
    assert choose(costs, student=4) == Choice(0, "declared student 4, but this run offers student 1, 2, 3")
    assert choose(costs, cut=2) == Choice(0, "declared cut 2, but this run needs a student: declare student= too")


def test_device_too_small_for_the_teacher_is_refused_or_lean(whole: Students) -> None:
    large = students_spec(NetworkSpec("wrn16", 4, IMAGE, width=8), BACKBONE, PARTITION[:1])
    costs = STUDENTS.costs(build_students(large, seed=3))
    needs = costs.teacher_memory(BATCH)
    assert choose(costs, memory=needs) == Choice(1, "no limit declared")
    refused = choose(costs, memory=needs - 1)
    assert refused.part == 0
    assert refused.reason.startswith(f"the teacher needs {needs / 1e6:.1f} MB of {(needs - 1) / 1e6:.1f} MB; ")
    lean = choose(costs, changes={"distree__without_teacher": "public", "distree__public": "digits"}, memory=needs - 1)
    assert (lean.part, lean.values.get(LEAN)) == (1, True)
    assert lean.reason.endswith("so it learns from public images")
