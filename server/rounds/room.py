"""Bounds the memory of replies that come faster than the server works on them: further ones wait on their devices."""

from threading import Condition


class Room:
    """Room for so many bytes of replies that arrive, wait to be taken, or are worked on; a larger reply comes alone.

    Its methods may be called from any thread.
    """

    def __init__(self, size: float) -> None:
        self._size, self._arriving, self._waiting, self._taken = size, 0, 0, 0
        self._closed = False
        self._changed = Condition()

    def enter(self, size: int) -> None:
        """Wait until there is room for a reply of this size, and take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self.used or self.used + size <= self._size)
            self._arriving += size

    def leave(self, size: int, *, waits: bool) -> None:
        """Note that a reply does not arrive any more: it waits to be taken, or was dropped."""
        with self._changed:
            self._arriving -= size
            self._waiting += size if waits else 0
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
        return self._arriving + self._waiting + self._taken
