"""Generates the sample images at their interval, with the eval weights (the EMA, where there is one)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from toolkit.data.images import over_white
from toolkit.files.run_files import SAMPLE_FILE, SAMPLES
from toolkit.files.writing import atomic_write, os_error_as_run_error
from toolkit.train.collectives import using_eval_weights
from toolkit.train.run import Callback, Interval, Run
from toolkit.train.sampling import SamplingInterrupted

logger = logging.getLogger(__name__)

GenerateImage = Callable[[int], Image.Image]
"""Generates the image of the sampler's prompt with this index."""

SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 95},  # without transparency
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "quality": 95},
}


@dataclass(frozen=True)
class SampleSet:
    """The images that are generated at one step."""

    prompts: range
    """Indices of the sampler's prompts; image i of the set has the i-th of them."""

    format: str
    """A key of SAVE_OPTIONS."""


class SampleCallback(Callback):
    """Images go to samples/<step>_<index>.<format>."""

    included_in_step_time = False

    def __init__(
        self,
        draw: GenerateImage,
        images: SampleSet,
        every: Interval,
        first: SampleSet | None,
        at_each_start: bool,
        event: Callable[..., None],
        texts: Sequence[str] = (),
    ) -> None:
        """first: the set before step 1; None: none. at_each_start: `images` also where a resume begins.

        texts: of all the sampler's prompts, for the event; empty: left out of it.
        """
        self.draw = draw
        self.images = images
        self.every = every
        self.first = first
        self.at_each_start = at_each_start
        self.event = event
        self.texts = texts
        self._sampled_at = -1

    def on_start(self, run: Run) -> None:
        step = run.state.step
        sample_set = (self.first if step == 0 else self.images) or SampleSet(range(0), "")
        # Also after a resume: the run may have ended in the middle of this set.
        expected = step == 0 or self.every.due(run) or run.complete
        if (expected and len(self._files_of(run, step)) < len(sample_set.prompts)) or (step and self.at_each_start):
            self.sample_now(run, sample_set)
        elif step:
            self._sampled_at = step

    def after_step(self, run: Run) -> None:
        if self.every.due(run):
            self.sample_now(run)

    def on_end(self, run: Run, finished: bool) -> None:
        if finished and self._sampled_at != run.state.step:
            self.sample_now(run)

    def sample_now(self, run: Run, images: SampleSet | None = None) -> None:
        """Generates one set at the current step: the one of the interval by default. One that a stop interrupts leaves
        no image."""
        images, step = images or self.images, run.state.step
        if not images.prompts:
            return
        for path in self._files_of(run, step):
            path.unlink()
        with using_eval_weights(run):
            files = self._generate_set(run, step, images)
        if files is None:
            for path in self._files_of(run, step):
                path.unlink()
            return
        self._sampled_at = step
        prompts: dict[str, Any] = {"prompts": [self.texts[prompt] for prompt in images.prompts]} if self.texts else {}
        self.event("sample", step=step, epoch=run.state.epochs_done, files=files, **prompts)
        count = f"{len(files)} sample image{'s' * (len(files) != 1)}"
        logger.info(f"generated {count} at step {step} in {run.folder / SAMPLES}")

    def _generate_set(self, run: Run, step: int, images: SampleSet) -> list[str] | None:
        """The names of the images; None when a stop interrupted the set."""
        files = []
        for index, prompt in enumerate(images.prompts):
            try:
                image = self.draw(prompt)
            except SamplingInterrupted:
                return None
            path = run.folder / SAMPLES / f"{step:09d}_{index}.{images.format}"
            with os_error_as_run_error(path), atomic_write(path) as temporary:
                (over_white(image) if images.format == "jpg" else image).save(temporary, **SAVE_OPTIONS[images.format])
            files.append(path.name)
        return files

    @staticmethod
    def _files_of(run: Run, step: int) -> list[Path]:
        """Those of earlier versions too."""
        found = sorted((run.folder / SAMPLES).glob(f"*{step:09d}_*"))
        return [path for path in found if (match := SAMPLE_FILE.fullmatch(path.name)) and int(match["step"]) == step]
