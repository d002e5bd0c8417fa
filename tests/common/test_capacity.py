from dataclasses import replace

import pytest
import torch

from common.capacity import (
    Capacity,
    Choice,
    choose_depth,
    mix_depth,
    parse_capacity,
    parse_mix,
    read_node,
)
from common.errors import UserError
from common.networks.cost import CostTable, UnitCost

# three tiers of one unit and one exit each; a tier costs 1, 2 or 3 times (1000 parameters, 1 M MAC, 1 kB a sample)
UNIT = UnitCost(parameters=900, macs=900_000, activation_bytes=10, training_bytes=900)
EXIT = UnitCost(parameters=100, macs=100_000, activation_bytes=1, training_bytes=100)
COSTS = CostTable((UNIT,) * 3, dict.fromkeys((1, 2, 3), EXIT), (1, 2, 3))
BATCH = 10


def memory(depth: int) -> float:
    return depth * (3 * 4 * 1000 + BATCH * 1000)  # weights, gradients and momentum; activations


@pytest.mark.parametrize(
    ("node", "capacity"),
    [
        ({}, Capacity()),
        ({"memory": "512MB"}, Capacity(memory=512e6)),
        ({"memory": "1.5GiB", "compute": "2 GFLOPS"}, Capacity(memory=1.5 * 1024**3, compute=2e9)),
        ({"memory": 4096}, Capacity(memory=4096)),
        ({"compute": "300kflops"}, Capacity(compute=300e3)),
        ({"bandwidth": "10Mbps"}, Capacity(bandwidth=10e6)),
        ({"memory": "2t"}, Capacity(memory=2e12)),
        ({"depth": 2, "memory": "broken"}, Capacity(depth=2)),
        ({"depth": "3"}, Capacity(depth=3)),
        ({"capacity": "medium"}, Capacity(memory=512e6, compute=20e9)),
    ],
)
def test_declarations_are_read(node, capacity):
    assert parse_capacity(node) == capacity


@pytest.mark.parametrize("value", ["lots", "-5MB", "0", "1.2.3GB", "", "5 FLOPS", "MB"])
def test_a_quantity_that_cannot_be_read_is_told(value):
    with pytest.raises(UserError, match=r"memory=.*cannot be read: write a number with a unit"):
        parse_capacity({"memory": value})


@pytest.mark.parametrize("declared", [{"memory": "512"}, {"compute": 2}, {"bandwidth": "10 bps"}])
def test_number_without_its_prefix_is_refused(declared):
    with pytest.raises(UserError, match="less than any device has: is a prefix missing"):
        parse_capacity(declared)


@pytest.mark.parametrize("value", ["deep", 2.5, ""])
def test_a_depth_is_a_whole_number(value):
    with pytest.raises(UserError, match="is not a whole number"):
        parse_capacity({"depth": value})


def test_auto_probes_this_machine():
    threads = torch.get_num_threads()
    capacity = parse_capacity({"capacity": "auto"})
    assert capacity.depth is None
    assert capacity.memory > 1e6
    assert capacity.compute > 1e6
    assert torch.get_num_threads() == threads


def test_without_limits_everything_fits():
    assert choose_depth(Capacity(), COSTS, BATCH, 100) == Choice(3, "the whole network fits")


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_memory_is_a_bound_that_may_be_reached(depth):
    assert choose_depth(Capacity(memory=memory(depth)), COSTS, BATCH, 100).part == depth
    assert choose_depth(Capacity(memory=memory(depth) - 1), COSTS, BATCH, 100).part == depth - 1


def test_the_reason_says_what_the_next_tier_needs():
    choice = choose_depth(Capacity(memory=50e3), COSTS, BATCH, 100)
    assert choice == Choice(2, "tier 3 needs 0.1 MB of 0.1 MB")
    choice = choose_depth(Capacity(memory=1e6 / 1e3), COSTS, BATCH, 100)
    assert choice.part == 0
    assert choice.reason.startswith("nothing fits: tier 1 needs 0.0 MB")


def test_compute_binds_by_the_seconds_of_an_epoch():
    # 3 passes of 2 operations per MAC: tier d takes 6e6 * d * samples / speed seconds, and 60 are allowed
    speed = 6e6 * 2 * 100 / 60
    assert choose_depth(Capacity(compute=speed), COSTS, BATCH, 100).part == 2
    assert choose_depth(Capacity(compute=speed * 0.99), COSTS, BATCH, 100).part == 1
    assert choose_depth(Capacity(compute=speed), COSTS, BATCH, 101) == Choice(
        1, "tier 2 would take 61 s an epoch, more than 60 s"
    )


def test_both_limits_bind():
    assert choose_depth(Capacity(memory=memory(3), compute=6e6 * 100 / 60), COSTS, BATCH, 100).part == 1


def test_a_declared_depth_overrides_but_must_exist():
    assert choose_depth(Capacity(memory=1, depth=3), COSTS, BATCH, 100) == Choice(3, "declared depth 3")
    for depth in (0, 4, -1):
        assert choose_depth(Capacity(depth=depth), COSTS, BATCH, 100) == Choice(
            0, f"declared depth {depth}, but this run offers depth 1, 2, 3"
        )


def counts(mix: str, count: int, tiers: int) -> list[int]:
    depths = [mix_depth(mix, client, count, tiers) for client in range(count)]
    assert depths == sorted(depths)
    return [depths.count(depth) for depth in range(1, tiers + 1)]


@pytest.mark.parametrize(
    ("mix", "count", "expected"),
    [
        ("0.25,0.25,0.25,0.25", 20, [5, 5, 5, 5]),
        ("small", 100, [40, 30, 20, 10]),
        ("large", 100, [10, 20, 30, 40]),
        ("1/1/2/0", 8, [2, 2, 4, 0]),
        ("0,0,0,1", 3, [0, 0, 0, 3]),
        ("1,0,0,0", 3, [3, 0, 0, 0]),
        ("0.1,0.1,0.1,0.7", 7, [1, 0, 1, 5]),
    ],
)
def test_a_mix_deals_depths_to_consecutive_clients(mix, count, expected):
    assert counts(mix, count, 4) == expected


def test_shares_are_scaled_to_one():
    assert parse_mix("2,6", 2) == [0.25, 0.75]


@pytest.mark.parametrize("mix", ["half", "0.5", "0.5,0.5,0", "-1,2", "0,0", ""])
def test_an_impossible_mix_is_told(mix):
    with pytest.raises(UserError, match=r"clients\.mix"):
        parse_mix(mix, 2)


def test_a_slow_link_keeps_a_client_shallow():
    link = 64 * COSTS.tier_parameters(2) / 60  # tier 2 there and back, fp32, in just a minute
    assert choose_depth(Capacity(bandwidth=link), COSTS, BATCH, 100).part == 2
    assert choose_depth(Capacity(bandwidth=link * 0.99), COSTS, BATCH, 100).part == 1


def test_frozen_weights_travel_one_way():
    frozen = CostTable(
        units=tuple(replace(unit, frozen_parameters=900) for unit in COSTS.units), exits=COSTS.exits, tiers=COSTS.tiers
    )
    assert [frozen.tier_uploads(depth) for depth in (1, 2)] == [COSTS.tier_parameters(d) - 900 * d for d in (1, 2)]
    link = 32 * (frozen.tier_parameters(2) + frozen.tier_uploads(2)) / 59
    assert choose_depth(Capacity(bandwidth=link), frozen, BATCH, 100).part == 2
    assert choose_depth(Capacity(bandwidth=link * 0.98), frozen, BATCH, 100).part == 1


def test_a_capacity_that_has_no_such_name_is_refused():
    with pytest.raises(UserError, match="write capacity=NAME of auto, low, medium, high, or memory"):
        parse_capacity({"capacity": "Auto"})


def test_what_a_user_types_stands_for_a_node_configuration():
    assert read_node("low") == {"memory": "64MB", "compute": "1GFLOPS"}
    assert read_node(" memory=1GB , depth = 2") == {"memory": "1GB", "depth": "2"}
    told = "'depth=2': write low, medium, high, or KEY=VALUE with memory, compute, such as memory=512MB"
    with pytest.raises(UserError, match=told):
        read_node("depth=2", ("memory", "compute"))


def test_a_capacity_covers_another_that_has_no_more_of_anything():
    assert Capacity(memory=2, bandwidth=3).limits == (2, float("inf"), 3)
    assert Capacity(memory=2, compute=2).covers(Capacity(memory=2, compute=1))
    assert not Capacity(memory=2, compute=2).covers(Capacity(memory=1, compute=3))
    assert Capacity().covers(Capacity(memory=1e12))
    assert not Capacity(memory=1e12).covers(Capacity())
