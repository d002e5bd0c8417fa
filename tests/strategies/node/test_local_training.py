import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from common.config import load_config
from common.data.clients import ClientData
from common.networks import NetworkSpec, build
from common.weights.flat import FlatModel
from strategies.method import Job
from strategies.node.local_training import LocalTraining

CPU = torch.device("cpu")
SPEC = NetworkSpec("lenet", 10, (1, 8, 8), width=3)


def images(number: int = 20) -> ClientData:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(number, 1, 8, 8, generator=source)
    none = torch.zeros(0, dtype=torch.int64)
    return ClientData(x, torch.arange(number) % 10, x[:0], none, x[:0], none)


def job(client: int = 0, round_: int = 1, number: int = 20, lr: float = 0.1, **train) -> Job:
    flat = {"train.batch-size": 8, "train.momentum": 0.0, "train.weight-decay": 0.0}
    config = load_config(flat | {f"train.{key.replace('_', '-')}": value for key, value in train.items()})
    model = FlatModel(build(SPEC, 1))
    return Job(client, 3, round_, config, model, CPU, lambda: images(number), {"lr": lr})


def trained(*args, **kwargs) -> torch.Tensor:
    return LocalTraining().train(job(*args, **kwargs)).state.floats


def test_training_depends_only_on_seed_client_and_round():
    assert torch.equal(trained(), trained())
    torch.manual_seed(77)
    assert torch.equal(trained(), trained())
    assert not torch.equal(trained(client=1), trained())
    assert not torch.equal(trained(round_=2), trained())


def test_one_batch_is_one_step_of_sgd_on_all_exits():
    network = build(SPEC, 1).train()
    own = images(8)
    sum(F.cross_entropy(z, own.y) for z in network(own.x)).backward()
    state = LocalTraining().train(job(number=8, lr=0.1)).state.state_dict()
    for name, parameter in network.named_parameters():
        assert torch.allclose(state[name], parameter - 0.1 * parameter.grad, atol=1e-6), name


def test_momentum_and_decay_are_those_of_torch():
    network, own = build(SPEC, 1).train(), images(8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        sum(F.cross_entropy(z, own.y) for z in network(own.x)).backward()
        optimizer.step()
    found = LocalTraining().train(job(number=8, lr=0.1, epochs=3, momentum=0.9, weight_decay=0.01))
    for name, weight in found.state.state_dict().items():
        assert torch.allclose(weight, network.state_dict()[name], atol=1e-5), name


def test_device_does_not_import_torchs_compiler():
    script = (
        "import sys; from tests.strategies.node.test_local_training import trained; "
        "trained(momentum=0.9, weight_decay=0.01); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_zero_epochs_change_nothing():
    outcome = LocalTraining().train(job(epochs=0))
    assert torch.equal(outcome.state.floats, FlatModel(build(SPEC, 1)).floats)
    assert (outcome.metrics, outcome.kept) == ({}, None)


def test_loss_is_mean_over_samples_and_exits():
    outcome = LocalTraining().train(job(number=8, lr=0.0))
    own = images(8)
    expected = sum(F.cross_entropy(z, own.y).item() for z in build(SPEC, 1)(own.x)) / 3
    assert outcome.metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_hook_sees_every_sample_once_per_epoch_before_step():
    seen: list[tuple[bool, list[int], torch.Size]] = []

    class Observer(LocalTraining):
        def observe(self, job, batch, loss, last_epoch):
            seen.append((last_epoch, batch.tolist(), loss.per_exit.shape))

    Observer().train(job(epochs=2, number=17))
    assert [last for last, _, _ in seen] == [False] * 3 + [True] * 3  # 6, 6 and 5
    for epoch in (seen[:3], seen[3:]):
        assert sorted(sample for _, batch, _ in epoch for sample in batch) == list(range(17))
    assert [shape for _, _, shape in seen[:3]] == [(3, 6), (3, 6), (3, 5)]
    assert seen[0][1] != seen[3][1]
