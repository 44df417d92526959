"""Curves and sample images in MLflow (`pip install mlflow-skinny`). MLFLOW_TRACKING_URI
names the server; without it they are in `mlruns/` or `mlflow.db` of the working folder,
as MLflow decides."""

from __future__ import annotations

from pathlib import Path

from toolkit.files.writing import write_text
from toolkit.train.trackers.tracker import RunInfo, Tracker

RUN_ID = "mlflow_run_id"
"""File in the run's folder with the id of the MLflow run, for a resume."""


class MlflowTracker(Tracker):
    """One run of MLflow per training run, across resumes. Its experiment is
    `log_tracker_name`, else `atelier`.

    Example::

        tracker = MlflowTracker(RunInfo("maya", folder, 0, section.logging))
        tracker.scalars(1, {"loss/current": 0.12})
        tracker.close()
    """

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        from mlflow import MlflowClient  # here: it is not a part of the program

        self._client = MlflowClient()
        file = run.folder / RUN_ID
        if run.step and file.exists():
            self._id = file.read_text(encoding="utf-8").strip()
            return
        name = run.options.log_tracker_name or "atelier"
        found = self._client.get_experiment_by_name(name)
        place = found.experiment_id if found else self._client.create_experiment(name)
        self._id = self._client.create_run(place, run_name=run.name).info.run_id
        write_text(file, self._id + "\n")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        self._client.log_artifact(self._id, str(path), name)

    def close(self) -> None:
        self._client.set_terminated(self._id)
