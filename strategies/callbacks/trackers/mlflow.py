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
from strategies.callbacks.trackers.scalars import scalars
from strategies.engine.rounds import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from strategies.engine.strategy import EarlyExitStrategy

EXPERIMENT = "EarlyBloom"
OWN = "earlybloom.folder"  # tag by which a resumed run finds itself
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
        """Open the run; a resumed one goes on in its own."""
        from mlflow.entities import Param

        name = strategy.config.run.name
        mine = f"tags.`{OWN}` = '{self.folder}'"
        found = self._client.search_runs([self._experiment], mine, max_results=1) if strategy.round else []
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {OWN: str(self.folder), "earlybloom.commit": strategy.config.run.commit}
        self._run = self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in strategy.config.flat().items()]
        self._client.log_batch(self._run, params=params)

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
