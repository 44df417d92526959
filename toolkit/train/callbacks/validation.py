"""Measures the validation loss at its interval, writes it together with the loss of each
image, and saves the best weights.

How the loss is measured is in `toolkit.train.validation`, or in the trainer of an
extension; this callback gets it as a function. The best loss so far is part of the
checkpoint. Added by `standard` before `SaveCallback`, so that a checkpoint contains the
result of its step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import OutOfMemory, RunError
from toolkit.files import now, run_files
from toolkit.system.device import is_out_of_memory
from toolkit.system.distributed import PeerFailedError
from toolkit.train.callbacks.metrics import append_row, truncate_after_step
from toolkit.train.collectives import using_eval_weights
from toolkit.train.run import Callback, Interval, Run

logger = logging.getLogger(__name__)


MOST_LOSSES = 20_000
"""Numbers that a line of validation_images.jsonl holds, some 200 kB. Of a longer line,
only the numbers of the first images are kept."""

ByImage = Callable[[], Mapping[str, Sequence[float]]]
"""The losses of each image in the latest measurement, by a hash of the image."""

Measure = Callable[[Callable[[], bool]], dict[str, float] | None]
"""Given `should_stop`, the losses by name with the present weights, the mean first;
None after a stop."""


@dataclass(frozen=True)
class Validation:
    """The measurement that runs at the `validation` interval.

    >>> validation = Validation(lambda should_stop: {"validation/loss": 0.1}, "3f2a")
    >>> validation.measure(lambda: False)
    {'validation/loss': 0.1}
    """

    measure: Measure
    identity: str
    """Hash of the images and noise levels: losses with different hashes cannot be
    compared."""

    by_image: ByImage = dict


class ValidationCallback(Callback):
    """Validates before step 1, at its interval, and after the last step.

    The checkpoint has what a resume needs: the step that was validated last, and the
    best loss so far. So this callback comes before `SaveCallback`.

    Example::

        def save_best(run: Run) -> list[Path]:
            return saving.prepare_network(run, "best")()

        validating = ValidationCallback(validation, Interval(steps=100), save_best)
        callbacks = [validating, saving]  # in this order
    """

    included_in_step_time = False

    def __init__(
        self,
        validation: Validation,
        every: Interval,
        save_best: Callable[[Run], list[Path]],
    ) -> None:
        """save_best: writes the eval weights and returns the files, the main one
        first."""
        self.validation = validation
        self.every = every
        self.save_best = save_best

    def on_start(self, run: Run) -> None:
        step = run.state.step
        for name in (run_files.VALIDATION, run_files.VALIDATION_IMAGES):
            truncate_after_step(run.folder / name, step)
        known = run.state.extra.get("validation", {})
        if known.get("of") != self.validation.identity:
            if known.get("best"):
                logger.info(
                    "other images or noise levels are validated now: the best loss starts over"
                )
            run.state.extra["validation"] = {"of": self.validation.identity}
        self._report(run)
        if step == 0 or self.every.due(run):
            self.validate(run)

    def after_step(self, run: Run) -> None:
        if self.every.due(run) or run.complete:
            self.validate(run)

    def coming(self, run: Run) -> Mapping[str, float]:
        return {"validating": self.every.coming(run)}

    def on_end(self, run: Run, finished: bool) -> None:
        if finished:
            self.validate(run)

    def validate(self, run: Run) -> None:
        """Validates the current step once; a validation that a stop interrupts is
        repeated after the resume."""
        known = run.state.extra["validation"]
        step = run.state.step
        if known.get("step") == step:
            return
        try:
            with using_eval_weights(run), now.during("validating"):
                losses = self.validation.measure(lambda: run.interrupted)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"out of memory in the validation of step {step}. {run.oom_hint()}"
            ) from error
        if losses is None:
            return
        loss = next(iter(losses.values()))
        best = known.get("best")
        known["step"] = step
        is_best = math.isfinite(loss) and (best is None or loss < best["loss"])
        append_row(run.folder / run_files.VALIDATION, {"step": step, **losses})
        if by_image := _of_first_images(self.validation.by_image()):
            append_row(
                run.folder / run_files.VALIDATION_IMAGES,
                {"step": step, "of": self.validation.identity, "losses": by_image},
            )
        logger.info(
            f"validation loss {loss:.5f} at step {step}"
            + (", the best so far" if is_best else "")
        )
        if is_best:
            try:
                known["best"] = {
                    "step": step,
                    "loss": loss,
                    "file": self.save_best(run)[0].name,
                }
            except PeerFailedError:
                raise
            except RunError as error:  # a full disk, say: the training itself continues
                logger.warning(f"the best weights could not be saved: {error}")
        self._report(run)
        run.log(step, losses)
        for callback in run.listening():
            with run.contained(callback):
                callback.on_validation(run, losses)

    def _report(self, run: Run) -> None:
        """Writes the best step into run.json."""
        if best := run.state.extra["validation"].get("best"):
            # A resume from an older checkpoint may have moved it aside with the other
            # later files.
            exists = (run.folder / best["file"]).exists()
            run.status_fields["best"] = best | {
                "file": best["file"] if exists else None
            }


def _of_first_images(by_image: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """At most MOST_LOSSES numbers, to 8 digits; nothing where one is not finite, since
    the images would differ."""
    losses_by_image: dict[str, list[float]] = {}
    count = 0
    for image, losses in by_image.items():
        count = count + len(losses)
        if count > MOST_LOSSES:
            break
        if not all(map(math.isfinite, losses)):
            return {}
        losses_by_image[image[:12]] = [float(f"{loss:.8g}") for loss in losses]
    return losses_by_image
