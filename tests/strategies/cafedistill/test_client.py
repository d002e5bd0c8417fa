"""CAFEDistill's client half on a job of its own."""

import numpy as np
import pytest
import torch
from torch import Tensor

from common.storage.client_store import ClientState
from common.weights.flat import FlatState
from strategies.cafedistill.card import METHOD
from strategies.cafedistill.client import HEAD, SHARES, STUDENTS, TEACHER, CAFEDistillTraining, mixed_teacher
from strategies.cafedistill.heads import head_layout, head_vector
from tests.support.personal_runs import close, heads, make_job, own_data, same, seeded, trunk

LAST = ("exits.3.linear.weight", "exits.3.linear.bias")


@pytest.fixture
def strategy(prepare_run):
    return prepare_run({"run.strategy": "cafedistill", "clients.mix": "0,0,1"}).strategy


def filled(strategy, number: float, depth: int = 3) -> np.ndarray:
    return np.full(strategy.heads[depth].sizes[0], number, np.float32)


def loaded(strategy, **changes):
    """A job with weights put together, and a server's backbone that is 0.5 everywhere."""
    job = make_job(strategy, 1, client_values={STUDENTS: 2, SHARES: {}}, **changes)
    state = {key: torch.full_like(value, 0.5) for key, value in trunk(seeded(strategy)).items()}
    CAFEDistillTraining().load(job, FlatState.of(state))
    return job, job.model.read(job.model.layout).state_dict()


def own(strategy, number: float) -> ClientState:
    return ClientState({f"own.{k}": torch.full_like(v, number) for k, v in heads(seeded(strategy)).items()})


def test_model_joins_backbone_own_heads_and_aggregated_head(strategy):
    _, state = loaded(strategy, kept=own(strategy, 2.0), client_arrays={HEAD: filled(strategy, 3.0)})
    assert all((value == 0.5).all() for value in trunk(state).values())
    assert {key: float(value.mean()) for key, value in heads(state).items()} == {
        key: 3.0 if key in LAST else 2.0 for key in heads(seeded(strategy))
    }


def test_last_head_starts_anew_without_an_aggregated_head(strategy):
    _, state = loaded(strategy, kept=own(strategy, 2.0))
    start = seeded(strategy)
    assert all(torch.equal(value, start[key]) == (key in LAST) for key, value in heads(state).items())


def test_head_of_wrong_size_fails_the_client(strategy):
    with pytest.raises(ValueError, match="an exit head of 610"):
        loaded(strategy, client_arrays={HEAD: filled(strategy, 3.0, depth=1)})


def test_last_head_is_uploaded_and_all_heads_are_kept(strategy):
    job, _ = loaded(strategy)
    outcome = CAFEDistillTraining().train(job)
    after = job.model.read(job.model.layout).state_dict()
    assert same(outcome.state.state_dict(), trunk(after))
    assert list(outcome.client_arrays) == [HEAD]
    assert torch.equal(
        torch.from_numpy(outcome.client_arrays[HEAD]), head_vector(after, head_layout(job.model.module, 3))
    )
    assert same({key.removeprefix("own."): value for key, value in outcome.kept.tensors.items()}, heads(after))


@pytest.mark.parametrize("students", [0, 1, 2])
def test_unlocked_students_and_last_exit_learn(strategy, students):
    job = make_job(strategy, 1, client_values={STUDENTS: students, SHARES: {}})
    CAFEDistillTraining().train(job)
    after, start = job.model.read(job.model.layout).state_dict(), seeded(strategy)
    decay = 1 - strategy.lr(1) * strategy.config.train.weight_decay
    changed = {key for key in heads(after) if not torch.allclose(after[key], start[key] * decay**2, atol=1e-4)}
    expected = [*range(1, students + 1), 3]
    assert {int(key.split(".")[1]) for key in changed} == set(expected)


def test_client_says_whether_its_features_live(strategy):
    job = make_job(strategy, 1, client_values={STUDENTS: 2, SHARES: {}})
    metrics = CAFEDistillTraining().train(job).metrics
    assert set(metrics) == {"loss", "gradient_norm", "dead_channels_1", "dead_channels_2", "dead_channels_3"}
    assert metrics["gradient_norm"] > 0
    dead = make_job(strategy, 1, client_values={STUDENTS: 2, SHARES: {}})
    with torch.no_grad():
        first = next(module for module in dead.network.modules() if isinstance(module, torch.nn.Conv2d))
        first.bias.fill_(-1e4)  # no ReLU passes anything
    metrics = CAFEDistillTraining().train(dead).metrics
    assert metrics["dead_channels_1"] == 1.0


def test_clients_of_one_message_are_watched_apart(strategy):
    local = CAFEDistillTraining()
    jobs = [make_job(strategy, client, client_values={STUDENTS: 2, SHARES: {}}) for client in (1, 2, 1)]
    first, other, again = (local.train(job).metrics for job in jobs)
    assert first == again != other


def test_objective_section_does_not_apply(prepare_run):
    results = []
    for number, name in enumerate(("joint", "boosted")):
        changes = {"run.strategy": "cafedistill", "clients.mix": "0,0,1", "objective.name": name}
        strategy = prepare_run({**changes, "run.name": f"objective-{number}"}).strategy
        assert strategy.spec.ensemble == 0.0 == METHOD.ensemble(strategy.config)
        job = make_job(strategy, 1, client_values={STUDENTS: 2, SHARES: {}})
        results.append(CAFEDistillTraining().train(job).state.floats)
    assert torch.equal(*results)


def across(strategy, shares: dict[str, float], **entries: np.ndarray):
    arrays = {HEAD: filled(strategy, 0.01), **{f"{TEACHER}{name[1:]}": array for name, array in entries.items()}}
    return make_job(strategy, 1, client_values={STUDENTS: 2, SHARES: shares}, client_arrays=arrays)


def test_last_exit_teaches_alone_without_other_teachers(strategy):
    job = across(strategy, {})
    outputs = job.model.module.forward_exits(own_data(strategy, 1).x[:4])
    assert mixed_teacher(job)(outputs) is outputs.logits[-1]


def test_a_mixed_teacher_by_hand(strategy):
    source = torch.Generator().manual_seed(3)
    h1, h2 = (torch.randn(strategy.heads[d].sizes[0], generator=source) for d in (1, 2))
    job = across(strategy, {"1": 0.25, "2": 0.125}, d1=h1.numpy(), d2=h2.numpy())
    x = own_data(strategy, 1).x[:4]
    outputs = job.model.module.forward_exits(x)

    def logits(vector: Tensor, feature: Tensor) -> Tensor:
        weight, bias = vector[:-10].view(10, -1), vector[-10:]
        return feature @ weight.T + bias

    expected = 0.625 * outputs.logits[2] + 0.25 * logits(h1, outputs.features[0])
    expected = expected + 0.125 * logits(h2, outputs.features[1])
    torch.testing.assert_close(mixed_teacher(job)(outputs), expected, rtol=1e-5, atol=1e-6)


def test_other_depths_teachers_are_fixed_and_have_effect(strategy):
    job, alone = across(strategy, {"1": 0.5}, d1=filled(strategy, 1.0, depth=1)), across(strategy, {})
    before = job.client_arrays[f"{TEACHER}1"].copy()
    states = []
    for each in (job, alone):
        states.append(CAFEDistillTraining().train(each).state.state_dict())
    assert np.array_equal(job.client_arrays[f"{TEACHER}1"], before)
    assert not close(*states)
    outputs = job.model.module.forward_exits(own_data(strategy, 1).x[:4])
    teacher = mixed_teacher(job)(outputs)
    (grad,) = torch.autograd.grad(teacher.sum(), outputs.features[0], allow_unused=True)
    assert grad is None  # the other head's logits give no gradient to the backbone
