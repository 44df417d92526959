"""Curves and sample images in Trackio (`pip install trackio`; `trackio show` opens the
page). They stay on this machine unless TRACKIO_SPACE_ID names a Space of the hub."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.train.trackers.tracker import RunInfo, Tracker


class TrackioTracker(Tracker):
    """One run of Trackio per training run, across resumes. Its project is
    `log_tracker_name`, else `atelier`.

    Example::

        tracker = TrackioTracker(RunInfo("maya", folder, 0, section.logging))
        tracker.scalars(1, {"loss/current": 0.12})
        tracker.close()
    """

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        import trackio  # here: it is not a part of the program

        self._image = trackio.Image
        self._run = trackio.init(
            project=run.options.log_tracker_name or "atelier",
            name=run.name.replace("/", "_"),
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            resume="allow" if run.step else "never",
            embed=False,
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._image(path)}, step=step)

    def close(self) -> None:
        self._run.finish()
