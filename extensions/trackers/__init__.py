"""Trackers of other libraries, for `logging.log_with`. Each file is one, and imports its
library only where a job names it."""

from __future__ import annotations

from toolkit.extension import Extension


class TensorBoard(Extension):
    """`log_with: tensorboard`."""

    uid = "tensorboard"
    name = "Curves in TensorBoard's event files"
    tracker = ".tensorboard_tracker:TensorBoardTracker"


class Wandb(Extension):
    """`log_with: wandb`."""

    uid = "wandb"
    name = "Curves in Weights & Biases"
    tracker = ".wandb_tracker:WandbTracker"


class Trackio(Extension):
    """`log_with: trackio`."""

    uid = "trackio"
    name = "Curves in Trackio, on this machine or in a Space of the hub"
    tracker = ".trackio_tracker:TrackioTracker"


class Mlflow(Extension):
    """`log_with: mlflow`."""

    uid = "mlflow"
    name = "Curves in MLflow"
    tracker = ".mlflow_tracker:MlflowTracker"


class Swanlab(Extension):
    """`log_with: swanlab`."""

    uid = "swanlab"
    name = "Curves in SwanLab"
    tracker = ".swanlab_tracker:SwanlabTracker"


AI_TOOLKIT_EXTENSIONS = [TensorBoard, Wandb, Trackio, Mlflow, Swanlab]
