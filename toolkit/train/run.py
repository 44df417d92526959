"""A training run while it is going on: its weights by role, its state, and who watches.

The loop acts, callbacks observe: a callback writes files and may ask for a stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.distributed import ProcessGroup
from toolkit.interfaces import StepResult, TrainState
from toolkit.train.loss_scale import LossScaler
from toolkit.train.optimizer_step import Role


@dataclass
class Run:
    """Everything the training loop and its callbacks share."""

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
    """Micro-batches of one epoch, for reading states of earlier versions; 0: not known."""

    callbacks: Sequence[Callback] = ()
    state: TrainState = field(default_factory=TrainState)
    checkpoint_metadata: dict[str, Any] = field(default_factory=dict)
    """JSON values that every state keeps beside the training's own: the settings, the dataset."""

    oom_hint: str = ""
    """What the user can change after an out-of-memory error, most effective first."""

    loss_scaler: LossScaler | None = None
    """Scales the losses of a computation in float16."""

    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    """The process group of this run. Callbacks run on rank 0."""

    sharded: bool = False
    """All ranks have to run the same passes: none may abort an accumulation step on its own."""

    broadcast_command: Callable[[Callable[..., Any]], None] = lambda order: None
    """Set by `lockstep.follow`: has the other processes do the same, while they wait for the first one."""

    should_stop: Callable[[], bool] = lambda: False
    """Whether a signal asks for an end; read between micro-batches."""

    metrics_sync_interval: int = 1
    """Optimizer steps between two copies of the metrics to the host; 1: after each step."""

    flush_metrics: Callable[[], None] = lambda: None
    """Set by the loop: copies the metrics of all steps so far to the host and passes them to the callbacks."""

    log: Callable[[int, dict[str, float]], None] = lambda step, values: None
    """Shows numbers of a step, such as `{"validation/loss": 0.1}`, where the job's trackers draw curves."""

    status_fields: dict[str, Any] = field(default_factory=dict)
    """JSON values that callbacks add to run.json."""

    stop_reason: str | None = None
    """Set by a callback that asks for a stop."""

    early_stop_reason: str | None = None
    """Set by a callback, or where the source of batches ends, when the run is complete before `steps`: why."""

    @contextmanager
    def using_eval_weights_local(self) -> Iterator[None]:
        """Inside the block all weights are those that are kept, after it their own values again, in this process."""
        with ExitStack() as stack:
            for role in self.roles.values():
                stack.enter_context(role.using_eval_weights())
            yield

    @property
    def interrupted(self) -> bool:
        """Whether somebody asks for an end before the run is complete."""
        return self.stop_reason is not None or self.should_stop()

    @property
    def stopping(self) -> bool:
        """Whether the loop should end at the next boundary."""
        return self.early_stop_reason is not None or self.interrupted

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train."""
        return self.early_stop_reason is not None or self.state.step >= self.steps


class Callback:
    """Base class of callbacks; each overrides the events it needs. It never changes weights, batches or random
    state.
    """

    included_in_step_time = True
    """Whether its time counts in `step_s`: logging does, saving and sampling do not."""

    def on_start(self, run: Run) -> None:
        """Before the first step of this process; `run.state.step` is 0, or the step that the run resumes from."""

    def after_step(self, run: Run) -> None:
        """After every optimizer step; `run.state.step` is its number. Called when it is safe to save or to sample."""

    def on_metrics(self, run: Run, result: StepResult) -> None:
        """The numbers of one step, in order: each step once, before its `after_step` or some steps later.

        Before anything is saved at a step, the results up to it have been given (`run.flush_metrics`).
        """

    def on_end(self, run: Run, finished: bool) -> None:
        """After the last step; `finished` is False when a stop was asked for before all steps were done."""

    def on_error(self, run: Run, error: BaseException) -> None:
        """The run failed with `error`; close files and record the failure."""
