"""A training run in progress: its parameters by role, its state, and its callbacks.

The loop trains, callbacks observe: a callback writes files and may request a stop.
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
    """Everything that the training loop and its callbacks share."""

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
    """Micro-batches of one epoch, for reading checkpoints of earlier versions; 0: not known."""

    callbacks: Sequence[Callback] = ()
    state: TrainState = field(default_factory=TrainState)
    checkpoint_metadata: dict[str, Any] = field(default_factory=dict)
    """Further JSON values of every checkpoint: the settings, the dataset."""

    oom_hint: str = ""
    """What the user can change after an out-of-memory error, most effective first."""

    loss_scaler: LossScaler | None = None
    """Loss scaling, with the compute dtype float16."""

    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    """The process group of this run. Callbacks run on rank 0."""

    sharded: bool = False
    """The model is sharded: all ranks have to run the same passes, and none may abort an accumulation step alone."""

    broadcast_command: Callable[[Callable[..., Any]], None] = lambda command: None
    """Set by `rank0_commands.install_command_handler`: the other ranks run the command while they wait for rank 0."""

    should_stop: Callable[[], bool] = lambda: False
    """Whether a signal requests a stop; called between micro-batches."""

    metrics_sync_interval: int = 1
    """Optimizer steps between two copies of the metrics to the host; 1: after each step."""

    flush_metrics: Callable[[], None] = lambda: None
    """Set by the loop: copies the metrics of all steps so far to the host and passes them to the callbacks."""

    log: Callable[[int, dict[str, float]], None] = lambda step, values: None
    """Logs metrics of a step, such as `{"validation/loss": 0.1}`, to the job's trackers."""

    status_fields: dict[str, Any] = field(default_factory=dict)
    """JSON values that callbacks add to run.json."""

    stop_reason: str | None = None
    """Set by a callback that requests a stop."""

    early_stop_reason: str | None = None
    """Why the run is complete before `steps`; set by a callback, or where the source of batches ends."""

    @contextmanager
    def using_eval_weights_local(self) -> Iterator[None]:
        """Swaps the eval weights (EMA) in inside the block, on this rank only, and restores the raw ones after it."""
        with ExitStack() as stack:
            for role in self.roles.values():
                stack.enter_context(role.using_eval_weights())
            yield

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


class Callback:
    """Base class of callbacks; each overrides the events it needs. It never changes weights, batches or the random
    state.
    """

    included_in_step_time = True
    """Whether its time counts in `step_s`: logging does, saving and sampling do not."""

    def on_start(self, run: Run) -> None:
        """Before the first step of this process; `run.state.step` is 0, or the step that the run resumes from."""

    def after_step(self, run: Run) -> None:
        """After every optimizer step; `run.state.step` is its number. Called when it is safe to save or to sample."""

    def on_metrics(self, run: Run, result: StepResult) -> None:
        """The metrics of one step: every step once, in order, before its `after_step` or some steps later.

        Before a step is saved, the metrics of all steps up to it are passed on (`run.flush_metrics`).
        """

    def on_end(self, run: Run, finished: bool) -> None:
        """After the last step; `finished` is False when a stop was requested before all steps were done."""

    def on_error(self, run: Run, error: BaseException) -> None:
        """The run failed with `error`; close files and record the failure."""
