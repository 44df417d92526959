"""A compiled program that fails costs a run nothing: the step is computed again without
programs, from its begin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.failing_programs import ERRORS, NAME, Backend, backward_of, programs
from tests.processes import in_processes
from tests.toolkit.train.conftest import Toy
from toolkit.config.sections.train import CompileConfig
from toolkit.contracts.data import BatchSpec
from toolkit.contracts.training import StepLosses, StepResult, TrainState, TrainStep
from toolkit.errors import RunError
from toolkit.memory.compiling import Programs, compile_wrapper, failure
from toolkit.optim.ema import Ema
from toolkit.system.distributed import ProcessGroup
from toolkit.train.optimizer_step import Role
from toolkit.train.roles import step_in_backward
from toolkit.train.run import Callback, Run

WIDTH = 8
SIZES = (12, 20, 28)
"""Tokens of an image, by its number modulo 3."""


@pytest.fixture
def install() -> Iterator[Callable[..., Backend]]:
    """As `programs`, until the end of the test."""
    with ExitStack() as stack:
        yield lambda *arguments, **named: stack.enter_context(
            programs(*arguments, **named)
        )


AUTO = CompileConfig(backend=NAME, dynamic=False)


class Blocks(TrainStep):
    """The loss of an image is the mean square of what two blocks with dropout make of
    it."""

    def __init__(self, settings: CompileConfig | None = None) -> None:
        """settings: None where the blocks are not compiled."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.programs = Programs(settings)
        self.run = (
            compile_wrapper(settings, self.programs)(thinned) if settings else thinned
        )

    def __call__(self, batch, step: int) -> StepLosses:
        (item,) = batch.spec.items
        x_BSD = torch.randn(
            (1, SIZES[item % 3], WIDTH), generator=torch.Generator().manual_seed(item)
        )
        for block in self.blocks:
            (x_BSD,) = self.run(block, x_BSD)
        return StepLosses(
            {"network": x_BSD.square().mean((1, 2))}, {"draw": torch.rand(1)}
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.blocks.named_parameters())

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.blocks.parameters()])


def thinned(block: nn.Module, x_BSD: Tensor) -> tuple[Tensor]:
    return (nn.functional.dropout(block(x_BSD), 0.5),)


def one_by_one(epoch: int) -> list[BatchSpec]:
    return [BatchSpec(epoch, (position,), (position,)) for position in range(7)]


class Kept(Callback):
    """What a run logs by step: losses, gradient norms, draws of the random streams."""

    def __init__(self) -> None:
        self.rows: list[tuple] = []

    def on_metrics(self, run: Run, result: StepResult) -> None:
        # of a fused step the order of its summands may differ
        self.rows.append(
            (
                result.step,
                result.samples,
                result.loss,
                f"{result.grad_norm:.6g}",
                result.per_sample,
            )
        )


def trained(
    toy: Toy,
    step: Blocks,
    steps: int = 1,
    accumulation: int = 1,
    fused: bool = False,
    callbacks: Sequence[Callback] = (),
    **options: object,
) -> tuple[Run, list]:
    """The run after these steps, and `Kept.rows`. options: further fields of the
    run."""
    kept = Kept()
    run = replace(
        toy.run(steps, accumulation=accumulation, callbacks=[kept, *callbacks]),
        **options,
    )
    parameters = step.parameters()
    optimizer = torch.optim.Adam(parameters.values(), lr=0.0)
    ema = Ema(parameters, 0.5)
    role = Role(
        parameters,
        optimizer,
        lr=0.01,
        schedule=lambda step: 1.0,
        max_grad_norm=0.0,
        ema=ema,
    )
    if fused:
        role.optimizer_step = step_in_backward(role, accumulates=accumulation > 1)
    run.roles, run.programs = {"network": role}, step.programs
    toy.train(run, step, epoch_batches=one_by_one)
    return run, kept.rows


def expect_eager(
    toy: Toy, step: Blocks, said: list[str], error: Exception, **options
) -> None:
    """The run with this step is that of uncompiled blocks, bit for bit, and one line
    says why."""
    eager = Blocks()
    run, found = trained(toy, step, **options)
    expected_run, expected = trained(toy, eager, **options)
    assert found == expected and torch.equal(step.weights(), eager.weights())
    assert run.state == expected_run.state
    averages, expected_averages = (
        r.roles["network"].ema.averages for r in (run, expected_run)
    )
    assert all(
        torch.equal(average, expected_averages[name])
        for name, average in averages.items()
    )
    assert step.programs.record == {"blocks": False}
    reason = failure(error)
    assert said == [
        f"train.compile auto: a compiled block failed, all run uncompiled from here on ({reason})"
    ]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_backward_pass_that_fails_at_once_leaves_an_eager_run(
    toy, install, said: list[str], error
) -> None:
    install(lambda kind, tensors: error if kind == "backward" else None)
    expect_eager(toy, Blocks(AUTO), said, error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_a_step_that_fails_at_its_third_size_is_computed_from_its_begin(
    toy, install, said, kind: str
) -> None:
    """What the programs compute is wrong: nothing of it may stay, neither of the two
    micro-batches before nor of the block before."""
    seen = []

    def fails(of: str, tensors: list[Tensor]) -> Exception | None:
        if of != kind or not any(SIZES[2] in tensor.shape for tensor in tensors):
            return None
        seen.append(of)
        return ERRORS[1] if len(seen) == 2 else None  # the second block in that order

    backend = install(fails, factor=1.5)
    expect_eager(toy, Blocks(AUTO), said, ERRORS[1], steps=2, accumulation=3)
    assert seen == [kind] * 2 and backend.runs.count("backward") == (
        4 if kind == "forward" else 6
    )


def test_steps_before_a_failure_stay_as_they_are(toy, install, said) -> None:
    install(backward_of(SIZES[2], ERRORS[0]))
    expect_eager(toy, Blocks(AUTO), said, ERRORS[0], steps=4)


def test_a_failure_of_the_trial_batch_leaves_nothing_but_the_line(
    toy, install, said
) -> None:
    install(lambda kind, tensors: ERRORS[0] if kind == "backward" else None)
    step = Blocks(AUTO)
    run = toy.run(1)
    run.programs, parameters = step.programs, step.parameters()
    run.roles = {
        "network": Role(
            parameters, torch.optim.SGD(parameters.values()), 0.1, lambda step: 1.0
        )
    }
    assert toy.probe(run, next(toy.load(one_by_one(0))), step) is None
    assert not step.programs.used and len(said) == 1 and run.state == TrainState()
    assert all(p.grad is None for p in parameters.values())


# ------------------------------------------------------------ what is not the
# compiler's


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ValueError("this block has no derivative"), [True, False]),
        (RunError("the disk is full"), [True]),
        (KeyboardInterrupt(), [True]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_uncompiled_blocks_is_raised_once_as_it_is(
    toy, install, said, error, passes: list[bool]
) -> None:
    """passes: whether they ran compiled."""
    raised = []

    class Broken(Blocks):
        def __call__(self, batch, step: int) -> StepLosses:
            losses = super().__call__(batch, step)
            losses.by_role["network"].register_hook(self.fail)
            return losses

        def fail(self, gradient: Tensor) -> None:
            raised.append(self.programs.used)
            raise error

    install()
    with pytest.raises(type(error)) as found:
        trained(toy, Broken(AUTO))
    assert raised == passes and said == []
    assert found.value is error and found.value.__context__ is None


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("too large"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")],
)
def test_memory_that_runs_out_in_a_program_is_not_its_failure(
    toy, install, said, error: Exception
) -> None:
    install(backward_of(SIZES[0], error))
    step = Blocks(AUTO)
    with pytest.raises(RunError, match="out of memory"):
        trained(toy, step)
    assert step.programs.used and said == []


def test_what_was_asked_for_is_not_replaced(toy, install, said) -> None:
    install(lambda kind, tensors: ERRORS[0] if kind == "backward" else None)
    step = Blocks(CompileConfig(enabled=True, backend=NAME))
    with pytest.raises(AssertionError, match="expected size"):
        trained(toy, step)
    assert step.programs.used and said == []


# ------------------------------------------------------------ weights that move in the
# backward pass


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
def test_no_weight_moves_in_the_first_backward_pass_of_a_program(
    toy, install, said, accumulation: int
) -> None:
    """At the third size the second block's pass works, and the first one's fails."""
    fails, seen = backward_of(SIZES[2], ERRORS[0]), []

    def second_fails(kind: str, tensors: list[Tensor]) -> Exception | None:
        error = fails(kind, tensors)
        seen.extend([kind] * (error is not None))
        return error if len(seen) == 2 else None

    install(second_fails, factor=1.0 if accumulation == 1 else 1.5)
    expect_eager(
        toy,
        Blocks(AUTO),
        said,
        ERRORS[0],
        steps=3,
        accumulation=accumulation,
        fused=True,
    )


def test_no_weight_moves_in_the_first_backward_pass_at_a_size_of_a_program_that_exists(
    toy, install, said
) -> None:
    """One program for all sizes: its second pass at the third size fails, in the first
    block."""
    seen = []

    def second_fails(kind: str, tensors: list[Tensor]) -> Exception | None:
        at_size = kind == "backward" and any(
            SIZES[2] in tensor.shape for tensor in tensors
        )
        seen.extend([kind] * at_size)
        return ERRORS[0] if at_size and len(seen) == 2 else None

    install(second_fails)
    expect_eager(
        toy,
        Blocks(CompileConfig(backend=NAME, dynamic=True)),
        said,
        ERRORS[0],
        steps=4,
        fused=True,
    )
    assert len(seen) == 2


def test_a_program_that_fails_when_weights_have_moved_ends_the_run_with_advice(
    toy, install, said
) -> None:
    runs = []

    def fails(kind: str, tensors: list[Tensor]) -> Exception | None:
        runs.append(kind)
        # 2 of the trial, and the first of two
        return ERRORS[0] if runs.count("backward") == 4 else None

    install(fails)
    with pytest.raises(
        RunError,
        match=r"a compiled block failed .*AssertionError: .* train\.compile: false",
    ):
        trained(toy, Blocks(AUTO), fused=True)


# ------------------------------------------------------------ what was decided for
# compiled blocks


def test_uncompiled_blocks_that_need_more_memory_take_what_saves_it(
    toy, install, said
) -> None:
    """The step does not fit without programs until memory was saved twice."""
    install(lambda kind, tensors: ERRORS[0] if kind == "backward" else None)
    saved: list[str] = []

    class Large(Blocks):
        def __call__(self, batch, step: int) -> StepLosses:
            if not self.programs.used and len(saved) < 2:
                raise torch.OutOfMemoryError("too large")
            return super().__call__(batch, step)

    def save() -> bool:
        saved.append("more")
        return True

    step = Large(AUTO)
    step.programs.increase_checkpointing = save
    expect_eager(toy, step, said, ERRORS[0], steps=2)
    assert len(saved) == 2


def test_what_depends_on_programs_hears_once_that_they_are_given_up() -> None:
    heard: list[str] = []
    step = Programs(AUTO)
    step.on_stop.append(lambda: heard.append("stopped"))
    assert not step.save_memory()
    step.stop()
    step.stop()
    assert heard == ["stopped"] and not step.used


# ------------------------------------------------------------ what takes part in a step


def test_what_is_computed_within_a_failure_is_computed_once_more() -> None:
    step, seen = Programs(AUTO), []

    def compute(index: int) -> str:
        seen.append(index)
        step.stop()
        return f"{index}, {len(seen)}"

    assert [step.whole(compute, 5), step.whole(compute, 6)] == ["5, 2", "6, 3"]


@pytest.mark.slow
def test_once_one_process_runs_uncompiled_blocks_all_do(tmp_path: Path) -> None:
    """The process of image 0 fails at its first step; the other one goes on and hears
    of it before its second."""

    def work(process_group: ProcessGroup) -> tuple[dict[str, bool], str, list[float]]:
        error = ERRORS[0] if process_group.rank == 0 else None
        with programs(lambda kind, tensors: error if kind == "backward" else None):
            step = Blocks(AUTO)
            trained(
                Toy(tmp_path),
                step,
                steps=2,
                accumulation=2,
                process_group=process_group,
            )
        return step.programs.record, step.programs.failure, step.weights().tolist()

    (first, why, weights), (second, told, same) = in_processes(2, work)
    assert first == second == {"blocks": False}
    assert why == failure(ERRORS[0]) and told == f"process 0: {why}"
    assert weights == same


# ------------------------------------------------------------ time


def test_a_step_that_compiles_is_marked_and_its_compiling_takes_no_time(
    toy, install
) -> None:
    install()
    results: list[StepResult] = []

    class Results(Callback):
        def on_metrics(self, run: Run, result: StepResult) -> None:
            results.append(result)

    step = Blocks(AUTO)
    trained(toy, step, steps=5, callbacks=[Results()])
    # a program for each size
    assert [result.compiled for result in results] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert [result.compile_s > 0 for result in results] == [
        result.compiled for result in results
    ]
    assert sum(result.compile_s for result in results) == pytest.approx(
        step.programs.took.seconds
    )
    assert all(result.step_s >= 0 for result in results)
    assert step.programs.took.programs == len(SIZES)


def test_steps_whose_metrics_come_together_with_those_of_one_that_compiles_are_marked_too(
    toy, install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.train.metrics_buffer.METRICS_SYNC_SECONDS", math.inf)
    install()
    marked: list[tuple[bool, bool]] = []

    class Results(Callback):
        def on_metrics(self, run: Run, result: StepResult) -> None:
            marked.append((result.compiled, result.compile_s > 0))

    trained(toy, Blocks(AUTO), steps=6, callbacks=[Results()], metrics_sync_interval=2)
    assert marked == [
        (True, True),
        (True, True),
        (True, True),
        (True, False),
        (False, False),
        (False, False),
    ]
