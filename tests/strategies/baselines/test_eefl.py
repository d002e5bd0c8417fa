"""EEFL end to end: the real ClientApp on the in-process grid; grouping clients on nodes changes no bit."""

import pytest
import torch

from common.messages import protocol
from common.networks import build
from common.weights.layers import average_layers
from strategies.method import RoundUpdate, TierUpdate

ROAMING = [[{"partition-id": p} for p in range(n)] for n in (1, 2, 5)]


def hosted(per_node: int, count: int = 6) -> list[dict[str, int]]:
    return [{"partition-id": p} for p in range(-(-count // per_node))]


def same(one, two) -> bool:
    return set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)


def test_run_learns(run_strategy):
    run = run_strategy({
        "run.rounds": 4, "data.limit": 800, "network.name": "resnet_slim", "network.width": 8, "clients.count": 8,
        "clients.per-round": 8, "clients.mix": "1,1,1,1", "train.epochs": 2, "server.evaluate-every": 4,
    })  # fmt: skip
    assert [record.round for record in run.records] == [1, 2, 3, 4]
    assert run.records[-1].clients == {1: 2, 2: 2, 3: 2, 4: 2}
    assert run.records[-1].accuracy["mean"] > 0.5  # chance is 0.1
    assert run.records[-1].client_metrics["loss"] < run.records[0].client_metrics["loss"]
    assert run.failure == ""
    assert same(run.result.arrays.to_torch_state_dict(), run.strategy.model)


def test_grouping_changes_no_bit(run_strategy):
    reference = run_strategy({"clients.per-round": 4}).strategy.model
    for nodes in ROAMING[1:]:
        assert same(run_strategy({"clients.per-round": 4}, nodes).strategy.model, reference)
    for per_node in (1, 3, 6):
        run = run_strategy({"clients.per-round": 4, "clients.per-node": per_node}, hosted(per_node))
        assert same(run.strategy.model, reference)


def test_grouping_changes_no_bit_with_batchnorm_on_real_images(run_strategy, data_root):
    images = {
        "data.name": "cifar10", "data.root": str(data_root / "cifar10_tiny"), "data.limit": 120,
        "network.name": "resnet_slim", "network.width": 4, "clients.mix": "small", "train.batch-size": 8,
    }  # fmt: skip
    one = run_strategy({**images, "server.evaluate-every": 2})
    many = run_strategy({**images, "clients.per-node": 1}, hosted(1))
    assert same(one.strategy.model, many.strategy.model)
    counters = {k: v for k, v in one.strategy.model.items() if k.endswith("num_batches_tracked")}
    assert counters
    # a client sees 2 batches a round; counters are the maximum, not a mean
    assert {int(v) for v in counters.values()} == {4}
    assert set(one.records[-1].clients) == {1, 2, 3, 4}
    assert len(one.records[-1].accuracy["exits"]) == 4


def test_other_seed_gives_other_weights(run_strategy):
    assert not same(run_strategy({"run.seed": 2}).strategy.model, run_strategy().strategy.model)


def test_grouping_changes_no_stored_client_state(run_strategy):
    learned = {"objective.name": "l2w", "objective.l2w-hidden": 4, "objective.l2w-interval": 1, "run.rounds": 3}
    one = run_strategy({**learned, "run.name": "a"})
    many = run_strategy({**learned, "run.name": "b", "clients.per-node": 1}, hosted(1))
    assert same(one.strategy.model, many.strategy.model)
    assert one.strategy.committed == dict.fromkeys(range(6), 3)
    assert not same(
        one.strategy.model, run_strategy({**learned, "run.name": "c", "objective.name": "joint"}).strategy.model
    )


def test_round_is_average_of_client_models(prepare_run):
    run = prepare_run({"clients.per-node": 1}, hosted(1))
    strategy = run.strategy
    initial = {k: v.clone() for k, v in strategy.model.items()}
    replies = run.grid.send_and_receive(strategy.configure_train(1, None, None, run.grid))
    models: dict[int, dict] = {}
    samples: dict[int, int] = {}
    for message in replies:
        reply = protocol.unpack_reply(message.content)
        (result,) = reply.results
        models[result.client] = reply.lone[result.client].state_dict()
        samples[result.client] = result.num_examples
    strategy.aggregate_train(1, replies)
    assert sorted(models) == [0, 1, 2, 3, 4, 5]
    expected = average_layers(models, samples)
    assert set(expected) == set(initial)
    for key, value in strategy.model.items():
        assert torch.allclose(value, expected[key], rtol=1e-6, atol=1e-8), key
        assert not torch.equal(value, initial[key])


@pytest.mark.parametrize("depth", [1, 2])
def test_untrained_layers_stay_unchanged(run_strategy, depth):
    run = run_strategy({"clients.mix": ",".join("1" if d == depth else "0" for d in (1, 2, 3))})
    initial = build(run.strategy.spec, 1).state_dict()
    trained = set(build(run.strategy.spec, 1).prefix(depth).state_dict())
    for key, value in run.strategy.model.items():
        assert torch.equal(value, initial[key]) == (key not in trained), key


IMAGES = {"network.name": "resnet_slim", "network.width": 4, "clients.mix": "equal", "objective.name": "boosted"}


def test_server_decay_is_darkdistill_without_its_losses(run_strategy):
    """Ten steps of SGD at 0.05 with weight decay 0.001, and nothing to distil."""
    plain = run_strategy(IMAGES).strategy.model
    decayed = run_strategy({**IMAGES, "eefl.server-decay": 1 - (1 - 0.05 * 1e-3) ** 10}).strategy.model
    still = run_strategy({
        **IMAGES, "run.strategy": "darkdistill", "darkdistill.distill-weight-decay": 1e-3,
        "darkdistill.rkd-distance": 0.0, "darkdistill.rkd-angle": 0.0,
    }).strategy.model  # fmt: skip
    for key, value in still.items():
        assert torch.allclose(value, decayed[key], rtol=1e-4, atol=1e-6), key
    trunk = "units.3.conv1.weight"  # of the fourth tier alone, which shrinks twice
    assert not torch.allclose(plain[trunk], decayed[trunk], rtol=1e-4, atol=1e-6)


def test_server_decay_shrinks_the_trunks_of_all_tiers_but_the_shallowest(prepare_run):
    strategy = prepare_run({**IMAGES, "eefl.server-decay": 0.25}).strategy
    start = {key: value.clone() for key, value in strategy.model.items()}
    states = {part: strategy.part_state(part).state_dict() for part in (2, 4)}
    strategy.merge(1, RoundUpdate({part: TierUpdate(state, 10, (part,)) for part, state in states.items()}))
    shares = {key: float((strategy.model[key] / start[key]).flatten()[0]) for key in start}
    assert shares["units.0.0.weight"] == 1  # the stem
    assert shares["units.1.conv1.weight"] == pytest.approx(0.875)  # tiers 2 and 4, the second one shrunk
    assert shares["units.4.conv1.weight"] == pytest.approx(0.75)  # tier 4 alone
    assert shares["exits.5.linear.weight"] == 1
    assert shares["units.4.bn1.running_var"] == 1
