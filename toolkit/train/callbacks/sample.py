"""Generates the sample images at their interval, with the eval weights (the EMA, where
there is one).

The callback does not know how an image is made: it gets a function, from
`sampling.Sampler` or from another trainer. It chooses the steps, writes the files,
and records the event `sample`. Added by `standard`; the trainers fill in `Samples`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from toolkit.data.pixels.images import over_white
from toolkit.files import now
from toolkit.files.run_files import LAYERS, SAMPLE_FILE, SAMPLES
from toolkit.files.writing import atomic_write, os_error_as_run_error, short
from toolkit.train.collectives import using_eval_weights
from toolkit.train.run import Callback, Interval, Run
from toolkit.train.sampling import SamplingInterrupted, write_layers

logger = logging.getLogger(__name__)

GenerateImage = Callable[[int], Image.Image]
"""Generates the image of the sampler's prompt with this index."""

SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 95},  # without transparency
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "quality": 95},
}


@dataclass(frozen=True)
class Samples:
    """The images that are generated at the `sample` interval.

    >>> samples = Samples(lambda index: Image.new("RGB", (64, 64)), texts=["a cat"])
    >>> samples.draw(0).size
    (64, 64)
    """

    draw: GenerateImage
    texts: Sequence[str]
    """A text for each image, such as its prompt."""

    layers: Mapping[int, int] = field(default_factory=dict)
    """Index of an image that is a row of layers (`layers_of`) -> their number."""


class SampleCallback(Callback):
    """Images go to samples/<step>_<index>.<format>, layers to samples/layers/.

    Example::

        sampling = SampleCallback(samples, "jpg", Interval(steps=250))
        run.callbacks = [MetricsCallback(), saving, sampling]
    """

    included_in_step_time = False

    def __init__(
        self,
        samples: Samples,
        format: str,
        every: Interval,
        draws_first: bool = True,
        at_each_start: bool = False,
    ) -> None:
        """format: a key of SAVE_OPTIONS. draws_first: there is a set before step 1.
        at_each_start: also one where a resume begins."""
        self.samples = samples
        self.format = format
        self.draws_first = draws_first
        self.every = every
        self.at_each_start = at_each_start
        self._sampled_at = -1

    def on_start(self, run: Run) -> None:
        step = run.state.step
        # Also after a resume: the run may have ended in the middle of this set.
        expected = self.draws_first
        if step:
            expected = self.every.due(run) or run.complete
        if (expected and len(self._files_of(run, step)) < len(self.samples.texts)) or (
            step and self.at_each_start
        ):
            self.sample_now(run)
        elif step:
            self._sampled_at = step

    def after_step(self, run: Run) -> None:
        if self.every.due(run):
            self.sample_now(run)

    def coming(self, run: Run) -> Mapping[str, float]:
        return {"sampling": self.every.coming(run) * len(self.samples.texts)}

    def on_end(self, run: Run, finished: bool) -> None:
        if finished and self._sampled_at != run.state.step:
            self.sample_now(run)

    def sample_now(self, run: Run) -> None:
        """Generates one set at the current step. One that a stop interrupts leaves no
        image."""
        texts = self.samples.texts
        step = run.state.step
        if not texts:
            return
        self._remove(run, step)
        with using_eval_weights(run), now.during("sampling", 1, len(texts)):
            try:
                files = self._generate_set(run, step)
            except SamplingInterrupted:
                self._remove(run, step)
                return
        self._sampled_at = step
        run.event(
            "sample",
            step=step,
            epoch=run.state.epochs_done,
            files=files,
            prompts=[*texts],
        )
        plural = "" if len(files) == 1 else "s"
        logger.info(
            f"generated {len(files)} sample image{plural} at step {step} in {short(run.folder / SAMPLES)}"
        )

    def _generate_set(self, run: Run, step: int) -> list[str]:
        """The names of the images. Raises SamplingInterrupted."""
        samples = self.samples
        files = list[str]()
        for index in range(len(samples.texts)):
            now.tell("sampling", index + 1, len(samples.texts))
            image = samples.draw(index)
            path = run.folder / SAMPLES / f"{step:09d}_{index}.{self.format}"
            with os_error_as_run_error(path), atomic_write(path) as temporary:
                (over_white(image) if self.format == "jpg" else image).save(
                    temporary, **SAVE_OPTIONS[self.format]
                )
            files.append(path.name)
            write_layers(
                path.parent / LAYERS, path.stem, image, samples.layers.get(index, 0)
            )
        return files

    def _remove(self, run: Run, step: int) -> None:
        layers = (run.folder / SAMPLES / LAYERS).glob(f"{step:09d}_*")
        for path in (*self._files_of(run, step), *layers):
            path.unlink()

    @staticmethod
    def _files_of(run: Run, step: int) -> list[Path]:
        return [
            path
            for path in sorted((run.folder / SAMPLES).glob(f"{step:09d}_*"))
            if (match := SAMPLE_FILE.fullmatch(path.name))
            and int(match["step"]) == step
        ]
