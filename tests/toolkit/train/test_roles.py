"""Two roles that see each other, a toy generator and its discriminator, and two that
learn from one loss: on the real loop."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tests.running import lines
from tests.toolkit.train.conftest import Recorder, Toy
from toolkit.contracts.data import Batch
from toolkit.contracts.training import Backward, StepLosses, TrainStep
from toolkit.data.batches.epoch_order import EpochSource
from toolkit.errors import RunError
from toolkit.optim.ema import Ema
from toolkit.train.callbacks.metrics import MetricsCallback
from toolkit.train.loop import train
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run

ACCUMULATION = 2


class Gan(TrainStep):
    """A generator that shifts and scales, a discriminator with one hidden layer;
    `spoiled` steps have a NaN loss."""

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.generator = nn.Linear(3, 3)
            self.discriminator = nn.Sequential(
                nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)
            )
        self.told: list[tuple[int, frozenset[str]]] = []
        self.spoiled: dict[str, int] = {}

    def losses(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        made_BD = self.generator(x_BD)
        deceived_B = softplus(-self.discriminator(made_BD)).mean(1)
        told_apart_B = (
            softplus(self.discriminator(made_BD)) + softplus(-self.discriminator(x_BD))
        ).mean(1)
        return deceived_B, told_apart_B

    def __call__(self, batch: Batch, step: int) -> StepLosses:
        of_generator_B, of_discriminator_B = self.losses(batch.latents_BCHW[:, 0, 0])
        losses = {"generator": of_generator_B, "discriminator": of_discriminator_B}
        for name, at in self.spoiled.items():
            losses[name] = losses[name] * (float("nan") if step == at else 1.0)
        numbers = {"told_apart": of_discriminator_B.detach().mean()}
        return StepLosses(
            losses, {"item": torch.tensor(batch.spec.items).float()}, numbers
        )

    def backward(self, batch: Batch, backward: Backward) -> StepLosses:
        """Both losses share one graph, through which each reaches the weights of
        both."""
        self.told.append((backward.step, backward.roles))
        losses = self(batch, backward.step)
        backward({"generator": losses.by_role["generator"]}, retain_graph=True)
        backward({"discriminator": losses.by_role["discriminator"]})
        return losses


def role_of(module: nn.Module, **settings) -> Role:
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, betas=(0.0, 0.9))
    return Role(parameters, optimizer, schedule=lambda step: 1 / (1 + step), **settings)


def gan_run(toy: Toy, steps: int, callbacks=(), every: int = 1) -> tuple[Run, Gan]:
    gan = Gan()
    roles = {
        "generator": role_of(
            gan.generator,
            lr=0.02,
            max_grad_norm=0.05,
            ema=Ema(dict(gan.generator.named_parameters()), 0.9),
        ),
        "discriminator": role_of(gan.discriminator, lr=0.1, every=every),
    }
    return Run(
        "gan",
        toy.folder,
        steps,
        ACCUMULATION,
        seed=5,
        roles=roles,
        callbacks=list(callbacks),
    ), gan


def source(toy: Toy) -> EpochSource:
    return EpochSource(toy.epoch_batches, toy.load)


def weights(gan: Gan) -> list[Tensor]:
    return [
        p.detach().clone()
        for p in (*gan.generator.parameters(), *gan.discriminator.parameters())
    ]


def by_hand(
    toy: Toy, steps: int, every: int = 1, spoiled: tuple[int, ...] = ()
) -> list[Tensor]:
    """The weights after `steps` of the same training in plain PyTorch. spoiled: steps
    the generator does not take."""
    gan = Gan()
    generator, discriminator = (
        list(part.parameters()) for part in (gan.generator, gan.discriminator)
    )
    of_generator, of_discriminator = (
        torch.optim.AdamW(p, betas=(0.0, 0.9)) for p in (generator, discriminator)
    )
    for step, items in enumerate(toy.items(steps, ACCUMULATION)):
        deceived_B, told_apart_B = gan.losses(toy.x_ND[items])
        gradients = torch.autograd.grad(deceived_B.mean(), generator, retain_graph=True)
        opposite = torch.autograd.grad(told_apart_B.mean(), discriminator)
        if step not in spoiled:
            for parameter, gradient in zip(generator, gradients, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(generator, 0.05)
            of_generator.param_groups[0]["lr"] = 0.02 / (1 + step)
            of_generator.step()
        if step % every == 0:
            for parameter, gradient in zip(discriminator, opposite, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(discriminator, 1.0)
            of_discriminator.param_groups[0]["lr"] = 0.1 / (1 + step)
            of_discriminator.step()
    return weights(gan)


@pytest.mark.parametrize("every", [1, 2])
def test_each_role_learns_by_its_own_loss_alone(toy: Toy, every: int) -> None:
    run, gan = gan_run(toy, 5, every=every)
    assert train(run, source(toy), gan)
    torch.testing.assert_close(
        weights(gan), by_hand(toy, 5, every), rtol=1e-5, atol=1e-6
    )
    both, one = frozenset(run.roles), frozenset({"generator"})
    assert gan.told == [
        (step, both if step % every == 0 else one)
        for step in range(5)
        for _ in range(ACCUMULATION)
    ]


def test_what_is_no_number_in_one_role_skips_the_step_of_that_role_alone(
    toy: Toy,
) -> None:
    recorder = MetricsBuffer()
    run, gan = gan_run(toy, 4, [recorder])
    gan.spoiled = {"generator": 1}
    train(run, source(toy), gan)
    torch.testing.assert_close(
        weights(gan), by_hand(toy, 4, spoiled=(1,)), rtol=1e-5, atol=1e-6
    )
    skipped = [
        [role.skipped for role in result.by_role.values()]
        for result in recorder.results
    ]
    assert skipped == [[False, False], [True, False], [False, False], [False, False]]
    assert run.state.skipped == 1 and [
        result.skipped for result in recorder.results
    ] == [False, True, False, False]


def test_a_role_that_never_has_a_number_ends_the_run_though_the_other_learns(
    toy: Toy,
) -> None:
    run, gan = gan_run(toy, 9)
    gan.losses = lambda x_BD: (
        gan.generator(x_BD).mean(1),
        gan.discriminator(x_BD).mean(1) * math.nan,
    )
    with pytest.raises(RunError, match="3 steps in a row"):
        train(run, source(toy), gan)
    assert run.state.step == 3


class MetricsBuffer(Recorder):
    def after_step(self, run: Run) -> None:
        self.calls.append(f"step {run.state.step}")


def test_losses_norms_and_rates_are_logged_by_role(toy: Toy) -> None:
    toy.folder.mkdir()
    recorder = MetricsBuffer()
    run, gan = gan_run(toy, 3, [MetricsCallback(), recorder], every=2)
    before = copy.deepcopy(gan)
    train(run, source(toy), gan)
    rows = lines(toy.folder / "metrics.jsonl")
    deceived_B, told_apart_B = before.losses(toy.x_ND[toy.items(1, ACCUMULATION)[0]])
    first = rows[0]
    assert first["loss/generator"] == pytest.approx(deceived_B.mean().item(), rel=1e-5)
    assert first["loss/discriminator"] == pytest.approx(
        told_apart_B.mean().item(), rel=1e-5
    )
    assert first["told_apart"] == pytest.approx(told_apart_B.mean().item(), rel=1e-5), (
        "of all samples of the step"
    )
    assert first["loss"] == first["loss/generator"], "of the first role alone"
    assert first["grad_norm"] == pytest.approx(
        math.hypot(first["grad_norm/generator"], first["grad_norm/discriminator"])
    )
    assert [(line["lr/generator"], line["lr/discriminator"]) for line in rows] == [
        pytest.approx((0.02 / (1 + step), 0.1 / (1 + step))) for step in range(3)
    ]
    of_step_2 = rows[1]  # the discriminator waits
    assert (
        "loss/discriminator" not in of_step_2
        and of_step_2["loss"] == of_step_2["loss/generator"]
    )
    assert of_step_2["grad_norm"] == of_step_2["grad_norm/generator"]


def test_of_one_role_nothing_is_logged_by_role(toy: Toy) -> None:
    toy.folder.mkdir()
    run = toy.run(1, callbacks=[MetricsCallback()])
    toy.train(run, toy.step(run))
    line = json.loads((toy.folder / "metrics.jsonl").read_text())
    assert (
        " ".join(line)
        == "step epoch loss lr grad_norm samples step_s data_s time item_mean"
    )


# ------------------------------------------------------------ two roles that learn from
# one loss


class Chain(TrainStep):
    """A linear layer behind another; both learn from the loss of the second one's
    output."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

    def __call__(self, batch: Batch, step: int) -> StepLosses:
        loss_B = (
            self.second(torch.tanh(self.first(batch.latents_BCHW[:, 0, 0])))
            .square()
            .mean(1)
        )
        return StepLosses(dict.fromkeys(("second", "first"), loss_B))


def chain_run(toy: Toy, steps: int, callbacks=(), **settings) -> tuple[Run, Chain]:
    chain = Chain()
    roles = {
        "second": role_of(chain.second, lr=0.02),
        "first": role_of(chain.first, lr=0.1, **settings),
    }
    return Run(
        "chain",
        toy.folder,
        steps,
        ACCUMULATION,
        seed=5,
        roles=roles,
        callbacks=list(callbacks),
    ), chain


@pytest.mark.parametrize("every", [1, 2])
def test_roles_with_one_loss_learn_from_its_gradient_once(toy: Toy, every: int) -> None:
    run, chain = chain_run(toy, 4, every=every)
    train(run, source(toy), chain)
    plain, batches = Chain(), iter(source(toy).iterate(None))
    optimizers = {
        name: torch.optim.AdamW(getattr(plain, name).parameters(), betas=(0.0, 0.9))
        for name in ("second", "first")
    }
    for step in range(4):
        specs = [next(batches).spec for _ in range(ACCUMULATION)]
        samples = sum(len(spec.items) for spec in specs)
        for batch in source(toy).load(iter(specs)):
            (plain(batch, step).by_role["first"].sum() / samples).backward()
        for name, optimizer in optimizers.items():
            if name == "second" or step % every == 0:
                torch.nn.utils.clip_grad_norm_(getattr(plain, name).parameters(), 1.0)
                optimizer.param_groups[0]["lr"] = {"second": 0.02, "first": 0.1}[
                    name
                ] / (1 + step)
                optimizer.step()
            optimizer.zero_grad()
    for name in ("first", "second"):
        for ours, theirs in zip(
            getattr(chain, name).parameters(),
            getattr(plain, name).parameters(),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_a_loss_of_two_roles_counts_once(toy: Toy) -> None:
    recorder = MetricsBuffer()
    run, chain = chain_run(toy, 2, [recorder])
    train(run, source(toy), chain)
    for result in recorder.results:
        assert (
            result.loss == result.by_role["first"].loss == result.by_role["second"].loss
        )
        assert sum(result.per_sample["loss"]) / len(
            result.per_sample["loss"]
        ) == pytest.approx(result.loss)
