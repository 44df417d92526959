"""A window that several processes compute is the window that one would have
computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.processes import in_processes
from tests.toolkit.train.conftest import Recorder, Toy
from toolkit.contracts.training import StepLosses
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.errors import RunError
from toolkit.system.distributed import ProcessGroup

STEPS = 5


def trained(
    process_group: ProcessGroup,
    folder: Path,
    accumulation: int,
    spoiled: int | None = None,
) -> tuple[list, list, int]:
    """Results and weights after each step, and steps skipped. spoiled: a position of
    epoch 1 without a finite loss."""
    toy, recorder = Toy(folder), Recorder()
    run = toy.run(
        STEPS,
        accumulation=accumulation,
        callbacks=[recorder],
        momentum=0.9,
        max_grad_norm=0.5,
        ema_decay=0.9,
    )
    run.process_group = process_group
    step = toy.step(run)

    def spoiling(batch: LatentBatch) -> StepLosses:
        losses = step(batch)
        if batch.spec.epoch == 1 and spoiled in batch.spec.positions:
            losses.by_role["network"] = losses.by_role["network"] * float("inf")
        return losses

    toy.train(run, spoiling)
    results = [
        (r.loss, r.grad_norm, r.per_sample, r.samples, r.skipped)
        for r in recorder.results
    ]
    return (
        results,
        [weight.tolist() for weight in [*recorder.weights, *recorder.averages]],
        run.state.skipped,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "accumulation"),
    [
        (2, 3),
        pytest.param(3, 2, id="more processes than batches"),
        pytest.param(5, 1, id="some have nothing"),
    ],
)
def test_results_and_weights_are_those_of_one_process(
    tmp_path: Path, processes: int, accumulation: int
) -> None:
    results, weights, _ = trained(ProcessGroup(), tmp_path, accumulation)
    ends = in_processes(processes, trained, tmp_path, accumulation)
    assert all(end == ends[0] for end in ends), "the same bits in each"
    for ours, theirs in zip(ends[0][0], results, strict=True):
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-6)
        assert ours[2].keys() == theirs[2].keys()
        for kind, values in theirs[2].items():
            assert ours[2][kind] == pytest.approx(values, rel=1e-6), (
                "in the order of the window"
            )
        assert ours[3:] == theirs[3:]
    torch.testing.assert_close(
        torch.tensor(ends[0][1]), torch.tensor(weights), rtol=1e-6, atol=1e-7
    )


def test_a_loss_that_is_not_finite_in_one_process_skips_the_step_in_all(
    tmp_path: Path,
) -> None:
    alone = trained(ProcessGroup(), tmp_path, 2, spoiled=4)
    first, second = in_processes(2, trained, tmp_path, 2, 4)
    assert first[1:] == second[1:] and first[2] == alone[2] == 1
    torch.testing.assert_close(
        torch.tensor(first[1]), torch.tensor(alone[1]), rtol=1e-6, atol=1e-7
    )


def test_all_names_of_a_window_that_is_not_finite_are_told(tmp_path: Path) -> None:
    def work(process_group: ProcessGroup) -> None:
        toy = Toy(tmp_path)
        toy.y_N[:] = float("nan")
        run = toy.run(STEPS, accumulation=3)
        run.process_group = process_group
        toy.train(run, toy.step(run))

    first, second = in_processes(2, work)
    assert isinstance(first, RunError) and str(first) == str(second)
    assert all(f"image_{item}.png" in str(first) for item in range(7))


def test_a_parameter_that_learns_in_one_process_only_learns_in_all(
    tmp_path: Path,
) -> None:
    def work(process_group: ProcessGroup) -> list:
        toy = Toy(tmp_path)
        run = toy.run(2, accumulation=2)
        run.process_group = process_group
        parameters = run.roles["network"].parameters
        parameters["seldom"], parameters["never"] = (
            torch.nn.Parameter(torch.zeros(1)) for _ in range(2)
        )
        for name in ("seldom", "never"):
            run.roles["network"].optimizer.add_param_group(
                {"params": [parameters[name]], "weight_decay": 0.5}
            )
        plain = toy.step(run)

        def step(batch):
            losses = plain(batch)
            if 0 in batch.spec.items:
                losses.by_role["network"] = (
                    losses.by_role["network"] + parameters["seldom"]
                )
            return losses

        torch.nn.init.ones_(parameters["never"])
        toy.train(run, step)
        return [parameters["seldom"].item(), parameters["never"].item()]

    (alone,) = [work(ProcessGroup())]
    first, second = in_processes(2, work)
    assert first == second == pytest.approx(alone)
    assert alone[0] != 0 and alone[1] == 1, "no gradient, no decay"
