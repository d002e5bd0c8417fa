"""Bounds the memory of replies that come faster than the server works on them: further ones wait on their devices."""

from threading import Condition


class Room:
    """Room for so many bytes of replies that arrive, wait to be taken, or are worked on, and for one reply more.

    Its methods may be called from any thread. A reply is named by any object that stands for it.
    """

    def __init__(self, size: float) -> None:
        self._size, self._waiting, self._taken = size, 0, 0
        self._arriving: dict[object, int] = {}  # bytes of each reply, in the order in which they began
        self._closed = False
        self._changed = Condition()

    def grow(self, reply: object, size: int) -> None:
        """Wait until there is room for so many more bytes of a reply, and take it.

        Where arriving replies fill all of it, the one that began first goes on: otherwise none would ever be whole.
        """
        with self._changed:
            self._arriving.setdefault(reply, 0)
            self._changed.wait_for(lambda: self._closed or self.used + size <= self._size or self._is_next(reply))
            self._arriving[reply] += size

    def leave(self, reply: object, *, waits: bool) -> None:
        """Note that a reply does not arrive any more: it waits to be taken, or was dropped."""
        with self._changed:
            came = self._arriving.pop(reply, 0)
            self._waiting += came if waits else 0
            self._changed.notify_all()

    def take(self) -> None:
        """Note that all that waited was taken, and that what was taken before is done with.

        Replies that were left count as taken, too: they are not asked for now, and must not keep others away.
        """
        with self._changed:
            self._taken, self._waiting = self._waiting, 0
            self._changed.notify_all()

    def close(self) -> None:
        """Let all in: the run is over."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def used(self) -> int:
        """The bytes that are taken up."""
        return sum(self._arriving.values()) + self._waiting + self._taken

    def _is_next(self, reply: object) -> bool:
        return not self._waiting and not self._taken and next(iter(self._arriving)) is reply
