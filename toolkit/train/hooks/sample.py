"""Draws the sample pictures at their interval, with the weights that are saved (the average, when there is one)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from toolkit.files import naming_failures, replaced
from toolkit.train.hook import Hook
from toolkit.train.hooks.intervals import due
from toolkit.train.run import Run
from toolkit.train.sampling import SamplingStopped

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
        step = run.state.step
        wanted = self.first if step == 0 else due(step, self.every, self.start) or step == run.steps
        if wanted and len(self._files_of(run, step)) < self.count:
            self.sample_now(run)  # also after a resume: the run may have ended in the middle of this set
        elif step:
            self._drawn_at = step

    def after_step(self, run: Run) -> None:
        if due(run.state.step, self.every, self.start):
            self.sample_now(run)

    def on_end(self, run: Run, finished: bool) -> None:
        if finished and self._drawn_at != run.state.step:
            self.sample_now(run)

    def sample_now(self, run: Run) -> None:
        """Draws one set at the current step; a set that is broken off by a stop leaves no picture."""
        step = run.state.step
        for path in self._files_of(run, step):
            path.unlink()
        try:
            files = self._draw_set(run, step)
        except SamplingStopped:
            for path in self._files_of(run, step):
                path.unlink()
            return
        self._drawn_at = step
        self.event("sample", step=step, files=files)
        self.note(f"drew {len(files)} sample{'s' * (len(files) != 1)} at step {step}")

    def _draw_set(self, run: Run, step: int) -> list[str]:
        files = []
        with ExitStack() as stack:
            for role in run.roles.values():
                stack.enter_context(role.evaluation())
            for index in range(self.count):
                picture = self.draw(index)
                path = run.folder / "samples" / f"{time.time_ns() // 1_000_000}__{step:09d}_{index}.{self.format}"
                with naming_failures(path), replaced(path) as temporary:
                    picture.save(temporary, **SAVE_OPTIONS[self.format])
                files.append(path.name)
        return files

    @staticmethod
    def _files_of(run: Run, step: int) -> list[Path]:
        return sorted((run.folder / "samples").glob(f"*__{step:09d}_*"))
