"""Curves and sample images in SwanLab (`pip install swanlab`, then `swanlab login`, or
SWANLAB_API_KEY). With SWANLAB_MODE=offline they stay in `swanlab/` of the run's folder,
for `swanlab sync`."""

from __future__ import annotations

import secrets
from pathlib import Path

from toolkit.files.writing import write_text
from toolkit.train.trackers.tracker import RunInfo, Tracker

RUN_ID = "swanlab_run_id"
"""File in the run's folder with the id of the SwanLab run, for a resume."""


class SwanlabTracker(Tracker):
    """One run of SwanLab per training run, across resumes. Its project is
    `log_tracker_name`, else `atelier`.

    Example::

        tracker = SwanlabTracker(RunInfo("maya", folder, 0, section.logging))
        tracker.scalars(1, {"loss/current": 0.12})
        tracker.close()
    """

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        import swanlab  # here: it is not a part of the program

        file = run.folder / RUN_ID
        if not (run.step and file.exists()):
            write_text(file, secrets.token_hex(8) + "\n")
        self._image = swanlab.Image
        # of this process it gets neither the output, nor the command, nor a question
        probe = dict.fromkeys(("runtime", "requirements", "git"), False)
        terminal = {"proxy_type": "none"}
        self._run = swanlab.init(
            project=run.options.log_tracker_name or "atelier",
            name=run.name,
            id=file.read_text(encoding="utf-8").strip(),
            resume="allow",
            log_dir=str(run.folder / "swanlab"),
            settings=swanlab.Settings(
                interactive=False, probe=probe, terminal=terminal
            ),
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()
