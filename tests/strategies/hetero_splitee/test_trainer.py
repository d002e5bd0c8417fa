"""The server's training thread: its order, and for which clients it waits."""

import threading
import time

import pytest
import torch

from common.rpc.refusals import Refused
from strategies.hetero_splitee.inbox import Batch, Inbox, OpenRound
from strategies.hetero_splitee.learner import StepResult
from strategies.hetero_splitee.trainer import Trainer
from tests.strategies.hetero_splitee.sockets import late, until

CPU = torch.device("cpu")


class Model:
    """Records the batches; every loss is 1."""

    def __init__(self, fail_at=-1):
        self.seen, self.draws, self.fail_at = [], [], fail_at

    def step_many(self, batches):
        if len(self.seen) == self.fail_at:
            raise FloatingPointError("boom")
        self.seen.append({client: int(features[0, 0]) for client, (features, _) in batches.items()})
        self.draws.append(float(torch.rand(())))
        return {client: StepResult(torch.tensor(1.0), features) for client, (features, _) in batches.items()}


class Sender:
    """One client's side of the inbox."""

    def __init__(self, inbox, client, size=4):
        self.queue, self.client, self.size, self.index = inbox.queues[client], client, size, 0
        self.ticket, _ = self.queue.attach(0)

    def send(self, number=1):
        for _ in range(number):
            features = torch.full((self.size, 2), float(self.index))
            labels = torch.zeros(self.size, dtype=torch.long)
            self.queue.put(self.ticket, Batch(self.client, 1, self.index, features, labels))
            self.index += 1
        return self

    def end(self):
        self.queue.end(self.ticket, self.index)


def make(
    per_epoch, model=None, epochs=1, granularity="batch", together=False, patience=20.0, gradients=False, turn=None
):
    inbox = Inbox(OpenRound("test", 1, 0, dict.fromkeys(per_epoch, 1), window=9, gradients=gradients))
    model = model or Model()
    trainer = Trainer(
        model, inbox, per_epoch, epochs, granularity, together=together, patience=patience, num_threads=1, seed=0,
        device=CPU, turn=turn,
    )  # fmt: skip
    return model, inbox, trainer


def test_order_is_by_turn_and_then_as_given():
    model, inbox, trainer = make({2: 2, 0: 3, 1: 1})
    trainer.start()
    for client, number in ((2, 2), (1, 1), (0, 3)):
        Sender(inbox, client).send(number).end()
        time.sleep(0.02)
    trained = trainer.finish()
    assert model.seen == [{2: 0}, {0: 0}, {1: 0}, {2: 1}, {0: 1}, {0: 2}]
    assert (trained.batches, trained.samples) == ({0: 3, 1: 1, 2: 2}, {0: 12, 1: 4, 2: 8})
    assert (trained.missing, trained.loss) == ({0: 0, 1: 0, 2: 0}, 6.0)


def test_epoch_granularity_takes_a_whole_epoch_per_client():
    model, inbox, trainer = make({0: 2, 1: 1}, epochs=2, granularity="epoch")
    trainer.start()
    Sender(inbox, 1).send(2).end()
    Sender(inbox, 0).send(4).end()
    trainer.finish()
    assert model.seen == [{0: 0}, {0: 1}, {1: 0}, {0: 2}, {0: 3}, {1: 1}]


def test_together_trains_a_turn_in_one_step():
    model, inbox, trainer = make({0: 2, 1: 1}, together=True)
    trainer.start()
    Sender(inbox, 1).send().end()
    Sender(inbox, 0).send(2).end()
    assert trainer.finish().batches == {0: 2, 1: 1}
    assert model.seen == [{0: 0, 1: 0}, {0: 1}]


@pytest.mark.parametrize("together", [False, True])
def test_late_client_is_waited_for_once(together):
    model, inbox, trainer = make({0: 3, 1: 5, 2: 3}, together=together, patience=0.3)
    Sender(inbox, 0).send(3).end()
    Sender(inbox, 1).send(2)
    Sender(inbox, 2).send(3).end()
    take, started = inbox.take, time.monotonic()
    # a second wait for a client would take a minute
    inbox.take = lambda client, index, seconds: take(client, index, 60.0 if late(inbox) else seconds)
    trained = trainer.start().finish()
    assert 0.3 <= time.monotonic() - started < 30
    assert trained.batches == {0: 3, 1: 2, 2: 3}
    assert trained.missing == {0: 0, 1: 3, 2: 0}
    assert sum(1 in step for step in model.seen) == 2
    assert late(inbox) == [1]


def test_batches_of_absent_clients_are_missing():
    _, _, trainer = make({0: 2, 1: 3}, epochs=2, patience=0.05)
    trained = trainer.start().finish()
    assert trained.missing == {0: 4, 1: 6}
    assert trained.batches == {0: 0, 1: 0}


def test_failed_client_is_not_waited_for():
    model, inbox, trainer = make({0: 3, 1: 1}, patience=60.0)
    trainer.start()
    Sender(inbox, 0).send(2)
    Sender(inbox, 1).send().end()
    until(lambda: len(model.seen) == 3)
    inbox.abandon(0)
    trained = trainer.finish()
    assert trained.batches == {0: 2, 1: 1}
    assert trained.missing == {0: 1, 1: 0}
    inbox.abandon(7)  # not a client of this round: changes nothing


def test_arrived_batches_of_a_failed_client_are_trained():
    model, inbox, trainer = make({0: 3}, patience=60.0)
    Sender(inbox, 0).send(2)
    inbox.abandon(0)
    assert trainer.start().finish().batches == {0: 2}
    assert model.seen == [{0: 0}, {0: 1}]


def test_batch_count_may_differ_from_announcement():
    model, inbox, trainer = make({0: 2, 1: 2})
    Sender(inbox, 0).send(1).end()
    Sender(inbox, 1).send(4).end()
    trained = trainer.start().finish()
    assert model.seen == [{0: 0}, {1: 0}, {1: 1}, {1: 2}, {1: 3}]
    assert trained.missing == {0: 0, 1: 0}


def test_finish_raises_the_training_error():
    _, inbox, trainer = make({0: 3}, Model(fail_at=1))
    Sender(inbox, 0).send(3)
    with pytest.raises(FloatingPointError, match="boom"):
        trainer.start().finish()
    assert trainer.result.batches == {0: 1}
    with pytest.raises(RuntimeError, match="the round is closed"):
        inbox.queues[0].attach(0)


def test_stop_ends_the_wait_at_once():
    _, inbox, trainer = make({0: 3}, patience=60.0)
    trainer.start()
    Sender(inbox, 0).send()
    started = time.monotonic()
    trainer.stop()
    assert time.monotonic() - started < 30  # its patience is 60
    assert trainer.finish().error is None
    assert not [thread for thread in threading.enumerate() if thread.name == "split-trainer"]


def test_trainer_replies_with_gradients():
    _, inbox, trainer = make({0: 2}, gradients=True)
    sender = Sender(inbox, 0).send(2)
    sender.end()
    trainer.start().finish()
    for index in (0, 1):
        answered, gradient = sender.queue.answer(sender.ticket, index)
        assert answered == index
        assert torch.equal(gradient, torch.full((4, 2), float(index)))


def test_dropout_depends_only_on_seed_round_and_batch():
    draws = []
    for _ in range(2):
        model, inbox, trainer = make({0: 2, 1: 1})
        torch.rand(3)
        Sender(inbox, 0).send(2).end()
        Sender(inbox, 1).send().end()
        trainer.start().finish()
        draws.append(model.draws)
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 3


def test_trainer_restores_the_number_of_threads():
    before = torch.get_num_threads()
    _, _, trainer = make({0: 1}, patience=0.01)
    trainer.num_threads = before + 1
    trainer.start().finish()
    assert torch.get_num_threads() == before


def test_client_whose_loss_is_not_finite_is_left(flower_log):
    class Diverging(Model):
        def step_many(self, batches):
            steps = super().step_many(batches)
            return {c: StepResult(torch.tensor(torch.nan)) if c == 0 and 1 in self.seen[-1].values() else step
                    for c, step in steps.items()}  # fmt: skip

    _, inbox, trainer = make({0: 3, 1: 2}, model=Diverging())
    Sender(inbox, 0).send(3)
    Sender(inbox, 1).send(2).end()
    trained = trainer.start().finish()
    assert (trained.batches, trained.loss) == ({0: 1, 1: 2}, 3.0)
    assert trained.samples == {0: 0, 1: 8}  # its first batch does not count either
    reason = "the server's loss on batch 1 is not finite: lower splitee.server-lr"
    assert f"round 1: client 0: {reason}; the server goes on without it" in flower_log
    with pytest.raises(Refused, match=reason):
        inbox.queues[0].attach(2)


def test_steps_wait_for_their_turn():
    turn = threading.Lock()
    model, inbox, trainer = make({0: 1}, turn=turn)
    Sender(inbox, 0).send().end()
    with turn:
        trainer.start()
        time.sleep(0.2)
        assert not model.seen
    trainer.finish()
    assert model.seen
