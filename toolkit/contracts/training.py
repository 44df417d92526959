"""The contract of a training step, and the state of a run between two steps.

A trainer implements `TrainStep`: from a batch to the losses of each role. The loop in
`toolkit/train/loop.py` runs the backward passes, steps the optimizers, and gives
callbacks a `StepResult`. `TrainState` holds the numbers that a checkpoint stores.

Everything here is a record or an interface; the loop and the optimizers are elsewhere.
Nothing here imports torch at run time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from toolkit.contracts.data import Batch, Cursor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TrainState:
    """Everything a resume needs that is not a tensor. Only the loop changes it.

    >>> state = TrainState(step=100, epochs_done=2, epochs_before=1)
    >>> state.epochs_done > state.epochs_before  # the last step ended an epoch
    True
    """

    step: int = 0
    """Optimizer steps done."""

    cursor: Cursor = None
    """Position of the next micro-batch."""

    epoch: int = 0
    """Epoch of the last micro-batch, counted from 0; 0 where the source has no
    epochs."""

    epochs_done: int = 0
    """Completed epochs."""

    epochs_before: int = 0
    """`epochs_done` before the last step: tells whether an epoch ended with it."""

    samples: int = 0
    """Samples trained on, repeats included."""

    skipped: int = 0
    """Optimizer steps that a role skipped because its loss or gradient was not
    finite."""

    extra: dict[str, Any] = field(default_factory=dict)
    """State of callbacks for a resume, by callback name; JSON values only."""


@dataclass(frozen=True)
class StepLosses:
    """What a `TrainStep` returns: one loss per sample and role, and metrics.

    >>> import torch
    >>> losses = StepLosses({"network": torch.tensor([0.25, 0.75])})
    >>> losses.by_role["network"].mean().item()
    0.5
    """

    by_role: dict[str, Tensor]
    """Role -> differentiable float32 losses [B]. Roles that learn from one loss have
    the same tensor: it has one backward pass and counts once."""

    per_sample: dict[str, Tensor] = field(default_factory=dict)
    """Metric name -> one value per sample [B], on any device, such as the timestep t;
    or [B, K], one for each noise level of a sample, with NaN as the `t` of those that
    it lacks. `loss` among them takes the place of the loss of the first role."""

    numbers: dict[str, Tensor] = field(default_factory=dict)
    """Metric name -> one value of the batch (0-dim), the mean over `counts` of its
    samples. The log has the mean over all samples of an accumulation step."""

    counts: dict[str, int] = field(default_factory=dict)
    """Name of a number -> how many samples it is the mean of. For a name that is left
    out: all of the batch."""


class Backward(Protocol):
    """Runs the backward passes of one micro-batch. Losses are averaged over the whole
    accumulation step.

    Example::

        losses = step(batch, backward.step)
        backward(losses.by_role)
    """

    @property
    def step(self) -> int:
        """Optimizer steps done."""

    @property
    def roles(self) -> frozenset[str]:
        """Roles that are trained in this step; losses of others are ignored."""

    def __call__(
        self,
        losses: Mapping[str, Tensor],
        retain_graph: bool = False,
        final: bool = True,
    ) -> None:
        """One backward pass of the sum of these losses (role -> [B]); only parameters
        of these roles get gradients.

        retain_graph: another backward pass of this micro-batch uses the same graph.
        final: no other one of this micro-batch has a loss of these roles.
        """


BatchT = TypeVar("BatchT", bound=Batch)
"""The type of batch that the source loads and the step takes."""


class TrainStep(ABC, Generic[BatchT]):
    """Forward pass and losses of one micro-batch. The loop knows the model only through
    it.

    Example::

        class Squares(TrainStep[MyBatch]):
            def __call__(self, batch: MyBatch, step: int) -> StepLosses:
                return StepLosses({"network": self.network(batch.x_BD).square().mean(1)})
    """

    @abstractmethod
    def __call__(self, batch: BatchT, step: int) -> StepLosses:
        """The losses of a micro-batch. step: optimizer steps done."""

    def backward(self, batch: BatchT, backward: Backward) -> StepLosses:
        """Computes the losses and runs their backward passes: by default one of their
        sum.

        A step of several roles that see each other (a generator and its discriminator)
        calls `backward` once for each, one of several losses with passes of their own
        once for each loss.
        """
        losses = self(batch, backward.step)
        backward(losses.by_role)
        return losses


@dataclass(frozen=True)
class RoleResult:
    """One optimizer step of one role.

    >>> RoleResult(loss=0.5, lr=1e-4, grad_norm=1.0).skipped
    False
    """

    loss: float
    lr: float
    grad_norm: float
    skipped: bool = False
    """Loss or gradient was not finite: the role's parameters did not change."""


class SampleSource(NamedTuple):
    """The image of a value, and the micro-batch that it was in.

    >>> SampleSource("01.jpg", "latents (3, 16, 64, 64)").name
    '01.jpg'
    """

    name: str
    """As in `Batch.names`."""

    batch: str
    """`Batch.describe()`."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, as callbacks see it.

    >>> result = StepResult(
    ...     step=1, epoch=0, loss=0.5, lr=1e-4, grad_norm=1.0, samples=2,
    ...     step_s=1.0, data_s=0.0, per_sample={"t": (0.25, 0.75)},
    ... )
    >>> result.logged()
    {'loss': 0.5, 'lr': 0.0001, 'grad_norm': 1.0, 't_mean': 0.5}
    """

    step: int
    """Number of the step just done, from 1."""

    epoch: int
    """Epoch the step's last micro-batch belongs to, counted from 0."""

    loss: float
    """Loss of the run's first role, as its optimizer sees it: the weighted sum of its
    terms, without the discriminator's own loss. NaN in a step that does not train
    it."""

    lr: float
    grad_norm: float
    samples: int
    """Samples trained on since the run began."""

    step_s: float
    """Wall seconds since the previous optimizer step ended, without saving, sampling
    and compiling. Steps whose metrics were fetched together (`Callback.on_metrics`)
    have their mean, as the host prepares a step while the device computes."""

    data_s: float
    """Part of `step_s` spent waiting for batches."""

    per_sample: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Metric name -> one value per sample of the step, or per noise level of each: its
    `loss`, and those of the `TrainStep` (`t`), in the same order."""

    sources: tuple[SampleSource, ...] = ()
    """Where each value of `per_sample` comes from, in the same order."""

    compile_s: float = 0.0
    """Seconds in which programs were compiled in this step."""

    compiled: bool = False
    """Programs were compiled in this step, or in one whose metrics were fetched
    together with it: later steps take less time."""

    skipped: bool = False
    """A loss or gradient was not finite: at least one role skipped this step."""

    lr_by_group: dict[str, float] = field(default_factory=dict)
    """Further learning rates by name: of each role (`<role>`, `<role>/<group>`) and
    parameter group where there are several, and those that the optimizer estimates."""

    extra_metrics: dict[str, float] = field(default_factory=dict)
    """Extra scalars to log: name -> value. With several roles also `loss/<role>` and
    `grad_norm/<role>` of those that were trained."""

    by_role: dict[str, RoleResult] = field(default_factory=dict)
    """The results of the roles that took part in the step."""

    def logged(self) -> dict[str, float]:
        """The metrics of the step, by their names in metrics.jsonl."""
        metrics = {"loss": self.loss, "lr": self.lr, "grad_norm": self.grad_norm}
        for name, lr in self.lr_by_group.items():
            metrics[f"lr/{name}"] = lr
        metrics.update(self.extra_metrics)
        for name, values in self.per_sample.items():
            if name != "loss":
                metrics[f"{name}_mean"] = fmean(values)
        return metrics


Progress = Callable[[str, int, int], None]
"""Called as (what, done, total) by long work that is not training."""
