"""The two strategies of the server compared with each other."""

import pytest
import torch

from common.storage.client_store import ClientStore
from strategies.hetero_splitee.averaging import Averaging
from strategies.hetero_splitee.learner import Learner, Sgd, final_logits, server_part, train_step
from strategies.hetero_splitee.prior import log_prior
from strategies.hetero_splitee.sequential import Sequential
from strategies.hetero_splitee.server_model import make_server_model
from strategies.hetero_splitee.settings import SplitEESettings

CPU = torch.device("cpu")


def test_make_server_model_returns_the_configured_strategy(slim, store):
    assert isinstance(make_server_model(slim, SplitEESettings(), CPU, store), Sequential)
    assert isinstance(make_server_model(slim, SplitEESettings(mode="averaging"), CPU, store), Averaging)
    assert not store.folder.exists()


def test_both_strategies_are_equal_with_one_client(slim, batch, tmp_path):
    for cut in (1, 3):
        models = {}
        for mode in ("sequential", "averaging"):
            store = ClientStore(tmp_path, f"{mode}-{cut}")
            server = make_server_model(
                slim, SplitEESettings(mode=mode, aggregate_scope="server", gradient="return"), CPU, store
            )
            answers = []
            for round_ in (1, 2, 3):
                server.open_round(round_, {7: cut}, Sgd(0.1 / round_, 0.9, 0.01))
                for b in range(3):
                    result = server.step(7, *batch(slim, cut, 10 * round_ + b))
                    answers += [result.loss, result.gradient]
                server.close_round({7: 18}, {})
                server.labels().close_round([7])
            models[mode] = server.model(), answers, server.logits(7, cut, batch(slim, cut)[0])
        sequential, averaging = models["sequential"], models["averaging"]
        assert all(torch.equal(averaging[0][key], value) for key, value in sequential[0].items())
        assert all(torch.equal(a, b) for a, b in zip(sequential[1], averaging[1], strict=True))
        assert torch.equal(sequential[2], averaging[2])


@pytest.mark.parametrize("mode", ["sequential", "averaging"])
def test_a_clients_labels_adjust_its_steps_and_its_answers(slim, batch, tmp_path, mode):
    settings = SplitEESettings(mode=mode, aggregate_scope="server", prior="own")
    server = make_server_model(slim, settings, CPU, ClientStore(tmp_path, "copies"))
    twin = Learner.copy_of(server_part(slim, 2), CPU)
    batches = [batch(slim, 2, seed) for seed in (1, 2)]
    counts = torch.zeros(3, dtype=torch.int64)
    server.open_round(1, {7: 2, 8: 2} if mode == "averaging" else {7: 2}, Sgd(0.1, 0.9, 0.01))
    for features, labels in batches:
        counts += torch.bincount(labels, minlength=3)
        expected = train_step(
            twin, twin.network, 0, Sgd(0.1, 0.9, 0.01), features, labels, return_gradient=False, prior=log_prior(counts)
        )
        assert torch.equal(server.step(7, features, labels).loss, expected.loss)
    server.close_round({7: 12}, {})
    server.labels().close_round([7])
    state = server.model()
    assert all(torch.equal(state[key], value) for key, value in twin.network.state_dict().items())
    features, _ = batch(slim, 2, 3)
    plain = final_logits(twin.network, features)
    assert torch.equal(server.logits(7, 2, features), plain + log_prior(counts))
    assert torch.equal(server.logits(8, 2, features), plain)  # it has finished no round
    assert server.labels().clients[7].tolist() == counts.tolist()


@pytest.mark.parametrize("mode", ["sequential", "averaging"])
def test_a_server_with_priors_resumes_bit_for_bit_after_a_killed_round(slim, batch, tmp_path, mode):
    settings = SplitEESettings(mode=mode, aggregate_scope="server", prior="own")

    def go_on(server, round_):
        server.open_round(round_, {0: 1, 1: 2}, Sgd(0.1, 0.9, 0.01))
        server.step_many({0: batch(slim, 1, round_), 1: batch(slim, 2, 10 * round_)})
        server.close_round({0: 6, 1: 6}, {})
        server.labels().close_round([0, 1])

    whole, killed, resumed = (
        make_server_model(slim, settings, CPU, ClientStore(tmp_path, name)) for name in ("whole", "killed", "killed")
    )
    for server in (whole, killed):
        go_on(server, 1)
    checkpoint = killed.state_dict()
    killed.open_round(2, {0: 1, 1: 2}, Sgd(0.1, 0.9, 0.01))
    killed.step(0, *batch(slim, 1, 5))
    resumed.load_state_dict(*checkpoint)
    for server in (whole, resumed):
        go_on(server, 2)
    (one, values), (two, others) = whole.state_dict(), resumed.state_dict()
    assert values == others
    assert one.keys() == two.keys()
    assert all(torch.equal(two[key], value) for key, value in one.items())
    assert {client: int(own.sum()) for client, own in resumed.labels().clients.items()} == {0: 6, 1: 6}
