"""Weights & Biases, in a separate process.

The `wandb` package replaces `sys.exit`, changes the environment, and at exit waits for
its uploads without a limit, in an `atexit` handler. None of this may happen to the
training process, so a child process uses it: it reads JSON lines from its standard
input, whose end is the end of the run.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from toolkit.errors import RunError
from toolkit.files.redact import register_secret
from toolkit.files.writing import write_text
from toolkit.train.trackers.tracker import RunInfo, Tracker

CHILD_SCRIPT = Path(__file__).with_name("wandb_child.py")
RUN_ID = Path("wandb") / "run_id"
"""File in the run's folder with the id of the W&B run, for a resume."""


class WandbTracker(Tracker):
    """One W&B run per training run, across resumes; its local files are in
    `<run>/wandb/`.

    W&B accepts the values of a step once: values of repeated steps stay as they are.

    Example::

        tracker = WandbTracker(RunInfo("maya", folder, 0, section.logging))
        tracker.scalars(1, {"loss/current": 0.12})
        tracker.close()
    """

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        options = run.options
        register_secret([options.wandb_api_key])
        key = {"WANDB_API_KEY": options.wandb_api_key} if options.wandb_api_key else {}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child runs
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(CHILD_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env=os.environ | key,
            start_new_session=True,  # Ctrl-C is for the training, which closes the child's input at its end
        )
        assert self._child.stdin is not None  # it is a pipe
        self._to_child = self._child.stdin
        self._send(
            project=options.wandb_project or options.log_tracker_name or "atelier",
            name=options.wandb_run_name or run.name,
            id=run_id(run),
            resume="allow",
            dir=str(run.folder),
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._send(step=step, scalars=values)

    def image(self, step: int, name: str, path: Path) -> None:
        self._send(step=step, images={name: str(path)})

    def close(self) -> None:
        self._to_child.close()
        if self._child.wait():
            raise RunError(self._last_error_line())

    def _send(self, **message: Any) -> None:
        try:
            self._to_child.write(json.dumps(message).encode() + b"\n")
            self._to_child.flush()
        except OSError as error:  # the child has ended
            raise RunError(self._last_error_line()) from error

    def _last_error_line(self) -> str:
        self._child.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next(
            (line.strip() for line in reversed(lines) if line.strip()),
            "it ended silently",
        )


def run_id(run: RunInfo) -> str:
    """The id of the W&B run: the saved one on a resume, else a new one, which is saved
    in the run's folder. A run that starts at step 0 always gets a new one."""
    file = run.folder / RUN_ID
    if run.step and file.exists():
        return file.read_text(encoding="utf-8").strip()
    new = secrets.token_hex(4)
    write_text(file, new + "\n")
    return new
