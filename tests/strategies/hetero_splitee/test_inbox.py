import threading
import time

import grpc
import pytest
import torch

from common.rpc.refusals import Refused
from strategies.hetero_splitee.inbox import Batch, Closed, Inbox, Missing, OpenRound
from strategies.hetero_splitee.stream import BROKEN
from tests.strategies.hetero_splitee.sockets import Background, accepted, late, until


def make(window: int = 2, gradients: bool = False, clients: int = 1) -> Inbox:
    return Inbox(OpenRound("r", 3, 0, dict.fromkeys(range(clients), 1), window, gradients))


def batch(index: int, client: int = 0) -> Batch:
    return Batch(client, 1, index, torch.full((1, 2), float(index)), torch.tensor([index]))


def refusal(work) -> grpc.StatusCode:
    with pytest.raises(Refused) as raised:
        work()
    return raised.value.code


def test_take_returns_batches_in_order_until_the_end():
    inbox = make()
    queue = inbox.queues[0]
    ticket, first = queue.attach(0)
    assert first == 0
    for index in range(2):
        queue.put(ticket, batch(index))
    queue.end(ticket, 2)
    assert [inbox.take(0, index, 0).index for index in range(2)] == [0, 1]
    assert [inbox.take(0, index, 0) for index in (2, 3, 2)] == [Missing.ENDED] * 3
    assert (accepted(inbox), late(inbox)) == ({0: 2}, [])


def test_put_drops_repeated_and_refuses_early_batches():
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


def test_put_blocks_on_a_full_queue():
    queue = make(window=2).queues[0]
    ticket, _ = queue.attach(0)
    putting = Background(lambda: [queue.put(ticket, batch(index)) for index in range(3)])
    until(lambda: queue.accepted == 2)
    time.sleep(0.1)
    assert queue.accepted == 2
    assert putting.is_alive()
    queue.take(0, 0)
    putting.result()
    assert queue.accepted == 3


def test_new_stream_replaces_the_old_one():
    queue = make(window=1).queues[0]
    old, _ = queue.attach(0)
    queue.put(old, batch(0))
    blocked = Background(lambda: queue.put(old, batch(1)))
    new, first = queue.attach(0)
    assert first == 1
    assert refusal(blocked.result) == grpc.StatusCode.ABORTED
    assert refusal(lambda: queue.answer(old, 0)) == grpc.StatusCode.ABORTED
    queue.take(0, 0)
    queue.put(new, batch(1))
    assert queue.take(1, 0).index == 1
    queue.detach(old)  # changes nothing: the new stream has replaced it
    queue.end(new, 2)


def test_attach_refuses_to_resume_after_an_unacknowledged_batch():
    queue = make().queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    assert refusal(lambda: queue.attach(1)) == grpc.StatusCode.OUT_OF_RANGE  # batch 0 is not acknowledged
    queue.take(0, 0)
    assert queue.attach(1)[1] == 1


def test_answer_waits_until_the_batch_is_taken():
    queue = make().queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    waiting = Background(lambda: [queue.answer(ticket, 0), queue.answer(ticket, 1)])
    time.sleep(0.05)
    assert waiting.is_alive()
    queue.take(0, 0)
    queue.end(ticket, 1)
    assert waiting.result() == [(0, None), None]


def test_gradients_are_kept_while_their_batches_are_in_flight():
    queue = make(window=2, gradients=True).queues[0]
    ticket, _ = queue.attach(0)
    gradients = [torch.full((1, 2), float(index)) for index in range(5)]
    for index in range(5):
        queue.put(ticket, batch(index))
        queue.take(index, 0)
        queue.reply(index, gradients[index])
    # with two in flight, batch 4 was sent only after the reply to batch 2 had arrived
    assert [queue.answer(ticket, index) for index in (3, 4)] == [(3, gradients[3]), (4, gradients[4])]
    assert queue.answer(ticket, 2) == (2, None)


def test_reply_accepts_only_the_next_taken_batch():
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
        make().reply(0, 0)  # without gradients, `take` acknowledges


def test_take_rejects_another_index_than_the_next():
    queue = make().queues[0]
    with pytest.raises(ValueError, match="batch 0 is the next"):
        queue.take(1, 0)


def test_late_client_is_skipped_for_the_whole_round():
    inbox = make(clients=2)
    queue = inbox.queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    queue.take(0, 0)
    start = time.monotonic()
    assert inbox.take(0, 1, 0.1) == Missing.LATE
    assert time.monotonic() - start > 0.09
    start = time.monotonic()
    assert inbox.take(0, 2, 60) == Missing.LATE
    assert time.monotonic() - start < 30  # no second wait
    assert late(inbox) == [0]
    for work in (
        lambda: queue.put(ticket, batch(1)),
        lambda: queue.end(ticket, 1),
        lambda: queue.answer(ticket, 1),
        lambda: queue.attach(1),
    ):
        assert refusal(work) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert queue.answer(ticket, 0) == (0, None)  # a taken batch still counts


def test_abandon_ends_the_wait_and_keeps_arrived_batches():
    inbox = make(clients=2)
    ticket, _ = inbox.queues[0].attach(0)
    inbox.queues[0].put(ticket, batch(0))
    waiting = Background(lambda: [inbox.take(0, 0, 60), inbox.take(0, 1, 60)])
    until(lambda: inbox.queues[0]._taken == 1)
    inbox.abandon(0)
    inbox.abandon(7)  # not of this round
    taken, missing = waiting.result()
    assert (taken.index, missing, late(inbox)) == (0, Missing.LATE, [0])
    assert refusal(lambda: inbox.queues[0].put(ticket, batch(1))) == grpc.StatusCode.DEADLINE_EXCEEDED
    ticket, _ = inbox.queues[1].attach(0)
    inbox.queues[1].put(ticket, batch(0, 1))
    inbox.abandon(1)
    assert [getattr(inbox.take(1, 0, 60), "index", None), inbox.take(1, 1, 60)] == [0, Missing.LATE]


def test_a_client_that_is_left_for_a_reason_of_the_server_learns_it():
    inbox = make()
    ticket, _ = inbox.queues[0].attach(0)
    inbox.abandon(0, "the server's loss on batch 4 is not finite")
    inbox.abandon(0)  # the client fails because of it, which is no new reason
    for work in (lambda: inbox.queues[0].put(ticket, batch(0)), lambda: inbox.queues[0].attach(0)):
        with pytest.raises(Refused, match=r"client 0 in round 3: the server's loss on batch 4 is not finite") as raised:
            work()
        assert raised.value.code == grpc.StatusCode.FAILED_PRECONDITION
        assert raised.value.code not in BROKEN  # the client does not try again


def test_end_must_match_the_arrived_batches():
    queue = make().queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    assert refusal(lambda: queue.end(ticket, 2)) == grpc.StatusCode.OUT_OF_RANGE
    queue.end(ticket, 1)
    queue.end(ticket, 1)  # repeated after a resume
    assert refusal(lambda: queue.put(ticket, batch(1))) == grpc.StatusCode.OUT_OF_RANGE


def test_close_wakes_all_waiting_threads():
    inbox = make(window=1, clients=2)
    queue = inbox.queues[0]
    ticket, _ = queue.attach(0)
    queue.put(ticket, batch(0))
    putting = Background(lambda: queue.put(ticket, batch(1)))
    answering = Background(lambda: queue.answer(ticket, 0))
    taking = Background(lambda: inbox.take(1, 0, 60))
    time.sleep(0.05)
    inbox.close()
    with pytest.raises(Closed):
        taking.result()
    for waiting in (putting, answering):
        assert refusal(waiting.result) == grpc.StatusCode.FAILED_PRECONDITION
    assert refusal(lambda: queue.attach(0)) == grpc.StatusCode.FAILED_PRECONDITION


def test_ended_client_gets_acknowledgements_after_the_close():
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
def test_order_of_taking_does_not_depend_on_client_speed(seed):
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
    assert [(b.index, b.client) for b in taken] == [(index, client) for index in range(6) for client in range(3)]
    for thread in threads:
        thread.join()
