"""A training run in progress: its parameters by role, its state, its callbacks and
their intervals, its loss scale.

The loop trains, callbacks observe: a callback writes files and may request a stop. When
something is due (every n optimizer steps, or at the end of every n epochs) depends on
the training state only, so that a resume changes nothing.

Loss scaling, for float16: losses are scaled up before the backward pass, so that small
gradients do not underflow, and gradients are scaled down after it. The rule is the same
as in `torch.amp.GradScaler`, but the host never waits for the device.

A trainer builds the `Run`; the loop and all callbacks share it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from toolkit.contracts.training import StepResult, TrainState
from toolkit.errors import ReportedExit, RunError, UserError
from toolkit.files.run_files import EVENTS, SAMPLES, EventLog
from toolkit.memory.compiling import Programs
from toolkit.system.distributed import ProcessGroup
from toolkit.train.optimizer_step import Role

logger = logging.getLogger(__name__)

START = 2.0**16
GROWTH = 2.0
BACKOFF = 0.5
SCALE_INTERVAL = 2000


class LossScaler:
    """The loss scale: halved when a gradient is not finite, doubled after
    SCALE_INTERVAL good steps in a row.

    >>> scaler = LossScaler()
    >>> scaler.update(finite=torch.tensor(False))
    >>> scaler.state_dict()
    {'scale': 32768.0, 'good_steps': 0}
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.scale = torch.full((), START, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int64, device=device)

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """Divides gradients of scaled losses by the scale, in place.

        >>> gradient = torch.full((1,), 65536.0)
        >>> LossScaler().unscale_([gradient])
        >>> gradient
        tensor([1.])
        """
        if gradients:
            torch._foreach_mul_(list(gradients), 1 / self.scale)

    def update(self, finite: Tensor) -> None:
        """Updates the scale after an optimizer step, without waiting for the device.
        finite: whether all gradients were finite (0-dim bool).

        A doubled scale that is not finite in float32 is not taken. Source: the rule and
        its numbers are torch.amp.GradScaler's.
        """
        finite = finite.to(self.scale.device)
        good_steps = torch.where(finite, self._good_steps + 1, 0)
        grows = good_steps == SCALE_INTERVAL
        grown = torch.where(
            grows & torch.isfinite(self.scale * GROWTH), self.scale * GROWTH, self.scale
        )
        self.scale = torch.where(finite, grown, self.scale * BACKOFF)
        self._good_steps = torch.where(grows, 0, good_steps)

    def state_dict(self) -> dict[str, Any]:
        """JSON values; waits for the device."""
        return {"scale": float(self.scale), "good_steps": int(self._good_steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`. Raises KeyError when an entry is missing."""
        self.scale.fill_(state["scale"])
        self._good_steps.fill_(state["good_steps"])


@dataclass(frozen=True)
class Saved:
    """Files of weights that were written (`Callback.on_save`).

    >>> details = {"step": 5, "epoch": 1, "files": ["a.safetensors"], "removed": []}
    >>> Saved.of(Path("run"), details).files
    (PosixPath('run/a.safetensors'),)
    """

    step: int
    """Optimizer steps done."""

    epoch: int
    """Completed epochs."""

    files: tuple[Path, ...]
    """The files, or folders of a model, that are new. They are complete."""

    removed: tuple[Path, ...] = ()
    """Older ones, which `max_step_saves_to_keep` has deleted."""

    @classmethod
    def of(cls, folder: Path, details: Mapping[str, Any]) -> Saved:
        """The record of the event `save`. folder: of the run."""
        files, removed = (
            tuple(folder / name for name in details.get(key, ()))
            for key in ("files", "removed")
        )
        return cls(details["step"], details.get("epoch", 0), files, removed)


@dataclass(frozen=True)
class Sampled:
    """Sample images that were generated (`Callback.on_sample`)."""

    step: int
    """Optimizer steps done; 0: before the first one."""

    epoch: int
    """Completed epochs."""

    files: tuple[Path, ...]
    """The images, in the order of `sample`."""

    prompts: tuple[str, ...]
    """The prompt of each."""

    @classmethod
    def of(cls, folder: Path, details: Mapping[str, Any]) -> Sampled:
        """The record of the event `sample`. folder: of the run."""
        files = tuple(folder / SAMPLES / name for name in details.get("files", ()))
        epoch = details.get("epoch", 0)
        return cls(details["step"], epoch, files, tuple(details.get("prompts", ())))


@dataclass(frozen=True)
class Encoded:
    """The data is ready to be trained on (`Callback.on_encoded`)."""

    items: int
    """Items of the dataset whose latents and embeddings are ready; 0 where they are
    made while training, as of a stream."""

    seconds: float
    """How long it took. What the cache had is a part of it."""


RECORDS: dict[str, type[Saved | Sampled]] = {"save": Saved, "sample": Sampled}
"""Event -> what its callbacks are told."""


@dataclass
class Run:
    """Everything that the training loop and its callbacks share.

    >>> run = Run("maya", Path("output"), 100, grad_accum_steps=1, seed=42, roles={})
    >>> run.complete
    False
    """

    name: str
    """Stem of the run's files."""

    folder: Path
    steps: int
    """Optimizer steps in all."""

    grad_accum_steps: int
    """Micro-batches per optimizer step."""

    seed: int
    roles: dict[str, Role]
    batches_per_epoch: int = 0
    """Micro-batches of one epoch; 0: not known."""

    callbacks: Sequence[Callback] = ()
    state: TrainState = field(default_factory=TrainState)
    checkpoint_metadata: dict[str, Any] = field(default_factory=dict)
    """Further JSON values of every checkpoint: the settings, the dataset."""

    oom_hint: Callable[[], str] = lambda: ""
    """Advice to the user after an out-of-memory error, most effective first."""

    loss_scaler: LossScaler | None = None
    """Loss scaling, with the compute dtype float16."""

    programs: Programs = field(default_factory=Programs)
    """The compiled programs that a step runs; by default none."""

    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    """The process group of this run. Callbacks run on rank 0."""

    sharded: bool = False
    """The model is sharded: all ranks have to run the same passes, and none may abort
    an accumulation step alone."""

    broadcast_command: Callable[[Callable[..., Any]], None] = lambda command: None
    """Set by `collectives.install_command_handler`: the other ranks run the command
    while they wait for rank 0."""

    should_stop: Callable[[], bool] = lambda: False
    """Whether a signal requests a stop; called between micro-batches."""

    metrics_sync_interval: int = 1
    """Optimizer steps between two copies of the metrics to the host; 1: after each
    step."""

    flush_metrics: Callable[[], None] = lambda: None
    """Set by the loop: copies the metrics of all steps so far to the host and passes
    them to the callbacks."""

    status_fields: dict[str, Any] = field(default_factory=dict)
    """JSON values that callbacks add to run.json."""

    stop_reason: str | None = None
    """Set by a callback that requests a stop."""

    early_stop_reason: str | None = None
    """Why the run is complete before `steps`; set by a callback, or where the source of
    batches ends."""

    failed: bool = False
    """Whether the callbacks were told of the error that ends it."""

    _switched_off: list[Callback] = field(default_factory=list)

    def event(self, event: str, **details: object) -> None:
        """Adds an event with its details (JSON values) to events.jsonl, then tells the
        callbacks of saves and samples. Also called by the thread that saves."""
        EventLog(self.folder / EVENTS).add(event, **details)
        record = RECORDS[event].of(self.folder, details) if event in RECORDS else None
        for callback in self.listening():
            with self.contained(callback):
                if isinstance(record, Saved):
                    callback.on_save(self, record)
                elif isinstance(record, Sampled):
                    callback.on_sample(self, record)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Logs metrics of a step, such as `{"validation/loss": 0.1}`, to the job's
        trackers."""
        for callback in self.listening():
            with self.contained(callback):
                callback.log(step, values)

    def fail(self, error: BaseException) -> None:
        """Tells the callbacks that `error` ends the run."""
        self.failed = True
        for callback in self.listening():
            with self.contained(callback, ended=True):
                callback.on_error(self, error)

    def listening(self) -> Iterator[Callback]:
        """The callbacks, in call order, without those that are switched off."""
        for callback in self.callbacks:
            if not any(callback is one for one in self._switched_off):
                yield callback

    @contextmanager
    def contained(self, callback: Callback, ended: bool = False) -> Iterator[None]:
        """Every call of a callback is made inside such a block. An error of one that is
        not `essential` is reported, and the callback is switched off. UserError and
        RunError go on and end the run, unless it has `ended` with another error.

        `sys.exit` counts as an error: a thread of the run may be the one that calls.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            ends = isinstance(error, UserError | RunError | ReportedExit) and not ended
            if callback.essential or ends:
                raise
            self._switched_off.append(callback)
            cls = type(callback)
            frames = traceback.extract_tb(error.__traceback__)
            own = [one for one in frames if one.filename == _file_of(cls)]
            at = (own or frames)[-1]
            message = f"{cls.__qualname__} failed ({at.filename}:{at.lineno}): {type(error).__name__}: {error}"
            logger.warning(f"the callback {message}. The run continues without it.")
            details = {"kind": "callback", "message": message}
            details |= {"cause": "an error in its code, or in what it works on"}
            details |= {"remedy": "Correct it, or leave it out of the job."}
            # a full disk, for example: the next save reports it too, and decides
            with suppress(RunError):
                EventLog(self.folder / EVENTS).add(
                    "warning", step=self.state.step, **details
                )

    @contextmanager
    def using_eval_weights_local(self) -> Iterator[None]:
        """Swaps the eval weights (EMA) in inside the block, on this rank only, and
        restores the raw ones after it."""
        with ExitStack() as stack:
            for role in self.roles.values():
                stack.enter_context(role.using_eval_weights())
            yield

    @property
    def main_role(self) -> str:
        """The first role. Its loss counts as the loss of a step."""
        return next(iter(self.roles), "")

    @property
    def interrupted(self) -> bool:
        """Whether a stop is requested before the run is complete."""
        return self.stop_reason is not None or self.should_stop()

    @property
    def stopping(self) -> bool:
        """Whether the loop should end at the next boundary."""
        return self.early_stop_reason is not None or self.interrupted

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train."""
        return self.early_stop_reason is not None or self.state.step >= self.steps


def _file_of(cls: type) -> str:
    """The source file of a class; empty where it has none."""
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or ""


class Callback:
    """Base class of callbacks; each overrides the events it needs. It never changes
    weights, batches or the random state.

    One that raises is reported once and switched off; the run goes on. To end the run,
    it raises RunError.

    Example::

        class PrintLoss(Callback):
            def on_metrics(self, run: Run, result: StepResult) -> None:
                print(f"step {result.step}: {result.loss:.4f}")
    """

    essential: ClassVar[bool] = False
    """Whether any error in it ends the run: so it is with the program's own, and with
    what is derived from them."""

    included_in_step_time = True
    """Whether its time counts in `step_s`: logging does, saving and sampling do not."""

    everywhere: ClassVar[bool] = False
    """Whether every rank has it where `callbacks` names it, not the first one only. On
    the others it is told of the start, each step, the end, and an error."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("toolkit."):
            cls.essential = True

    def __init__(self, section: Any = None) -> None:
        """section: its entry of `callbacks`, checked; None for one that is not named
        there."""
        self.section = section

    def coming(self, run: Run) -> Mapping[str, float]:
        """The work that is still to come, without the work in progress: phase of
        `toolkit.files.now` -> number of its units, such as `{"sampling": 6}` for six
        images."""
        return {}

    def before_start(self, folder: Path, name: str, resumes: bool) -> None:
        """Before it is decided where the run begins, on the first rank. An error ends
        the run.

        folder: of the run. name: its job's, followed by `/` and the process's where it
        has one. resumes: whether it would go on from the newest state in the folder.
        """

    def on_encoded(self, run: Run, encoded: Encoded) -> None:
        """Images and captions are encoded, and the model is loaded; no checkpoint is
        yet."""

    def on_start(self, run: Run) -> None:
        """Before the first step of this process; `run.state.step` is 0, or the step
        that the run resumes from."""

    def after_step(self, run: Run) -> None:
        """After every optimizer step; `run.state.step` is its number. Called when it is
        safe to save or to sample."""

    def on_metrics(self, run: Run, result: StepResult) -> None:
        """The metrics of one step: every step once, in order, before its `after_step`
        or some steps later.

        Before a step is saved, the metrics of all steps up to it are passed on
        (`run.flush_metrics`).
        """

    def on_validation(self, run: Run, losses: dict[str, float]) -> None:
        """The losses of a validation of `run.state.step`, by their logged name."""

    def on_save(self, run: Run, saved: Saved) -> None:
        """Files of weights were written, before their checkpoint or after it. Called by
        the thread that saves."""

    def on_sample(self, run: Run, sampled: Sampled) -> None:
        """The sample images of a step were generated; those of step 0 before this
        callback's `on_start`."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Further metrics of a step (`Run.log`)."""

    def on_end(self, run: Run, finished: bool) -> None:
        """After the last step; `finished` is False when a stop was requested before all
        steps were done."""

    def on_error(self, run: Run, error: BaseException) -> None:
        """The run failed with `error`; close files and record the failure. Also before
        `on_start`, while the model is loaded and the data is encoded: `run` has no
        roles then."""


def due(step: int, every: int) -> bool:
    """Whether optimizer step `step` is a multiple of `every`; never with `every` 0.

    >>> due(100, every=50), due(100, every=0)
    (True, False)
    """
    return bool(every) and step % every == 0


@dataclass(frozen=True)
class Interval:
    """An interval in steps or epochs; 0 is never. Where both are given, both count.

    >>> run = Run("maya", Path("output"), 1000, grad_accum_steps=1, seed=42, roles={})
    >>> run.state.step = 500
    >>> Interval(steps=250).due(run)
    True
    >>> Interval(steps=250).coming(run)
    2
    """

    steps: int = 0
    epochs: int = 0
    start: int = 0
    """Not before this optimizer step."""

    def due(self, run: Run) -> bool:
        """Whether it is due after the step just done: a multiple of `steps`, or the
        first step after an epoch's end.

        An accumulation step may contain the ends of several epochs; it is due once.
        """
        state = run.state
        if state.step < self.start:
            return False
        ended = (
            self.epochs
            and state.epochs_done // self.epochs > state.epochs_before // self.epochs
        )
        return bool(ended) or due(state.step, self.steps)

    def coming(self, run: Run) -> int:
        """How often it is still due after the step just done, the last step included in
        any case."""
        step = run.state.step
        last = run.steps
        if step >= last:
            return 0
        begin = max(step, self.start - 1)
        by_steps = last // self.steps - begin // self.steps if self.steps else 0
        steps_per_epoch = self.epochs * run.batches_per_epoch / run.grad_accum_steps
        by_epochs = (
            int(last / steps_per_epoch) - int(begin / steps_per_epoch)
            if steps_per_epoch
            else 0
        )
        at_last = due(last, self.steps) or bool(
            steps_per_epoch and last % steps_per_epoch == 0
        )
        return max(by_steps, by_epochs) + (not at_last)
