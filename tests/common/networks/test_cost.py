import subprocess
import sys
from itertools import accumulate

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.networks import BACKBONES, CostTable, NetworkSpec, UnitCost, build, cost_table

CIFAR = (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "total", "percent"),
    [
        ("resnet18", 555_417_600, [0.3, 13.9, 27.5, 38.1, 51.7, 62.2, 75.8, 86.4, 100.0]),
        ("wrn16", 26_656_768, [1.7, 19.4, 37.1, 50.8, 68.5, 82.3, 100.0]),
    ],
)
def test_macs_match_the_published_ones(name: str, total: int, percent: list[float]) -> None:
    macs = list(accumulate(unit.macs for unit in cost_table(build(NetworkSpec(name, 10, CIFAR), 0)).units))
    assert macs[-1] == total
    assert [round(100 * m / total, 1) for m in macs] == percent


@pytest.mark.parametrize("name", BACKBONES)
def test_all_operations_that_torch_counts_are_counted(name: str) -> None:
    words = name == "transformer4"
    network = build(NetworkSpec(name, 10, (16,) if words else CIFAR, vocabulary=100 if words else 0), 0)
    with FlopCounterMode(display=False) as counter:
        network(network.example(1))
    assert cost_table(network).macs(len(network.exit_positions) - 1) == counter.get_total_flops() // 2


def test_counting_does_not_import_torchs_compiler() -> None:
    script = (
        "import sys; from common.networks import NetworkSpec, build, cost_table; print('triton' in sys.modules); "
        "cost_table(build(NetworkSpec('lenet', 10, (3, 32, 32)), 0)); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_small_network_matches_a_count_by_hand() -> None:
    table = cost_table(build(NetworkSpec("lenet", 10, CIFAR), 0))
    stem = table.units[0]
    assert stem.parameters == 6 * (3 * 25 + 1)
    assert stem.macs == 6 * 75 * 32 * 32
    assert stem.activation_bytes == 4 * 6 * 16 * 16
    # Backward needs the image, the rectified map (also the pooling's input, once) and the pooling's int64 indices.
    kept = 4 * 3 * 32 * 32 + 4 * 6 * 32 * 32 + 8 * 6 * 16 * 16
    assert stem.training_bytes == kept + stem.activation_bytes
    # A head keeps its pooled feature and gets a gradient for its logits.
    assert table.exits[1] == UnitCost(parameters=70, macs=60, activation_bytes=40, training_bytes=4 * 6 + 40)


def test_attention_is_counted() -> None:
    table = cost_table(build(NetworkSpec("vit_small32", 10, (3, 32, 32)), 0))
    tokens, width = 65, 64
    assert table.units[1].macs == tokens * 12 * width**2 + 2 * tokens**2 * width


def test_tiers_and_cuts_add_up() -> None:
    a, b, c = (UnitCost(p, 10 * p, 100 * p, 1000 * p) for p in (1, 2, 4))
    head, last = UnitCost(8, 80, 800, 8000), UnitCost(16, 160, 1600, 16000, frozen_parameters=6)
    table = CostTable((a, b, c), {2: head, 3: last}, tiers=(2, 3))
    assert [table.macs(0), table.macs(1)] == [110, 310]
    assert [table.tier_macs(1), table.tier_macs(2)] == [110, 310]
    assert [table.tier_parameters(1), table.tier_parameters(2)] == [11, 31]
    assert table.cut_parameters(1) == 1
    assert table.tier_training_memory(1, batch_size=5) == 4 * 3 * 11 + 5 * 11_000
    # Frozen weights have neither gradient nor momentum.
    assert table.tier_training_memory(2, batch_size=1) == 4 * (3 * 25 + 6) + 31_000


def test_forward_memory_is_weights_and_the_largest_unit() -> None:
    units = tuple(UnitCost(1, 0, size, 0) for size in (100, 300, 200))
    assert CostTable(units, {3: UnitCost(10, 0, 1, 0)}, (3,)).forward_memory(batch_size=5) == 4 * 13 + 5 * (300 + 200)


def test_table_survives_json(tiny: NetworkSpec) -> None:
    table = cost_table(build(tiny, 0))
    assert CostTable.from_json(table.to_json()) == table


def test_adapters_save_training_memory() -> None:
    spec = NetworkSpec("vit_small32", 10, (3, 32, 32))
    full = cost_table(build(spec, 0))
    adapted = cost_table(build(NetworkSpec(**{**vars(spec), "lora_rank": 2}), 0))
    assert adapted.tier_training_memory(4, 32) < full.tier_training_memory(4, 32)
    assert adapted.units[1].frozen_parameters == full.units[1].parameters


def test_counting_changes_neither_network_nor_global_state() -> None:
    network = build(NetworkSpec("vit_small32", 10, (3, 8, 8), lora_rank=2), 0).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    cost_table(network)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_prefix_has_its_part_of_the_table() -> None:
    network = build(NetworkSpec("resnet_slim", 10, (1, 8, 8)), 0)
    whole, part = cost_table(network), cost_table(network.prefix(2))
    assert part.units == whole.units[:3]
    assert part.tiers == (2, 3)
    with pytest.raises(ValueError, match="whole network"):
        cost_table(network.suffix(2))
