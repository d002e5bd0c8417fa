"""Room for replies: what waits, and what lets it in."""

import threading
import time

from server.rounds.room import Room
from tests.support.deployment import wait_until


def growing(room: Room, **sizes: int) -> list[str]:
    """Let replies grow at once, each in a thread; returns a list that their names join when they have."""
    came = list[str]()

    def grow(name: str, size: int) -> None:
        room.grow(name, size)
        came.append(name)

    for name, size in sizes.items():
        threading.Thread(target=grow, args=(name, size), daemon=True).start()
    return came


def still(came: list[str], *expected: str) -> None:
    """Check which have come, now and a moment later."""
    wait_until(lambda: len(came) == len(expected), 5, f"{came} have come, not {expected}")
    time.sleep(0.1)
    assert sorted(came) == sorted(expected)


def test_replies_grow_while_there_is_room():
    room = Room(10)
    room.grow("a", 4)
    room.grow("b", 3)
    room.grow("b", 3)
    waiting = growing(room, c=1)
    still(waiting)
    room.leave("a", waits=False)  # dropped
    still(waiting, "c")
    assert room.used == 7


def test_replies_keep_their_room_until_the_next_are_asked_for():
    room = Room(10)
    room.grow("a", 10)
    room.leave("a", waits=True)
    waiting = growing(room, b=5)
    still(waiting)
    room.take()  # the server works on it
    still(waiting)
    room.take()
    still(waiting, "b")


def test_first_of_those_that_fill_the_room_becomes_whole():
    room = Room(10)
    room.grow("a", 5)
    room.grow("b", 5)
    later = growing(room, b=5)
    room.grow("a", 5)
    still(later)
    room.leave("a", waits=True)
    still(later)  # first what waits is taken
    room.take()
    room.take()
    still(later, "b")


def test_reply_larger_than_the_room_comes_when_nothing_else_is_there():
    room = Room(10)
    room.grow("a", 1)
    room.leave("a", waits=True)
    waiting = growing(room, b=1000)
    still(waiting)
    room.take()
    room.take()
    still(waiting, "b")
    still(growing(room, c=1))


def test_closed_room_lets_all_in():
    room = Room(10)
    room.grow("a", 10)
    waiting = growing(room, b=5, c=5)
    still(waiting)
    room.close()
    still(waiting, "b", "c")
