"""Reads a run folder, the only source of the report and the comparison."""

import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from common.config import RunConfig, Value, load_config
from common.data.summary import DataSummary
from common.errors import UserError
from common.storage.files import read_values
from common.storage.format import check_format
from common.storage.run_files import DATA, read_events
from strategies.callbacks.accuracy import exit_accuracies
from strategies.registry import all_settings

Event = dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """A run as stored in its folder."""

    name: str
    config: dict[str, Value]  # flat, as it was resolved when the run began
    about: dict[str, Value]  # versions, device, commit
    rounds: list[Event]  # the complete rounds in order, each once: `Record.to_event()`
    status: str  # completed, failed with the reason, or not ended
    declared: dict[int, int] = field(default_factory=dict)  # depth -> clients that chose it, of the last checkpoint
    refused: dict[int, str] = field(default_factory=dict)  # client -> why it cannot take part
    data: DataSummary | None = None  # what was read; None in a run of an older version

    @property
    def strategy(self) -> str:
        """Name of the method."""
        return str(self.config.get("run.strategy", ""))

    @property
    def on_server(self) -> bool:
        """Whether the server evaluated; if not, all accuracies come from the clients."""
        return any(event["accuracy"] for event in self.rounds)

    @property
    def evaluated(self) -> list[tuple[int, list[float]]]:
        """(round, accuracy of each exit in [0, 1]) of the rounds that were evaluated, see `on_server`."""
        return [(number, exit_accuracies(measured, {})) for number, measured in self._measured]

    @property
    def means(self) -> list[tuple[int, float]]:
        """(round, mean over exits in [0, 1]) of the same rounds; from clients, the mean over them."""
        return [(number, measured["mean"]) for number, measured in self._measured]

    @property
    def on_clients(self) -> list[tuple[int, dict[str, Any]]]:
        """(round, `strategies.client_evaluation.summarise`) of the rounds in which clients evaluated."""
        return [(e["round"], e["client_accuracy"]) for e in self.rounds if "mean" in e["client_accuracy"]]

    @property
    def clients(self) -> dict[str, Any]:
        """The clients' last evaluation; empty if they did not evaluate."""
        return self.on_clients[-1][1] if self.on_clients else {}

    @property
    def final(self) -> dict[str, Any]:
        """The server's evaluation with the cost curve; empty without one."""
        return next((e["accuracy"] for e in reversed(self.rounds) if "budgeted" in e["accuracy"]), {})

    @property
    def numbers(self) -> list[int]:
        """The rounds' numbers."""
        return [e["round"] for e in self.rounds]

    @property
    def elapsed(self) -> dict[int, float]:
        """Round -> seconds of all rounds up to its end; pauses before a resume do not count."""
        return dict(zip(self.numbers, accumulate(e["seconds"]["round"] for e in self.rounds), strict=True))

    @property
    def seconds(self) -> float:
        """Seconds of all rounds together."""
        return float(sum(e["seconds"]["round"] for e in self.rounds))

    @property
    def timed(self) -> list[Event]:
        """The rounds that say what they took on the devices; none in a run of an older version."""
        return [event for event in self.rounds if event.get("device")]

    @property
    def device_totals(self) -> dict[int, float]:
        """Round -> seconds on the devices of all rounds up to its end."""
        return {event["round"]: event["device"]["total"] for event in self.timed}

    @property
    def device_seconds(self) -> float:
        """Seconds on the devices of all rounds together."""
        return float(self.timed[-1]["device"]["total"]) if self.timed else 0.0

    @property
    def clock(self) -> str:
        """How the seconds on the devices were found: "measured" or "simulated"; empty without any."""
        return str(self.timed[-1]["device"]["clock"]) if self.timed else ""

    @property
    def energy(self) -> float | None:
        """Joules on the devices of all rounds together; None unless all are known."""
        joules = [event.get("device", {}).get("energy") for event in self.rounds]
        return sum(joules) if joules and None not in joules else None

    @property
    def _measured(self) -> list[tuple[int, dict[str, Any]]]:
        if self.on_server:
            return [(e["round"], e["accuracy"]) for e in self.rounds if e["accuracy"]]
        return self.on_clients

    def traffic(self, way: str) -> list[int]:
        """Return bytes per round, `way` = "down" (to clients) or "up"."""
        return [e["traffic"].get(way, 0) for e in self.rounds]


def load_run(folder: Path) -> RunData:
    """Read a run folder; raises `UserError` when it holds no run."""
    try:
        stored = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a run folder ({error}): give a folder that holds config.toml") from error
    about = stored.pop("about", {})
    check_format(folder, about.pop("format", 1))
    events = read_events(folder / "metrics.jsonl")
    rounds = {event["round"]: event for event in events if event["event"] == "round"}
    reports = _reports(folder)
    able = [report["part"] for report in reports if not report["refused"]]
    return RunData(
        name=str(stored.get("run", {}).get("name") or folder.name),
        config={f"{section}.{key}": value for section, values in stored.items() for key, value in values.items()},
        about=about,
        rounds=[rounds[number] for number in sorted(rounds)],
        status=_status(events),
        declared={depth: able.count(depth) for depth in sorted(set(able))},
        refused={report["client"]: report["refused"] for report in reports if report["refused"]},
        data=_data(folder),
    )


def split_config(run: RunData) -> tuple[dict[str, Value], dict[str, Value]]:
    """Return the configuration in two parts: the values that differ from their defaults, and the rest.

    Defaults of methods other than the run's are left out.
    """
    defaults = load_config({}, all_settings()).flat()
    changed = {key: value for key, value in run.config.items() if value != defaults.get(key)}
    shown = {*(kind.SECTION for kind in RunConfig.COMMON), run.strategy} | {key.partition(".")[0] for key in changed}
    rest = {k: v for k, v in run.config.items() if k not in changed and k.partition(".")[0] in shown}
    return changed, rest


def _data(folder: Path) -> DataSummary | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return DataSummary.from_json((folder / DATA).read_text(encoding="utf-8"))
    return None


def _reports(folder: Path) -> list[Event]:
    """Return the clients' choices; none where the last checkpoint is damaged, without which the metrics are whole."""
    checkpoints = sorted((folder / "checkpoints").glob("round-*.safetensors"))
    with suppress(UserError):
        return list(read_values(checkpoints[-1])["reports"]) if checkpoints else []
    return []


def _status(events: list[Event]) -> str:
    last = next((e for e in reversed(events) if e["event"] in ("start", "end")), None)
    if last is None or last["event"] == "start":
        return "not ended"
    return f"failed: {last['failure']}" if last["failure"] else "completed"
