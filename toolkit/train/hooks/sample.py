"""Draws the sample pictures at their interval, with the weights that are saved (the average, when there is one)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from toolkit.contracts import StepResult
from toolkit.files import replaced
from toolkit.train.hook import Hook
from toolkit.train.hooks.intervals import due
from toolkit.train.run import Run

DrawPicture = Callable[[int], Image.Image]
"""Draws the sample with this index."""

SAVE_OPTIONS = {
    "jpg": {"format": "JPEG", "quality": 95},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "quality": 95},
}


class SampleHook(Hook):
    """Pictures go to samples/<milliseconds>__<step>_<index>.<format>."""

    counts_as_step_time = False

    def __init__(
        self,
        draw: DrawPicture,
        count: int,
        every: int,
        start: int,
        first: bool,
        picture_format: str,
        note: Callable[[str], None],
        event: Callable[..., None],
    ) -> None:
        """count: pictures in a set. every, start: optimizer steps (0 = never). first: a set before step 1."""
        self.draw = draw
        self.count = count
        self.every = every
        self.start = start
        self.first = first
        self.format = picture_format
        self.note = note
        self.event = event
        self._drawn_at = -1

    def on_start(self, run: Run) -> None:
        if run.state.step:
            self._drawn_at = run.state.step  # what was due at this step was drawn before the run ended
        elif self.first:
            self.sample_now(run)

    def after_step(self, run: Run, result: StepResult) -> None:
        if due(result.step, self.every, self.start):
            self.sample_now(run)

    def on_end(self, run: Run, finished: bool) -> None:
        if finished and self._drawn_at != run.state.step:
            self.sample_now(run)

    def sample_now(self, run: Run) -> None:
        """Draws one set at the current step."""
        step = run.state.step
        folder = run.folder / "samples"
        files = []
        with ExitStack() as stack:
            for role in run.roles.values():
                if role.ema:
                    stack.enter_context(role.ema.applied())
            for index in range(self.count):
                picture = self.draw(index)
                path = folder / f"{time.time_ns() // 1_000_000}__{step:09d}_{index}.{self.format}"
                self._write(picture, path)
                files.append(path.name)
        self._drawn_at = step
        self.event("sample", step=step, files=files)
        self.note(f"drew {len(files)} sample{'s' * (len(files) != 1)} at step {step}")

    def _write(self, picture: Image.Image, path: Path) -> None:
        with replaced(path) as temporary:
            picture.save(temporary, **SAVE_OPTIONS[self.format])
