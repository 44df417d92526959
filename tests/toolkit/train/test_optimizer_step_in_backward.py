"""Stepping within the backward pass: the same training as stepping after it, with one
gradient at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toolkit.contracts.training import StepLosses
from toolkit.errors import RunError
from toolkit.optim.ema import Ema
from toolkit.optim.optimizers import build_optimizer, state_tensors
from toolkit.optim.stochastic_rounding import (
    PerParameterStepper,
    StochasticRoundingOptimizer,
)
from toolkit.train import optimizer_step
from toolkit.train.optimizer_step import OptimizerInBackward, Role, StandardStep
from toolkit.train.run import Run


class Layers(nn.Module):
    """Three layers on 3 inputs; one that nothing reaches. `twice` uses the first layer
    a second time."""

    def __init__(self, dtype: torch.dtype = torch.float32, twice: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.second, self.third = (
                nn.Linear(3, 16),
                nn.Linear(16, 16),
                nn.Linear(16, 1),
            )
            self.unused = nn.Linear(2, 2)
        self.twice = twice
        self.to(dtype)

    def forward(self, x_BD: Tensor) -> Tensor:
        h_BH = torch.tanh(self.first(x_BD))
        if self.twice:
            h_BH = h_BH + checkpoint(
                lambda x: torch.tanh(self.first(2 * x)), x_BD, use_reentrant=False
            )
        h_BH = checkpoint(
            lambda h: torch.tanh(self.second(h)), h_BH, use_reentrant=False
        )
        return self.third(h_BH)[:, 0]


@pytest.fixture
def trained(toy) -> Callable[..., Run]:
    """A run over the toy's data with a role of three layers, and its step; `fused` or
    not."""

    def make(
        fused: bool,
        optimizer: str = "adamw",
        accumulation: int = 1,
        max_grad_norm: float = 0.0,
        steps: int = 12,
        bf16: bool = False,
        twice: bool = False,
        rate: Callable[[int], float] = lambda step: 1 / (1 + step),
    ) -> tuple[Run, Callable]:
        model = Layers(torch.bfloat16 if bf16 else torch.float32, twice)
        parameters = dict(model.named_parameters())

        def build(of: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
            return build_optimizer(optimizer, of.values(), 0.01, {})

        chosen = (
            StochasticRoundingOptimizer(parameters, build, seed=3)
            if bf16
            else build(parameters)
        )
        step_one = chosen.step_one if bf16 else PerParameterStepper(chosen).step
        update = (
            OptimizerInBackward(parameters.values(), step_one, accumulation > 1)
            if fused
            else StandardStep()
        )
        role = Role(
            parameters,
            chosen,
            0.01,
            rate,
            max_grad_norm,
            Ema(parameters, 0.9),
            optimizer_step=update,
        )
        run = Run(
            "toy", toy.folder, steps, accumulation, seed=5, roles={"network": role}
        )

        def step_fn(batch) -> StepLosses:
            found_B = model(
                batch.latents_BCHW[:, 0, 0].to(model.first.weight.dtype)
            ).float()
            return StepLosses(
                {"network": (found_B - toy.y_N[list(batch.spec.items)]) ** 2}
            )

        return run, step_fn

    return make


def weights(run: Run) -> dict[str, Tensor]:
    return {
        name: p.detach().clone() for name, p in run.roles["network"].parameters.items()
    }


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        *(("adamw", options) for options in ({}, {"accumulation": 2}, {"twice": True})),
        *(
            ("adafactor", options)
            for options in ({"twice": True}, {"bf16": True, "accumulation": 2})
        ),
        ("adam", {"bf16": True, "accumulation": 2}),
        ("sgd", {"accumulation": 2}),
    ],
)
def test_weights_average_and_state_are_those_of_whole_steps(
    toy, trained, optimizer: str, options: dict
) -> None:
    runs = []
    for fused in (False, True):
        run, step_fn = trained(fused, optimizer, **options)
        start = weights(run)
        toy.train(run, step_fn)
        runs.append(run.roles["network"])
    whole, fused = runs
    assert_same(
        *({name: p.detach() for name, p in role.parameters.items()} for role in runs)
    )
    assert_same(whole.ema.averages, fused.ema.averages)
    (tensors, plain), (of_fused, plain_of_fused) = (
        state_tensors(r.optimizer, list(r.parameters)) for r in runs
    )
    assert_same(tensors, of_fused)
    assert plain == plain_of_fused
    moved = {
        name for name, p in fused.parameters.items() if not torch.equal(p, start[name])
    }
    assert moved == {name for name in start if not name.startswith("unused")}


def test_a_parameter_that_only_an_earlier_micro_batch_reaches_moves_too(
    toy, trained
) -> None:
    found = []
    for fused in (False, True):
        run, step_fn = trained(fused, accumulation=2, steps=1)
        unused, calls = run.roles["network"].parameters["unused.bias"], iter(range(2))

        def reaching(batch, step_fn=step_fn, unused=unused, calls=calls) -> StepLosses:
            more = unused.square().sum() if next(calls) == 0 else 0.0
            return StepLosses({"network": step_fn(batch).by_role["network"] + more})

        toy.train(run, reaching)
        found.append(weights(run))
    assert_same(*found)
    assert not torch.equal(found[1]["unused.bias"], Layers().unused.bias)


def test_gradients_go_one_after_the_other(toy, trained) -> None:
    run, step_fn = trained(fused=True, steps=3)
    parameters = run.roles["network"].parameters.values()
    alive = []
    for parameter in parameters:  # called after the strategy's own hook
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in parameters))
        )
    [batch] = toy.load(toy.epoch_batches(0)[:1])
    assert toy.probe(run, batch, step_fn) is None
    toy.train(run, step_fn)
    assert set(alive) == {0} and len(alive) == 6 * (3 + 1)


def test_a_batch_that_is_only_tried_needs_what_a_real_one_does_and_moves_nothing(
    toy, trained
) -> None:
    [batch] = toy.load(toy.epoch_batches(0)[:1])
    for accumulation, held in ((1, False), (2, True)):
        run, step_fn = trained(fused=True, accumulation=accumulation)
        before, seen = weights(run), []
        run.roles["network"].parameters[
            "first.weight"
        ].register_post_accumulate_grad_hook(
            lambda p, seen=seen: seen.append(p.grad is not None)
        )
        toy.probe(run, batch, step_fn)
        assert seen == [held]
        assert_same(weights(run), before)


def test_each_gradient_is_clipped_by_itself(toy, trained) -> None:
    """Plain SGD at rate 1: a weight moves by its gradient, cut to length 0.001."""
    run, step_fn = trained(
        fused=True,
        optimizer="sgd",
        max_grad_norm=0.001,
        steps=1,
        rate=lambda step: 100.0,
    )
    before = weights(run)
    toy.train(run, step_fn)
    for name, weight in weights(run).items():
        if not name.startswith("unused"):
            assert (weight - before[name]).norm().item() == pytest.approx(
                0.001, rel=1e-2
            ), name


def test_the_norm_that_is_told_is_that_of_all_gradients(toy, trained, recorder) -> None:
    norms = []
    for fused in (False, True):
        run, step_fn = trained(fused, max_grad_norm=0.0, accumulation=2, steps=3)
        hook = type(recorder)()
        hook.after_step = lambda run: None
        run.callbacks = [hook]
        toy.train(run, step_fn)
        norms.append([result.grad_norm for result in hook.results])
    assert norms[1] == pytest.approx(norms[0], rel=1e-6) and len(norms[0]) == 3


@pytest.mark.parametrize("at", [0, 1])
def test_a_window_with_a_loss_that_is_not_finite_changes_nothing(
    toy, trained, at: int
) -> None:
    """Whichever of its two micro-batches it is; the windows around it are trained."""
    run, step_fn = trained(fused=True, accumulation=2, steps=3)
    calls, seen = iter(range(100)), []

    def broken(batch) -> StepLosses:
        seen.append(weights(run))
        losses = step_fn(batch)
        # its gradients are finite
        more = float("inf") if next(calls) == 2 + at else 0.0
        return StepLosses({"network": losses.by_role["network"] + more})

    average_updates = []
    original = run.roles["network"].ema.update
    run.roles["network"].ema.update = lambda step_ok: (
        average_updates.append(bool(step_ok)) or original(step_ok)
    )
    toy.train(run, broken)
    assert_same(seen[2], seen[4])  # before and after the second window
    assert not torch.equal(seen[0]["third.weight"], seen[2]["third.weight"])
    assert not torch.equal(seen[4]["third.weight"], weights(run)["third.weight"])
    assert (run.state.skipped, average_updates) == (1, [True, False, True])
    assert all(p.grad is None for p in run.roles["network"].parameters.values())


@pytest.mark.parametrize(
    ("optimizer", "bf16", "bad", "on_device"),
    [
        ("adamw", False, 1, True),
        ("adamw", False, 2, False),
        ("adamw", True, 1, False),
        ("adamw", True, 2, True),
        ("sgd", False, 1, False),
        ("sgd", False, 2, True),
        ("adafactor", True, 1, True),
        ("adafactor", True, 2, False),
    ],
)
def test_a_gradient_that_is_not_finite_leaves_its_parameter_and_skips_the_step(
    toy,
    trained,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    bf16: bool,
    bad: int,
    on_device: bool,
) -> None:
    """In the first step, when the optimizer has no state of it yet, or in the
    second."""
    if on_device:
        monkeypatch.setattr(optimizer_step, "_answers_at_once", lambda parameter: False)
    run, step_fn = trained(fused=True, optimizer=optimizer, bf16=bf16, steps=2)
    role, seen, calls = run.roles["network"], [], iter(range(1, 3))
    parameter = role.parameters["second.weight"]

    def spoil(gradient: Tensor) -> Tensor:
        seen.append((parameter.detach().clone(), states(role)))
        return gradient * float("inf") if next(calls) == bad else gradient

    def states(role: Role) -> dict[str, Tensor]:
        tensors, _ = state_tensors(role.optimizer, list(role.parameters))
        return {
            name: t.clone()
            for name, t in tensors.items()
            if name.startswith("second.weight/")
        }

    parameter.register_hook(spoil)
    toy.train(run, step_fn)
    (weight, state), (after, state_after) = [*seen, (parameter.detach(), states(role))][
        bad - 1 : bad + 1
    ]
    assert torch.equal(weight, after)
    if state:
        assert_same(state, state_after)
    assert all(
        tensor.isfinite().all()
        for tensor in (*weights(run).values(), *states(role).values())
    )
    assert run.state.skipped == 1


def test_memory_that_runs_out_after_weights_have_moved_ends_the_run(
    toy, trained
) -> None:
    run, step_fn = trained(fused=True, steps=1)

    def full(_: Tensor) -> None:
        raise torch.OutOfMemoryError

    # the last one reached
    run.roles["network"].parameters["first.weight"].register_hook(full)
    with pytest.raises(RunError, match=r"fused backward pass.*last save"):
        toy.train(run, step_fn)


def test_memory_that_runs_out_before_is_met_with_smaller_batches(toy, trained) -> None:
    run, step_fn = trained(fused=True, steps=1)
    whole, whole_step = trained(fused=True, steps=1)
    toy.train(whole, whole_step)

    def tight(batch) -> StepLosses:
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return step_fn(batch)

    toy.train(run, tight)
    for name, weight in weights(run).items():
        torch.testing.assert_close(weight, weights(whole)[name], rtol=1e-4, atol=1e-5)
