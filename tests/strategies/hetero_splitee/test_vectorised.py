import pytest
import torch

from common.networks import NetworkSpec, build
from strategies.hetero_splitee import averaging
from strategies.hetero_splitee.averaging import Averaging
from strategies.hetero_splitee.learner import Learner, Sgd, server_part, train_step
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.vectorised import train_together

CPU = torch.device("cpu")
# A small rate: at a large one a last-bit difference, which depends on the processor, soon switches a ReLU.
SGD = Sgd(0.01, 0.9, 0.01)


def counting(calls):
    def spy(copies, sgd, features, labels, **options):
        calls.append(tuple(labels.shape))
        calls.sort()
        return train_together(copies, sgd, features, labels, **options)

    return spy


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec("resnet_slim", 3, (1, 8, 8), width=4),
        NetworkSpec("convnet", 3, (1, 22, 22), width=4),
        NetworkSpec("vit_small32", 3, (3, 32, 32), width=64),
        NetworkSpec("wrn16", 3, (3, 8, 8), width=1),
    ],
    ids=lambda spec: spec.name,
)
@pytest.mark.parametrize("priors", [None, [[-3.0, -0.1, -4.0], [-0.7, -0.8, -5.0], [-1.0, -1.1, -1.2]]])
def test_train_together_equals_separate_steps(spec, batch, priors):
    network, cut = build(spec, seed=1).train(), 2
    rows = [None] * 3 if priors is None else [torch.tensor(prior) for prior in priors]
    batches = [[batch(network, cut, 10 * step + row) for row in range(3)] for step in range(3)]
    single, joint = ([Learner.copy_of(server_part(network, cut), CPU) for _ in range(3)] for _ in range(2))
    for step in batches:
        one = [
            train_step(copy, copy.network, 0, SGD, x, y, return_gradient=True, prior=prior)
            for copy, (x, y), prior in zip(single, step, rows, strict=True)
        ]
        features, labels = (torch.stack(column) for column in zip(*step, strict=True))
        together = None if priors is None else torch.stack(rows)
        many = train_together(joint, SGD, features, labels, return_gradient=True, priors=together)
        for a, b in zip(one, many, strict=True):
            assert torch.allclose(a.loss, b.loss, rtol=1e-4, atol=1e-5)
            assert torch.allclose(a.gradient, b.gradient, rtol=1e-3, atol=1e-5)
    for a, b in zip(single, joint, strict=True):
        state = b.state_dict()
        for key, value in a.state_dict().items():
            assert torch.allclose(state[key], value, rtol=1e-3, atol=1e-4), key  # weights, momenta, batch norm's
            if not value.is_floating_point():
                assert value == 3


def test_train_together_keeps_copies_separate(lenet, batch):
    copies = [Learner.copy_of(server_part(lenet, 1), CPU) for _ in range(2)]
    features, y = batch(lenet, 1)
    results = train_together(copies, SGD, torch.stack([features, features]), torch.stack([y, y]), return_gradient=False)
    assert [result.gradient for result in results] == [None, None]
    assert torch.allclose(copies[0].momentum, copies[1].momentum)
    before = copies[1].state_dict()["units.2.0.weight"].clone()
    train_step(copies[0], copies[0].network, 0, SGD, features, y, return_gradient=False)
    assert torch.equal(copies[1].state_dict()["units.2.0.weight"], before)


@pytest.mark.parametrize("together", [False, True])
def test_batch_whose_loss_is_not_finite_changes_no_weight(lenet, batch, together):
    copies = [Learner.copy_of(server_part(lenet, 1), CPU) for _ in range(2)]
    before = [{key: value.clone() for key, value in copy.state_dict().items()} for copy in copies]
    good, labels = batch(lenet, 1)
    features = [torch.full_like(good, torch.inf), good]
    if together:
        results = train_together(copies, SGD, torch.stack(features), torch.stack([labels] * 2), return_gradient=False)
    else:
        results = [
            train_step(copy, copy.network, 0, SGD, x, labels, return_gradient=False)
            for copy, x in zip(copies, features, strict=True)
        ]
    assert [bool(result.loss.isfinite()) for result in results] == [False, True]
    same = [
        all(torch.equal(value, old[key]) for key, value in copy.state_dict().items())
        for copy, old in zip(copies, before, strict=True)
    ]
    assert same == [True, False]


@pytest.mark.parametrize("prior", ["none", "own"])
def test_step_many_groups_copies_by_cut_and_batch_size(slim, batch, store, tmp_path, monkeypatch, prior):
    cuts = {0: 2, 1: 2, 2: 3, 3: 2, 4: 2, 5: 3}
    sizes = {0: 6, 1: 4, 2: 6, 3: 6, 4: 4, 5: 4}  # together: 0 and 3, 1 and 4; alone: 2, 5
    servers, calls = {}, {"always": [], "never": [], "auto": []}
    for how in ("always", "never", "auto"):
        settings = SplitEESettings(
            mode="averaging", aggregate_scope="server", vectorise=how, gradient="return", prior=prior
        )
        server = servers[how] = Averaging(slim, settings, CPU, type(store)(tmp_path, how))
        server.open_round(1, cuts, SGD)
        monkeypatch.setattr(averaging, "train_together", counting(calls[how]))
        batches = {c: batch(slim, cuts[c], c, sizes[c]) for c in (5, 3, 1, 0, 2, 4)}
        results = server.step_many(batches)
        assert list(results) == [0, 1, 2, 3, 4, 5]
        assert all(results[c].gradient.shape == batches[c][0].shape for c in cuts)
        server.close_round(dict.fromkeys(cuts, 5), {})
        server.labels().close_round(cuts)
    counted = [{c: own.tolist() for c, own in server.labels().clients.items()} for server in servers.values()]
    assert counted == [counted[0]] * 3
    assert sorted(counted[0]) == (sorted(cuts) if prior == "own" else [])
    together, loop, auto = (servers[how].model() for how in ("always", "never", "auto"))
    assert all(torch.allclose(together[key], value, rtol=1e-4, atol=1e-5) for key, value in loop.items())
    assert all(torch.equal(auto[key], value) for key, value in loop.items())
    assert calls == {"always": [(2, 4), (2, 6)], "never": [], "auto": []}  # "auto" on a CPU
