"""Measures the validation loss at its interval, writes validation.jsonl, and saves the best weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

from toolkit.errors import RunError
from toolkit.files import run_files
from toolkit.files.writing import append_json_line, os_error_as_run_error
from toolkit.system.device import is_out_of_memory
from toolkit.train.callbacks.metrics import truncate_after_step
from toolkit.train.collectives import using_eval_weights
from toolkit.train.run import Callback, Interval, Run

logger = logging.getLogger(__name__)

FILE = run_files.VALIDATION

Measure = Callable[[Callable[[], bool]], dict[str, float] | None]
"""Given `should_stop`, the losses by name with the present weights, the mean first; None after a stop."""


class ValidationCallback(Callback):
    """Validates before step 1, at its interval, and after the last step.

    The checkpoint has what a resume needs: the step that was validated last, and the best loss so far. So this callback
    comes before `SaveCallback`.
    """

    included_in_step_time = False

    def __init__(
        self,
        measure: Measure,
        identity: str,
        every: Interval,
        save_best: Callable[[Run], list[Path]],
    ) -> None:
        """identity: hash of what is measured; losses of another one do not compare.

        save_best: writes the eval weights and returns the files, the main one first.
        """
        self.measure = measure
        self.identity = identity
        self.every = every
        self.save_best = save_best

    def on_start(self, run: Run) -> None:
        step = run.state.step
        truncate_after_step(run.folder / FILE, step)
        known = run.state.extra.get("validation", {})
        if known.get("of") != self.identity:
            if known.get("best"):
                logger.info("other images or noise levels are validated now: the best loss starts over")
            run.state.extra["validation"] = {"of": self.identity}
        self._report(run)
        if step == 0 or self.every.due(run):
            self.validate(run)

    def after_step(self, run: Run) -> None:
        if self.every.due(run) or run.complete:
            self.validate(run)

    def on_end(self, run: Run, finished: bool) -> None:
        if finished:
            self.validate(run)

    def validate(self, run: Run) -> None:
        """Validates the current step once; a validation that a stop interrupts is repeated after the resume."""
        known, step = run.state.extra["validation"], run.state.step
        if known.get("step") == step:
            return
        try:
            with using_eval_weights(run):
                losses = self.measure(lambda: run.interrupted)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(f"out of memory in the validation of step {step}. {run.oom_hint}") from error
        if losses is None:
            return
        loss = next(iter(losses.values()))
        known["step"], best = step, known.get("best")
        is_best = math.isfinite(loss) and (best is None or loss < best["loss"])
        path = run.folder / FILE
        truncate_after_step(path, step - 1)  # the step may be validated again after a resume
        line = {name: value if math.isfinite(value) else None for name, value in losses.items()}
        with os_error_as_run_error(path), path.open("a", encoding="utf-8", newline="\n") as file:
            append_json_line(file, {"step": step, **line})
        logger.info(f"validation loss {loss:.5f} at step {step}" + (", the best so far" if is_best else ""))
        if is_best:
            try:
                known["best"] = {"step": step, "loss": loss, "file": self.save_best(run)[0].name}
            except RunError as error:  # a full disk, say: the training itself continues
                logger.warning(f"the best weights could not be saved: {error}")
        self._report(run)
        run.log(step, losses)
        for callback in run.callbacks:
            callback.on_validation(run, losses)

    def _report(self, run: Run) -> None:
        """Writes the best step into run.json."""
        best = run.state.extra["validation"].get("best")
        if best:
            # A resume from an older checkpoint may have moved it aside with the other later files.
            exists = (run.folder / best["file"]).exists()
            run.status_fields["best"] = best | {"file": best["file"] if exists else None}
