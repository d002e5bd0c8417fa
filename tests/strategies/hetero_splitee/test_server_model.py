"""The two strategies of the server compared with each other."""

import torch

from common.storage.client_store import ClientStore
from strategies.hetero_splitee.averaging import Averaging
from strategies.hetero_splitee.learner import Sgd
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
            models[mode] = server.model(), answers, server.logits(7, cut, batch(slim, cut)[0])
        sequential, averaging = models["sequential"], models["averaging"]
        assert all(torch.equal(averaging[0][key], value) for key, value in sequential[0].items())
        assert all(torch.equal(a, b) for a, b in zip(sequential[1], averaging[1], strict=True))
        assert torch.equal(sequential[2], averaging[2])
