"""Weights & Biases, in a process of its own.

The `wandb` package replaces `sys.exit`, changes the environment, and at the end of a process waits for its uploads
without a limit, from an `atexit` callback. None of this may happen to a training, so a child process does it; it is
told by JSON lines on its standard input what to show, and knows from the end of these that the run is over.
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
from toolkit.files import write_text
from toolkit.redact import register_secret
from toolkit.train.trackers.tracker import RunInfo, Tracker

PROCESS_BASELINE = Path(__file__).with_name("wandb_child.py")
RUN_ID = Path("wandb") / "run_id"
"""In the run's folder: the W&B run that a resume goes on with."""


class WandbTracker(Tracker):
    """One W&B run for a training, however often it is started; its local files are in `<run>/wandb/`.

    W&B takes a step's values once: what it has of steps that are trained again stays as it is.
    """

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        options = run.options
        register_secret([options.wandb_api_key])
        key = {"WANDB_API_KEY": options.wandb_api_key} if options.wandb_api_key else {}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child is
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS_BASELINE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            env=os.environ | key,
            start_new_session=True,  # Ctrl-C is for the training, which tells the child when it is over
        )
        assert self._child.stdin is not None  # a pipe was asked for
        self._to_child = self._child.stdin
        self._send(
            project=options.wandb_project or options.log_tracker_name or "atelier",
            name=options.wandb_run_name or run.name,
            entity=options.wandb_entity or None,
            id=run_id(run),
            resume="allow",
            dir=str(run.folder),
            config=run.settings,
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._send(step=step, scalars=values)

    def image(self, step: int, name: str, path: Path) -> None:
        self._send(step=step, images={name: str(path)})

    def close(self) -> None:
        self._to_child.close()
        if self._child.wait():
            raise RunError(self._last_words())

    def _send(self, **message: Any) -> None:
        try:
            self._to_child.write(json.dumps(message).encode() + b"\n")
            self._to_child.flush()
        except OSError as error:  # the child has ended
            raise RunError(self._last_words()) from error

    def _last_words(self) -> str:
        self._child.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word")


def run_id(run: RunInfo) -> str:
    """The id of the W&B run: the one this training has had, or a new one when it begins."""
    file = run.folder / RUN_ID
    if run.step and file.exists():
        return file.read_text(encoding="utf-8").strip()
    new = secrets.token_hex(4)
    write_text(file, new + "\n")
    return new
