"""The moments of a run at which a callback is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes seconds, and a command that only reads finished runs has no other use for it
    from strategies.engine.rounds import Record
    from strategies.engine.strategy import EarlyExitStrategy


class Callback:
    """Override what you need."""

    def on_start(self, strategy: EarlyExitStrategy) -> None:
        """Before the first round of this start."""

    def on_left_out(self, strategy: EarlyExitStrategy, name: str, reason: str) -> None:
        """When "client 3" or "node 7" takes no part in the round that runs: it was refused, or it failed."""

    def on_round(self, strategy: EarlyExitStrategy, record: Record) -> None:
        """After a complete round, its evaluation included."""

    def on_end(self, strategy: EarlyExitStrategy, failure: str) -> None:
        """After the last round, or when the run fails; `failure` is empty when it did not."""
