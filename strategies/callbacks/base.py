"""The three moments of a run at which a callback is called, and what it is told."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.engine.strategy import EarlyExitStrategy


@dataclass(frozen=True)
class Record:
    """One complete round; its fields are those of a line of `metrics.jsonl`."""

    round: int
    rounds: int
    clients: Mapping[int, int] = field(default_factory=dict)  # depth -> clients folded
    failures: Mapping[int, str] = field(default_factory=dict)  # client -> reason
    rejected: Sequence[int] = ()  # of them, those whose answer came but was unfit
    late: Sequence[int] = ()  # clients of earlier rounds whose answers came now and were folded
    client_metrics: Mapping[str, float] = field(default_factory=dict)  # means weighted by samples
    client_accuracy: Mapping[str, Any] = field(default_factory=dict)  # see `strategies.client_evaluation.summarise`
    accuracy: Mapping[str, Any] = field(default_factory=dict)  # the server's evaluation
    terms: Mapping[str, Any] = field(default_factory=dict)  # what the method logs
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase
    traffic: Mapping[str, int] = field(default_factory=dict)  # bytes down and up

    def to_event(self) -> dict[str, Any]:
        """Return the record as an event of `metrics.jsonl`."""
        return {"event": "round", **asdict(self)}


class Callback:
    """Override what you need."""

    def on_start(self, strategy: "EarlyExitStrategy") -> None:
        """Before the first round of this start."""

    def on_round(self, strategy: "EarlyExitStrategy", record: Record) -> None:
        """After a complete round, its evaluation included."""

    def on_end(self, strategy: "EarlyExitStrategy", failure: str) -> None:
        """After the last round, or when the run fails; `failure` is empty when it did not."""
