"""Room for replies: what waits, and what lets it in."""

import threading
import time

from server.rounds.room import Room
from tests.support.deployment import wait_until


def entering(room: Room, *sizes: int) -> list[int]:
    """Let threads enter at once; returns a list that the sizes join when they are in."""
    came = list[int]()

    def enter(size: int) -> None:
        room.enter(size)
        came.append(size)

    for size in sizes:
        threading.Thread(target=enter, args=(size,), daemon=True).start()
    return came


def still(came: list[int], expected: list[int]) -> None:
    """Check who is in, now and a moment later."""
    wait_until(lambda: len(came) == len(expected), 5, f"{came} are in, not {expected}")
    time.sleep(0.1)
    assert came == expected


def test_replies_enter_while_there_is_room():
    room = Room(10)
    still(entering(room, 4), [4])
    still(entering(room, 6), [6])
    waiting = entering(room, 1)
    still(waiting, [])
    room.leave(4, waits=False)  # dropped
    still(waiting, [1])


def test_replies_keep_their_room_until_the_next_are_asked_for():
    room = Room(10)
    room.enter(10)
    waiting = entering(room, 5)
    room.leave(10, waits=True)
    still(waiting, [])
    room.take()  # the server works on them
    still(waiting, [])
    room.take()
    still(waiting, [5])


def test_larger_reply_comes_alone():
    room = Room(10)
    room.enter(1)
    waiting = entering(room, 1000)
    still(waiting, [])
    room.leave(1, waits=False)
    still(waiting, [1000])
    still(entering(room, 1), [])


def test_closed_room_lets_all_in():
    room = Room(10)
    room.enter(10)
    waiting = entering(room, 5, 5, 5)
    still(waiting, [])
    room.close()
    still(waiting, [5, 5, 5])
