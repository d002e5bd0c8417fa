"""MLflow: a run of ours is a run there, with its configuration, its numbers and its report.

`MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` say where; without them it is an SQLite store, `mlflow.db`, beside
the runs, in the experiment `EarlyBloom`.
"""

import os
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.supercore import log

from common.errors import UserError
from strategies.callbacks.base import Callback
from strategies.callbacks.trackers import identity
from strategies.callbacks.trackers.scalars import scalars
from strategies.engine.rounds import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from strategies.engine.strategy import EarlyExitStrategy

EXPERIMENT = "EarlyBloom"
OWN = "earlybloom.id"  # tag by which a resumed run finds itself
FOLDER = "earlybloom.folder"  # tag by which runs of older versions do
REPORT = "report.html"


class MLflow(Callback):
    """Hands a run to MLflow."""

    def __init__(self, folder: Path) -> None:
        """Raise `UserError` when MLflow is missing, or its store cannot be used."""
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise UserError("run.trackers has mlflow, which is missing: pip install -e '.[mlflow]'") from error
        self.folder, self._run = folder, ""
        store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.parent / 'mlflow.db'}"
        try:
            self._client = MlflowClient(store)
            self._experiment = _experiment(self._client, folder.parent)
        except MlflowException as error:
            raise UserError(
                f"run.trackers has mlflow, but its store {store} cannot be used: {error.message}"
            ) from error

    def on_start(self, strategy: "EarlyExitStrategy") -> None:
        """Open the run; a resumed one goes on in its own. Raises `UserError` where MLflow refuses it."""
        from mlflow.exceptions import MlflowException

        try:
            self._run = self._earlier() if strategy.round else ""
            if self._run:
                self._client.update_run(self._run, status="RUNNING")
            else:
                self._create(strategy)
        except MlflowException as error:
            raise UserError(f"run.trackers has mlflow, which refuses the run: {error.message}") from error

    def on_round(self, strategy: "EarlyExitStrategy", record: Record) -> None:
        """Log the round's numbers; those of a round that a resumed run repeats are the same."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        numbers = [Metric(name, value, now, record.round) for name, value in scalars(record).items()]
        self._client.log_batch(self._run, metrics=numbers)

    def on_end(self, strategy: "EarlyExitStrategy", failure: str) -> None:
        """Close the run; its report goes with it where there is one."""
        if not self._run:
            return
        if (report := self.folder / REPORT).exists():
            self._client.log_artifact(self._run, str(report))
        self._client.set_terminated(self._run, "FAILED" if failure else "FINISHED")
        self._run = ""

    def _create(self, strategy: "EarlyExitStrategy") -> None:
        from mlflow.entities import Param

        config = strategy.config
        tags = {OWN: identity(self.folder), FOLDER: str(self.folder), "earlybloom.commit": config.run.commit}
        self._run = self._client.create_run(self._experiment, run_name=config.run.name, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in config.flat().items()]
        self._client.log_batch(self._run, params=params)

    def _earlier(self) -> str:
        """Return the id of the run that is resumed; "" if there is none."""
        mine = {OWN: identity(self.folder), FOLDER: str(self.folder)}
        for tag, value in mine.items():
            if "'" in value:  # which a search cannot have; older versions failed there
                continue
            if found := self._client.search_runs([self._experiment], f"tags.`{tag}` = '{value}'", max_results=1):
                return str(found[0].info.run_id)
        return ""


def _experiment(client: "MlflowClient", root: Path) -> str:
    """Return the experiment's id; a new one in a local store keeps its files beside the runs."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    place: dict[str, Any] = {}
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        place = {"artifact_location": (root / "mlflow-files").absolute().as_uri()}
    try:
        return str(client.create_experiment(name, **place))
    except MlflowException as error:  # another run made it meanwhile
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        log(WARNING, "MLflow has no experiment %r and cannot make it", name)
        raise error
