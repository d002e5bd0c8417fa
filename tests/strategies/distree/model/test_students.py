import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.networks import NetworkSpec, build, cost_table, without_early_exits
from strategies.distree.model.students import (
    Student,
    StudentsSpec,
    blocks_of,
    build_students,
    students_spec,
    teacher_targets,
)

TEACHER = NetworkSpec("wrn16", 10, (3, 8, 8), width=2)
BACKBONE = NetworkSpec("wrn16", 10, (3, 8, 8))
PARTS = ((0, 3, 5), (1, 7))
SPEC = students_spec(TEACHER, BACKBONE, PARTS)
IMAGES = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_student_has_as_many_features_as_filters() -> None:
    assert [backbone.num_classes for backbone in SPEC.backbones] == [3, 2]
    assert (SPEC.num_classes, list(SPEC.numbers)) == (10, [1, 2])


def test_students_may_have_different_widths() -> None:
    spec = students_spec(TEACHER, BACKBONE, PARTS, widths=(1, 3))
    assert [backbone.width for backbone in spec.backbones] == [1, 3]
    assert build_students(spec, seed=1).student(2).architecture.widths[-1] == 3 * 64
    with pytest.raises(UserError, match="3 widths for 2 students"):
        students_spec(TEACHER, BACKBONE, PARTS, widths=(1, 2, 3))


def test_students_divide_the_maps_that_their_exits_see() -> None:
    spec = students_spec(TEACHER, BACKBONE, PARTS, pooling="squares")
    assert [backbone.pooling for backbone in spec.backbones] == ["squares", "squares"]
    heads = build_students(spec, seed=1).student(1).exits
    assert [heads[str(p)].linear.in_features for p in range(1, 8)] == [256, 256, 256, 128, 128, 64, 64]


def test_students_start_without_pretraining_and_ensemble() -> None:
    spec = students_spec(replace(TEACHER, pretrained="t"), replace(BACKBONE, pretrained="b", ensemble=0.2), PARTS)
    assert (spec.teacher.pretrained, *(b.pretrained for b in spec.backbones)) == ("", "", "")
    assert [b.ensemble for b in spec.backbones] == [0.0, 0.0]


def test_spec_survives_json() -> None:
    spec = students_spec(TEACHER, replace(BACKBONE, exits=(2, 7)), PARTS, widths=(1, 2))
    assert StudentsSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: v.pop("partition"), "incomplete description of students"),
        (lambda v: v.update(partition=3), "incomplete description of students"),
        (lambda v: v["teacher"].update(colour=1), "unknown network field colour"),
        (lambda v: v["backbones"].pop(), "do not fit"),
        (lambda v: v["partition"][0].__setitem__(0, 7), "overlap"),
    ],
)
def test_damaged_spec_is_refused(damage: Callable[[dict[str, Any]], None], message: str) -> None:
    values = json.loads(SPEC.to_json())
    damage(values)
    with pytest.raises(UserError, match=message):
        StudentsSpec.from_json(json.dumps(values))


@pytest.mark.parametrize("parts", [((0, 1), (1, 2)), ((0, 0, 1), (2, 3)), ((0, 1), ())])
def test_parts_must_be_disjoint_and_not_empty(parts: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(UserError, match="partition the teacher again"):
        students_spec(TEACHER, BACKBONE, parts)


def test_students_need_the_same_number_of_exits() -> None:
    unequal = replace(SPEC, backbones=(SPEC.backbones[0], replace(SPEC.backbones[1], exits=(3, 7))))
    with pytest.raises(UserError, match="the same number of exits"):
        build_students(unequal, seed=1)


def test_same_seed_gives_the_same_students() -> None:
    first, again, other = (build_students(SPEC, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    weight = "networks.1.units.0.weight"
    assert not torch.equal(first[weight], other[weight])
    assert not torch.equal(first[weight], first["networks.2.units.0.weight"])


@torch.no_grad()
def test_features_are_not_negative_and_fit_the_part() -> None:
    students = build_students(SPEC, seed=1)
    found = students.features(IMAGES)
    assert {k: [tuple(f.shape) for f in per_exit] for k, per_exit in found.items()} == {
        1: [(9, 3)] * 7, 2: [(9, 2)] * 7,
    }  # fmt: skip
    for f in (f for per_exit in found.values() for f in per_exit):
        assert f.min() >= 0


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_few_features_start_silent(seed: int) -> None:
    """A feature that is 0 for all images gets no gradient."""
    spec = students_spec(TEACHER, BACKBONE, (range(60), range(60, 120)))
    for per_exit in build_students(spec, seed).features(IMAGES).values():
        silent = torch.stack([(feature.amax(0) == 0).float().mean() for feature in per_exit])
        assert silent.max() < 0.05


@torch.no_grad()
def test_student_rectifies_the_network_outputs() -> None:
    network = build(SPEC.backbones[0], seed=4)
    for feature, output in zip(Student.of(network)(IMAGES), network(IMAGES), strict=True):
        assert torch.equal(feature, output.relu())


@torch.no_grad()
def test_students_at_one_exit_give_the_joint_logits() -> None:
    students = build_students(SPEC, seed=1).eval()
    features, logits = students.features(IMAGES), students(IMAGES)
    assert len(logits) == students.num_exits == 7
    for j, z in enumerate(logits):
        stopped = {k: torch.full((9,), j) for k in features}
        torch.testing.assert_close(students.classifier.combine({k: f[j] for k, f in features.items()}, stopped), z)


def test_infer_returns_features_of_the_exit_of_each_sample() -> None:
    student = build_students(SPEC, seed=1).student(1).eval()
    planned = torch.tensor([0, 6, 2, 2, 5, 0, 6, 3, 1])
    waiting, asked = planned, []

    def leaves(exit_index: int, features: torch.Tensor) -> torch.Tensor:
        nonlocal waiting
        asked.append((exit_index, len(features)))
        gone = waiting == exit_index
        waiting = waiting[~gone]
        return gone

    with torch.no_grad():
        every = torch.stack(student(IMAGES))
    found = student.infer(IMAGES, leaves)
    assert found.exits.tolist() == planned.tolist()
    torch.testing.assert_close(found.logits, every[planned, torch.arange(9)])
    assert asked == [(0, 9), (1, 7), (2, 6), (3, 4), (4, 3), (5, 3)]


@torch.no_grad()
def test_targets_are_clipped_last_feature_and_logits() -> None:
    teacher = build(without_early_exits(NetworkSpec("vit_small32", 10, (3, 32, 32))), seed=1).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features, logits = teacher_targets(teacher, x)
    outputs = teacher.forward_exits(x)
    assert outputs.features[-1].min() < 0
    assert torch.equal(features, outputs.features[-1].relu())
    assert torch.equal(logits, outputs.logits[-1])


def test_blocks_keep_the_order_of_each_part() -> None:
    features = torch.tensor([[0.0, 1, 2, 3, 4], [10, 11, 12, 13, 14]])
    blocks = blocks_of(features, ((0, 3), (1, 2)))
    assert {k: block.tolist() for k, block in blocks.items()} == {1: [[0, 3], [10, 13]], 2: [[1, 2], [11, 12]]}


@pytest.fixture(scope="module")
def published() -> NetworkSpec:
    """A WRN-16-1 student of 49 filters, like NoNN's two students of a WRN-40-4."""
    teacher, backbone = NetworkSpec("wrn16", 10, (3, 32, 32), width=4), NetworkSpec("wrn16", 10, (3, 32, 32))
    return students_spec(teacher, backbone, (range(49), range(49, 97))).backbones[0]


def test_macs_of_each_exit_of_a_wrn16_student(published: NetworkSpec) -> None:
    costs = cost_table(Student.of(build(published, seed=0)))
    macs = [costs.macs(index) for index in range(7)]
    assert macs[-1] == pytest.approx(26.7e6, rel=2e-3)
    shares = [100 * m / macs[-1] for m in macs]
    assert shares == pytest.approx([1.7, 19.4, 37.1, 50.8, 68.5, 82.3, 100.0], abs=0.1)


def test_six_added_exits_cost_little(published: NetworkSpec) -> None:
    """Of the mean over the map; the paper reports 5.88 % of the parameters and 0.88 % of the FLOPs."""
    costs = cost_table(Student.of(build(published, seed=0)))
    plain = cost_table(build(without_early_exits(published), seed=0))
    parameters = costs.cut_parameters(7) - plain.cut_parameters(7)
    macs = costs.cut_macs(7) - plain.cut_macs(7)
    widths = (16, 16, 16, 32, 32, 64)
    assert parameters == sum(2 * width + 49 * width + 49 for width in widths) == 9_270
    assert macs == sum(49 * width for width in widths) == 8_624
    assert parameters / plain.cut_parameters(7) == pytest.approx(0.0522, abs=1e-4)
    assert macs / plain.cut_macs(7) == pytest.approx(0.00032, abs=1e-5)


def test_squares_and_a_layer_to_ten_classes_add_the_papers_parameters() -> None:
    """5.88 % of 186,006, the only reading of "average pooling" that gives the paper's figure without a free size."""
    network = build(NetworkSpec("wrn16", 10, (3, 32, 32), pooling="squares"), seed=0)
    *added, last = (sum(p.numel() for p in head.linear.parameters()) for head in network.exits.values())
    trunk = sum(p.numel() for p in network.units.parameters())
    whole = trunk + sum(p.numel() for p in network.exits["7"].norm.parameters()) + last + sum(added)
    assert (sum(added), whole) == (10_940, 186_006)
    assert sum(added) / whole == pytest.approx(0.0588, abs=5e-5)
