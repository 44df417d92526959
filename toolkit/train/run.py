"""A training run while it is going on: its weights by role, its state, and who watches.

The loop acts, hooks observe: a hook writes files and may ask for a stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.contracts import StepResult, TrainState
from toolkit.parallel import Team
from toolkit.train.loss_scale import LossScaler
from toolkit.train.update import Role


@dataclass
class Run:
    """Everything the loop and its hooks share."""

    name: str
    """Stem of the run's files."""

    folder: Path
    steps: int
    """Optimizer steps in all."""

    accumulation: int
    """Micro-batches per optimizer step."""

    seed: int
    roles: dict[str, Role]
    batches_per_epoch: int = 0
    """Micro-batches of one epoch, for reading states of earlier versions; 0: not known."""

    hooks: Sequence[Hook] = ()
    state: TrainState = field(default_factory=TrainState)
    record: dict[str, Any] = field(default_factory=dict)
    """JSON values that every state keeps beside the training's own: the settings, the dataset."""

    memory_advice: str = ""
    """What the user can change when memory runs out, most effective first."""

    loss_scaler: LossScaler | None = None
    """Scales the losses of a computation in float16."""

    team: Team = field(default_factory=Team)
    """The processes that train this run together. Hooks belong to the first of them."""

    in_lockstep: bool = False
    """All processes have to make the same passes, so none breaks a window off by itself."""

    lead: Callable[[Callable[..., Any]], None] = lambda order: None
    """Set by `lockstep.follow`: has the other processes do the same, while they wait for the first one."""

    stop_asked: Callable[[], bool] = lambda: False
    """Whether a signal asks for an end; read between micro-batches."""

    fetch_every: int = 1
    """Optimizer steps whose numbers stay on the device before they are fetched; 1: each step waits for its own."""

    settle: Callable[[], None] = lambda: None
    """Set by the loop: fetches the numbers of all steps so far from the device and gives them to the hooks."""

    log: Callable[[int, dict[str, float]], None] = lambda step, values: None
    """Shows numbers of a step, such as `{"validation/loss": 0.1}`, where the job's trackers draw curves."""

    report: dict[str, Any] = field(default_factory=dict)
    """JSON values that hooks add to run.json."""

    stop_reason: str | None = None
    """Set by a hook that asks for a stop."""

    goal_reached: str | None = None
    """Set by a hook, or where the source of batches ends, when the run is complete before `steps`: why."""

    @contextmanager
    def kept_weights(self) -> Iterator[None]:
        """Inside the block all weights are those that are kept, after it their own values again, in this process."""
        with ExitStack() as stack:
            for role in self.roles.values():
                stack.enter_context(role.evaluation())
            yield

    @property
    def interrupted(self) -> bool:
        """Whether somebody asks for an end before the run is complete."""
        return self.stop_reason is not None or self.stop_asked()

    @property
    def stopping(self) -> bool:
        """Whether the loop should end at the next boundary."""
        return self.goal_reached is not None or self.interrupted

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train."""
        return self.goal_reached is not None or self.state.step >= self.steps


class Hook:
    """Base of all hooks; each overrides the moments it needs. It never changes weights, batches or random state."""

    counts_as_step_time = True
    """Whether its time belongs to `step_s`: logging does, saving and sampling do not."""

    def on_start(self, run: Run) -> None:
        """Before the first step of this process; `run.state.step` is 0 or where the run goes on."""

    def after_step(self, run: Run) -> None:
        """After every optimizer step; `run.state.step` is its number. The moment to save or to draw."""

    def on_result(self, run: Run, result: StepResult) -> None:
        """The numbers of one step, in order: each step once, before its `after_step` or some steps later.

        Before anything is saved at a step, the results up to it have been given (`run.settle`).
        """

    def on_end(self, run: Run, finished: bool) -> None:
        """After the last step; `finished` is False when a stop was asked for before all steps were done."""

    def on_error(self, run: Run, error: BaseException) -> None:
        """The run ends by `error`; files are closed and readers told."""
