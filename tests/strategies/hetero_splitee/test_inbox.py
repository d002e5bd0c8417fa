import threading
import time

import grpc
import pytest
import torch

from common.rpc.refusals import Refused
from strategies.hetero_splitee.inbox import Batch, Closed, Inbox, Missing, OpenRound
from tests.strategies.hetero_splitee.sockets import Trainer, until


def make(window: int = 2, gradients: bool = False, clients: int = 1) -> Inbox:
    return Inbox(OpenRound("r", 3, 0, dict.fromkeys(range(clients), 1), window, gradients))


def batch(index: int, client: int = 0) -> Batch:
    return Batch(client, 1, index, torch.full((1, 2), float(index)), torch.tensor([index]))


def refusal(work) -> grpc.StatusCode:
    with pytest.raises(Refused) as raised:
        work()
    return raised.value.code


def test_batches_are_taken_in_order_until_the_end():
    inbox = make()
    queue = inbox.queues[0]
    ticket, first = queue.attach(0, announced=2)
    assert (first, inbox.missing) == (0, {0: 2})
    for index in range(2):
        queue.put(ticket, batch(index))
    queue.end(ticket, 2)
    assert [inbox.take(0, index, 0).index for index in range(2)] == [0, 1]
    assert [inbox.take(0, index, 0) for index in (2, 3, 2)] == [Missing.ENDED] * 3
    assert (inbox.accepted, inbox.missing, inbox.late) == ({0: 2}, {0: 0}, [])


def test_a_batch_that_comes_again_is_dropped_and_one_that_comes_early_is_refused():
    queue = make(window=3).queues[0]
    ticket, _ = queue.attach(0)
    first = batch(0)
    queue.put(ticket, first)
    queue.put(ticket, batch(0))
    assert refusal(lambda: queue.put(ticket, batch(2))) == grpc.StatusCode.OUT_OF_RANGE
    assert queue.accepted == 1
    assert queue.take(0, 0) is first
    queue.put(ticket, batch(0))
    assert queue.accepted == 1
    assert queue.take(1, 0) == Missing.LATE


def test_a_full_queue_holds_up_who_puts_until_the_trainer_takes():
    queue = make(window=2).queues[0]
    ticket, _ = queue.attach(0)
    putting = Trainer(lambda: [queue.put(ticket, batch(index)) for index in range(3)])
    until(lambda: queue.accepted == 2)
    time.sleep(0.1)
    assert queue.accepted == 2
    assert putting.is_alive()
    queue.take(0, 0)
    putting.result()
    assert queue.accepted == 3


def test_a_new_stream_takes_over_where_the_old_one_was():
    queue = make(window=1).queues[0]
    old, _ = queue.attach(0)
    queue.put(old, batch(0))
    blocked = Trainer(lambda: queue.put(old, batch(1)))
    new, first = queue.attach(0)
    assert first == 1
    assert refusal(blocked.result) == grpc.StatusCode.ABORTED
    assert refusal(lambda: queue.answer(old, 0)) == grpc.StatusCode.ABORTED
    queue.take(0, 0)
    queue.put(new, batch(1))
    assert queue.take(1, 0).index == 1
    queue.detach(old)  # too late to matter
    queue.end(new, 2)


def test_a_client_that_resumes_with_what_it_never_got_is_refused():
    queue = make().queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    assert refusal(lambda: queue.attach(1)) == grpc.StatusCode.OUT_OF_RANGE  # nobody has acknowledged batch 0
    queue.take(0, 0)
    assert queue.attach(1)[1] == 1


def test_acknowledgements_wait_for_the_trainer():
    queue = make().queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    waiting = Trainer(lambda: [queue.answer(ticket, 0), queue.answer(ticket, 1)])
    time.sleep(0.05)
    assert waiting.is_alive()
    queue.take(0, 0)
    queue.end(ticket, 1)
    assert waiting.result() == [(0, None), None]


def test_gradients_are_kept_until_the_client_must_have_them():
    queue = make(window=2, gradients=True).queues[0]
    ticket, _ = queue.attach(0)
    gradients = [torch.full((1, 2), float(index)) for index in range(5)]
    for index in range(5):
        queue.put(ticket, batch(index))
        queue.take(index, 0)
        queue.reply(index, gradients[index])
    # with two in flight, batch 4 was sent only after the reply to batch 2 had come
    assert [queue.answer(ticket, index) for index in (3, 4)] == [(3, gradients[3]), (4, gradients[4])]
    assert queue.answer(ticket, 2) == (2, None)


def test_replies_go_in_order_and_only_where_they_are_due():
    queue = make(gradients=True).queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    with pytest.raises(ValueError, match="batch 0"):
        queue.reply(0, None)  # not taken yet
    queue.take(0, 0)
    with pytest.raises(ValueError, match="batch 1"):
        queue.reply(1, None)
    queue.reply(0, None)
    with pytest.raises(ValueError, match="batch 0"):
        queue.reply(0, None)
    with pytest.raises(ValueError, match="batch 0"):
        make().reply(0, 0)  # this round acknowledges by taking


def test_the_trainer_cannot_skip_or_repeat():
    queue = make().queues[0]
    with pytest.raises(ValueError, match="batch 0 is the next"):
        queue.take(1, 0)


def test_who_comes_too_late_is_skipped_for_good():
    inbox = make(clients=2)
    queue = inbox.queues[0]
    ticket, _ = queue.attach(0, announced=4)
    queue.put(ticket, batch(0))
    queue.take(0, 0)
    start = time.monotonic()
    assert inbox.take(0, 1, 0.1) == Missing.LATE
    assert time.monotonic() - start > 0.09
    start = time.monotonic()
    assert inbox.take(0, 2, 60) == Missing.LATE
    assert time.monotonic() - start < 30  # nobody waits for it twice
    assert (inbox.late, inbox.missing) == ([0], {0: 3, 1: 0})
    for work in (
        lambda: queue.put(ticket, batch(1)),
        lambda: queue.end(ticket, 1),
        lambda: queue.answer(ticket, 1),
        lambda: queue.attach(1),
    ):
        assert refusal(work) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert queue.answer(ticket, 0) == (0, None)  # what was taken counts


def test_for_a_client_that_has_failed_nobody_waits_but_what_came_counts():
    inbox = make(clients=2)
    ticket, _ = inbox.queues[0].attach(0)
    inbox.queues[0].put(ticket, batch(0))
    waiting = Trainer(lambda: [inbox.take(0, 0, 60), inbox.take(0, 1, 60)])
    until(lambda: inbox.queues[0]._taken == 1)
    inbox.abandon(0)
    inbox.abandon(7)  # not of this round
    taken, missing = waiting.result()
    assert (taken.index, missing, inbox.late) == (0, Missing.LATE, [0])
    assert refusal(lambda: inbox.queues[0].put(ticket, batch(1))) == grpc.StatusCode.DEADLINE_EXCEEDED
    ticket, _ = inbox.queues[1].attach(0)
    inbox.queues[1].put(ticket, batch(0, 1))
    inbox.abandon(1)
    assert [getattr(inbox.take(1, 0, 60), "index", None), inbox.take(1, 1, 60)] == [0, Missing.LATE]


def test_an_end_must_fit_what_came():
    queue = make().queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    assert refusal(lambda: queue.end(ticket, 2)) == grpc.StatusCode.OUT_OF_RANGE
    queue.end(ticket, 1)
    queue.end(ticket, 1)  # again after a resume
    assert refusal(lambda: queue.put(ticket, batch(1))) == grpc.StatusCode.OUT_OF_RANGE


def test_closing_wakes_everybody():
    inbox = make(window=1, clients=2)
    queue = inbox.queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    putting = Trainer(lambda: queue.put(ticket, batch(1)))
    answering = Trainer(lambda: queue.answer(ticket, 0))
    taking = Trainer(lambda: inbox.take(1, 0, 60))
    time.sleep(0.05)
    inbox.close()
    with pytest.raises(Closed):
        taking.result()
    for waiting in (putting, answering):
        assert refusal(waiting.result) == grpc.StatusCode.FAILED_PRECONDITION
    assert refusal(lambda: queue.attach(0)) == grpc.StatusCode.FAILED_PRECONDITION


def test_who_has_ended_may_fetch_its_acknowledgements_after_the_close():
    inbox = make()
    queue = inbox.queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    queue.end(ticket, 1)
    queue.take(0, 0)
    inbox.close()
    assert queue.answer(ticket, 0) == (0, None)
    again, first = queue.attach(0)
    assert first == 1
    queue.end(again, 1)
    assert [queue.answer(again, 0), queue.answer(again, 1)] == [(0, None), None]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_taken_does_not_depend_on_who_is_faster(seed):
    inbox = make(clients=3)

    def send(client: int) -> None:
        source = torch.Generator().manual_seed(10 * seed + client)
        ticket, _ = inbox.queues[client].attach(0)
        for index in range(6):
            time.sleep(float(torch.rand((), generator=source)) * 0.004)
            inbox.queues[client].put(ticket, batch(index, client))
        inbox.queues[client].end(ticket, 6)

    threads = [threading.Thread(target=send, args=(client,)) for client in range(3)]
    for thread in threads:
        thread.start()
    taken = [inbox.take(client, index, 60) for index in range(6) for client in range(3)]
    assert [(got.index, got.client) for got in taken] == [(index, client) for index in range(6) for client in range(3)]
    for thread in threads:
        thread.join()
