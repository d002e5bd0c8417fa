"""Fine-tuned FedAvg: EEFL's rounds, then some epochs on each client's own samples."""

import copy

from tests.support.personal_runs import DEEP, close, delivered, folder, same, sgd

TUNED = {"run.strategy": "fedavg_ft", "personal.finetune-epochs": 3}


def test_rounds_equal_eefl_bit_for_bit(run_strategy):
    tuned = run_strategy({**TUNED, "server.clients-evaluate-every": 1})
    assert same(tuned.strategy.model, run_strategy().strategy.model)
    assert all(record.client_accuracy["clients"] == 6 for record in tuned.records)
    # clients keep no state: fine-tuning always starts from the server's weights
    assert not list(folder(tuned.strategy).glob("client-*/round-*"))


def test_every_client_fine_tunes_global_network(run_strategy):
    strategy = run_strategy({**TUNED, **DEEP, "clients.per-round": 2}).strategy
    for client in range(6):
        network = copy.deepcopy(strategy.global_network())
        sgd(strategy, network, client, 2, 3, "fine-tuning")
        assert close(delivered(strategy, client), network.state_dict())
    assert not same(delivered(strategy, 0), delivered(strategy, 1))
