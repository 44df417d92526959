"""Linear regression in a few lines: something the loop, the checkpoints and the hooks
can work on in microseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toolkit.contracts.data import Batch, BatchSpec, PromptEmbeds
from toolkit.contracts.model import DynamicShift
from toolkit.contracts.training import StepLosses, StepResult, TrainStep
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.data.batches.epoch_order import EpochSource
from toolkit.models.qwen_image.family import FAMILY
from toolkit.networks.lora import LoraNetwork
from toolkit.optim.ema import Ema
from toolkit.train.loop import train, try_largest_batch
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Callback, Run


class Losses(TrainStep):
    """A function of a batch as a step."""

    def __init__(self, losses: Callable[[Batch], StepLosses]) -> None:
        self.losses = losses

    def __call__(self, batch: Batch, step: int) -> StepLosses:
        return self.losses(batch)


def as_step(step: Callable[[Batch], StepLosses] | TrainStep) -> TrainStep:
    return step if isinstance(step, TrainStep) else Losses(step)


class Toy:
    """7 samples in batches of 3, 3 and 1 per epoch; the order turns by one sample each
    epoch.

    The loss of a sample is (x w - y)^2; `by_hand` is the same training without the
    loop.
    """

    def __init__(self, folder: Path) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x_ND = torch.randn(7, 3, generator=generator)
        self.y_N = torch.randn(7, generator=generator)
        self.folder = folder

    def epoch_batches(self, epoch: int) -> list[BatchSpec]:
        order = [(position + epoch) % 7 for position in range(7)]
        return [
            BatchSpec(epoch, tuple(order[i : i + 3]), tuple(range(i, min(i + 3, 7))))
            for i in (0, 3, 6)
        ]

    def load(self, specs: Iterable[BatchSpec]) -> Iterator[LatentBatch]:
        for spec in specs:
            x_B11D = self.x_ND[list(spec.items)][:, None, None]
            yield LatentBatch(
                latents_BCHW=x_B11D,
                prompts=PromptEmbeds(
                    torch.zeros(len(spec.items), 1, 1), (1,) * len(spec.items)
                ),
                control_latents=((),) * len(spec.items),
                spec=spec,
                names=tuple(f"image_{item}.png" for item in spec.items),
                loss_weight_B=torch.ones(len(spec.items)),
            )

    def run(
        self,
        steps: int,
        *,
        accumulation: int = 1,
        callbacks: Sequence[Callback] = (),
        name: str = "toy",
        **role,
    ) -> Run:
        """A fresh run from w = 0 with plain SGD; `role` changes the fields of its one
        role."""
        parameters = {"w": nn.Parameter(torch.zeros(3))}
        settings = {
            "lr": 0.1,
            "schedule": lambda step: 1.0,
            "max_grad_norm": 0.0,
        } | role
        if "momentum" in settings:
            momentum = settings.pop("momentum")
            optimizer = torch.optim.SGD(parameters.values(), lr=0.0, momentum=momentum)
        else:
            # the loop sets the rate of each step
            optimizer = torch.optim.SGD(parameters.values(), lr=0.0)
        if decay := settings.pop("ema_decay", None):
            settings["ema"] = Ema(parameters, decay)
        return Run(
            name=name,
            folder=self.folder,
            steps=steps,
            grad_accum_steps=accumulation,
            seed=5,
            roles={"network": Role(parameters, optimizer, **settings)},
            callbacks=list(callbacks),
        )

    def train(
        self,
        run: Run,
        step: Callable[[LatentBatch], StepLosses] | TrainStep,
        load=None,
        epoch_batches=None,
    ) -> bool:
        """`train` with this step, or these losses."""
        source = EpochSource(epoch_batches or self.epoch_batches, load or self.load)
        return train(run, source, as_step(step))

    def probe(
        self, run: Run, batch: Batch, step: Callable[[LatentBatch], StepLosses], *more
    ) -> str | None:
        return try_largest_batch(run, batch, as_step(step), *more)

    def step(self, run: Run) -> Callable[[LatentBatch], StepLosses]:
        """The TrainStep on the weights of this run."""
        w_D = self.weight(run)

        def losses(batch: LatentBatch) -> StepLosses:
            residual_B = (
                batch.latents_BCHW[:, 0, 0] @ w_D - self.y_N[list(batch.spec.items)]
            )
            return StepLosses(
                {"network": residual_B**2},
                {"item": torch.tensor(batch.spec.items).float()},
            )

        return losses

    @staticmethod
    def weight(run: Run) -> nn.Parameter:
        return run.roles["network"].parameters["w"]

    def items(self, steps: int, accumulation: int = 1) -> list[list[int]]:
        """Samples of each optimizer step, written out without `accumulation_steps`."""
        batches = [
            spec.items for epoch in range(20) for spec in self.epoch_batches(epoch)
        ]
        return [
            [
                i
                for items in batches[n * accumulation : (n + 1) * accumulation]
                for i in items
            ]
            for n in range(steps)
        ]

    def by_hand(
        self, items_of_steps: Iterable[Sequence[int]], lr: Callable[[int], float]
    ) -> list[Tensor]:
        """The weights after each step of gradient descent on the mean squared error of
        these samples."""
        w_D, after = torch.zeros(3), []
        for step, items in enumerate(items_of_steps):
            x_BD, y_B = self.x_ND[list(items)], self.y_N[list(items)]
            w_D = w_D - lr(step) * (2 * (x_BD @ w_D - y_B)[:, None] * x_BD).mean(0)
            after.append(w_D)
        return after


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "run")


class Recorder(Callback):
    """Keeps what it is shown, and the weights (and averages) at each moment."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.results: list[StepResult] = []
        self.weights: list[Tensor] = []
        self.averages: list[Tensor] = []
        self.errors: list[BaseException] = []

    def on_start(self, run: Run) -> None:
        self.calls.append("start")

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self.results.append(result)

    def after_step(self, run: Run) -> None:
        self.calls.append(f"step {run.state.step}")
        role = run.roles["network"]
        self.weights.append(role.parameters["w"].detach().clone())
        if role.ema:
            self.averages.append(role.ema.averages["w"].clone())

    def on_end(self, run: Run, finished: bool) -> None:
        self.calls.append(f"end {finished}")

    def on_error(self, run: Run, error: BaseException) -> None:
        self.calls.append("error")
        self.errors.append(error)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def result() -> Callable[..., StepResult]:
    """Makes the StepResult of a step; `changes` replace its fields."""

    def make(step: int = 1, **changes) -> StepResult:
        fields = {
            "epoch": 0,
            "loss": 0.5,
            "lr": 0.1,
            "grad_norm": 2.0,
            "samples": 3 * step,
            "step_s": 0.25,
            "data_s": 0.0625,
            "per_sample": {"t": (0.5, 1.0), "loss": (0.25, 0.75)},
            "skipped": not math.isfinite(changes.get("loss", 0.5)),
        }
        return StepResult(step=step, **fields | changes)

    return make


class Model(nn.Module):
    """A linear layer over the channels, moved by the prompt."""

    family = FAMILY
    dynamic_shift = DynamicShift()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def predict_velocity(
        self, x_t_BCHW: Tensor, t_B: Tensor, prompts: PromptEmbeds, references
    ) -> Tensor:
        moved_BHWC = x_t_BCHW.permute(0, 2, 3, 1) + prompts.embeds_BLD[:, None]
        return self.layer(moved_BHWC).permute(0, 3, 1, 2)


@pytest.fixture
def adapted() -> tuple[Model, LoraNetwork]:
    model = Model()
    network = LoraNetwork(["layer"], rank=1, alpha=1, dropout=0, seed=1)
    network.attach(model)
    return model, network
