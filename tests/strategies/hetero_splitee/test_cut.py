"""Which cut a device takes."""

import pytest

from common.capacity import ROUND_SECONDS, Capacity, choose_depth, parse_capacity
from common.config import load_config
from common.errors import UserError
from common.networks import build, without_early_exits
from common.networks.cost import cost_table
from strategies.hetero_splitee.cut import BYTES, CUTS
from strategies.hetero_splitee.settings import SplitEESettings
from tests.strategies.hetero_splitee.conftest import SLIM

SAMPLES = 50


@pytest.fixture
def slim():
    """As in a run: without exits before the last one."""
    return build(without_early_exits(SLIM), seed=1)


@pytest.fixture
def costs(slim):
    return cost_table(slim)


def config(**changes):
    flat = {f"splitee.{key.replace('_', '-')}": value for key, value in changes.items()}
    return load_config({"train.batch-size": 8, **flat}, [SplitEESettings])


def choose(costs, capacity=None, **changes):
    choice = CUTS.choose(capacity or Capacity(), costs, config(**changes), SAMPLES)
    return choice.part, choice.reason


def bits(costs, cut, size=4):
    """What a device sends in an epoch, in bits."""
    return 8 * costs.units[cut - 1].activation_bytes / 4 * size * SAMPLES


def test_all_cuts_with_layers_on_both_sides_are_offered(costs, slim):
    assert list(CUTS.numbers(costs, config())) == [1, 2, 3, 4]
    assert list(CUTS.numbers(costs, config(cuts="1,3"))) == [1, 3]
    for cut in (0, 5, 6):
        with pytest.raises(UserError, match=rf"cut, is {cut}: choose one of 1\.\.4"):
            CUTS.take(slim, cut)


def test_part_has_its_units_one_exit_and_their_costs(costs, slim):
    for cut in (1, 2, 3, 4):
        part = CUTS.take(slim, cut)
        assert (list(part.units), list(part.exits)) == ([str(unit) for unit in range(cut)], [str(cut)])
        assert CUTS.parameters(costs, cut) == sum(p.numel() for unit in part.units.values() for p in unit.parameters())
        assert CUTS.macs(costs, cut) == sum(unit.macs for unit in costs.units[:cut])
        local, whole = CUTS.exit_macs(costs, cut)
        assert local == CUTS.macs(costs, cut) < whole == CUTS.exit_macs(costs, 1)[1]


def test_deepest_offered_cut_is_taken_without_limits(costs):
    assert choose(costs) == (4, "no limit declared")
    assert choose(costs, cuts="1,3") == (3, "no limit declared")
    assert choose(costs, Capacity(memory=1e12)) == (4, "the deepest cut fits")


def test_memory_limit_is_exact_to_the_byte(costs):
    needs = [costs.cut_training_memory(cut, 8) for cut in (1, 2, 3, 4)]
    told = [f"cut {cut} needs {number / 1e6:.1f} MB of 0.0 MB" for cut, number in enumerate(needs, start=1)]
    assert needs == sorted(needs)
    for cut in (1, 2, 3, 4):
        assert choose(costs, Capacity(memory=needs[cut - 1]))[0] == cut
        assert choose(costs, Capacity(memory=needs[cut - 1] - 1))[0] == cut - 1
    reason = f"cut 4 needs {needs[3] / 1e6:.1f} MB of {needs[2] / 1e6:.1f} MB"
    assert choose(costs, Capacity(memory=needs[2])) == (3, reason)
    assert choose(costs, Capacity(memory=1)) == (0, f"nothing fits: {told[1]}; {told[0]}")


def test_compute_limits_the_time_of_an_epoch(costs):
    # two operations per MAC, and a training step is three forward passes
    for cut in (1, 2, 3, 4):
        just = 2 * 3 * CUTS.macs(costs, cut) * SAMPLES / ROUND_SECONDS
        assert choose(costs, Capacity(compute=just))[0] == cut
        assert choose(costs, Capacity(compute=0.99 * just))[0] == cut - 1
    slow = 2 * 3 * CUTS.macs(costs, 4) * SAMPLES / 61
    assert choose(costs, Capacity(compute=slow))[1].startswith("cut 4 would take 61 s an epoch, more than 60 s")


def test_slow_link_needs_a_deeper_cut_or_allows_none(costs):
    """Features shrink with depth, so the link rules shallow cuts out, memory and processor deep ones."""
    assert bits(costs, 4) < bits(costs, 3) < bits(costs, 1)
    for_deepest = bits(costs, 4) / ROUND_SECONDS
    assert choose(costs, Capacity(bandwidth=for_deepest)) == (4, "the deepest cut fits")
    nothing, reason = choose(costs, Capacity(bandwidth=for_deepest / 2))
    assert nothing == 0
    assert "sends features for" in reason
    memory = costs.cut_training_memory(3, 8)  # too little for cut 4, and the link carries no other
    nothing, reason = choose(costs, Capacity(memory=memory, bandwidth=for_deepest), cuts="3,4")
    assert nothing == 0
    assert reason.startswith("nothing fits: cut 4 needs ")
    assert "; cut 3 sends features for " in reason


@pytest.mark.parametrize(("coding", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2), ("uint8", 1)])
@pytest.mark.parametrize("gradient", ["stop", "return"])
def test_link_load_depends_on_coding_and_gradients(costs, coding, size, gradient):
    if (coding, gradient) == ("uint8", "return"):
        return  # refused by the configuration
    assert BYTES[coding] == size
    ways = 2 if gradient == "return" else 1
    just = ways * bits(costs, 4, size) / ROUND_SECONDS
    settings = {"coding": coding, "gradient": gradient}
    assert choose(costs, Capacity(bandwidth=just), **settings)[0] == 4
    assert choose(costs, Capacity(bandwidth=0.99 * just), **settings)[0] == 0


def test_declared_cut_overrides_other_declarations(costs):
    assert choose(costs, Capacity(cut=2, memory=1, compute=1, bandwidth=1)) == (2, "declared cut 2")
    assert choose(costs, Capacity(cut=2), cuts="1,3,4") == (0, "declared cut 2, but this run offers cut 1, 3, 4")
    assert choose(costs, Capacity(cut=5)) == (0, "declared cut 5, but this run offers cut 1, 2, 3, 4")
    assert choose(costs, Capacity(cut=3, depth=1)) == (3, "declared cut 3")  # a device that takes part in both kinds


def test_depth_and_cut_are_not_interchangeable(costs):
    depth = parse_capacity({"depth": 2})
    assert choose(costs, depth) == (0, "declared depth 2, but this run needs a cut: declare cut= too")
    refused = choose_depth(parse_capacity({"cut": "2"}), costs, 8, SAMPLES)
    assert (refused.part, refused.reason) == (0, "declared cut 2, but this run needs a depth: declare depth= too")
    both = parse_capacity({"cut": "2", "depth": "1"})
    assert (choose(costs, both)[0], choose_depth(both, costs, 8, SAMPLES).part) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "node", "reason"),
    [
        ({"run.strategy": "hetero_splitee", "network.name": "resnet_slim", "network.width": 2, "splitee.cuts": "1,2,4"},
         {"depth": 2}, "client 0 is left out: declared depth 2, but this run needs a cut: declare cut="),
        ({}, {"cut": 2}, "client 0 is left out: declared cut 2, but this run needs a depth: declare depth="),
    ],
    ids=["depth-in-a-cut-run", "cut-in-a-tier-run"],
)  # fmt: skip
def test_node_with_the_wrong_declaration_is_refused(prepare_run, flower_log, changes, node, reason):
    run = prepare_run({**changes, "clients.per-round": 1}, [{"client-id": 0, **node}])
    with pytest.raises(Exception, match="no client can take part; client 0: declared"):
        run.strategy.start(run.grid)
    assert any(reason in line for line in flower_log)
