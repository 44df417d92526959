"""Losses that are scaled for float16."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tests.toolkit.train.conftest import Recorder, Toy
from toolkit.contracts.training import StepLosses
from toolkit.train import run as run_module
from toolkit.train.checkpoint_state import load_state, snapshot_state
from toolkit.train.checkpoint_store import write_checkpoint
from toolkit.train.run import LossScaler, Run


def test_the_scale_moves_as_that_of_torch(monkeypatch) -> None:
    monkeypatch.setattr(run_module, "SCALE_INTERVAL", 3)
    theirs, ours = torch.amp.GradScaler("cpu", growth_interval=3), LossScaler()
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scales = []
    for good in [True] * 4 + [False, False] + [True] * 7 + [False]:
        theirs.scale((weight * (1.0 if good else float("inf"))).sum()).backward()
        ours.update(torch.tensor(good))
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        scales.append(theirs.get_scale())
        assert ours.scale.item() == scales[-1]
    assert set(scales) == {32768, 65536, 131072}


def half_run(toy: Toy, steps: int, callbacks=(), scaled: bool = True) -> Run:
    run = toy.run(steps, callbacks=list(callbacks), momentum=0.5)
    run.loss_scaler = LossScaler() if scaled else None
    return run


def tiny_losses(toy: Toy, run: Run, factor: float = 1e-9):
    """Losses through float16, whose gradients there are far below its smallest number
    (6e-8)."""
    w_D = toy.weight(run)

    def losses(batch) -> StepLosses:
        x_BD, y_B = batch.latents_BCHW[:, 0, 0].half(), toy.y_N[list(batch.spec.items)]
        return StepLosses(
            {"network": ((x_BD @ w_D.half()).float() - y_B) ** 2 * factor}
        )

    return losses


def test_gradients_too_small_for_float16_are_kept(toy: Toy) -> None:
    lost, kept = half_run(toy, 3, scaled=False), half_run(toy, 3)
    for run in (lost, kept):
        run.roles["network"].lr = 0.1 / 1e-9
        toy.train(run, tiny_losses(toy, run))
    expected = toy.run(3, momentum=0.5)
    toy.train(expected, toy.step(expected))
    assert not toy.weight(lost).any()
    torch.testing.assert_close(
        toy.weight(kept), toy.weight(expected), rtol=2e-2, atol=2e-3
    )


def test_a_scale_that_is_too_large_skips_steps_and_ends_no_run(
    toy: Toy, recorder: Recorder
) -> None:
    run = half_run(toy, 12, [recorder])
    # 65536 times 4 is more than float16 holds
    toy.train(run, tiny_losses(toy, run, factor=4.0))
    skipped = [result.skipped for result in recorder.results]
    assert sum(skipped) > 3 and not any(skipped[-3:])
    scales = [result.extra_metrics["loss_scale"] for result in recorder.results]
    assert scales == [65536 / 2 ** sum(skipped[:step]) for step in range(12)]
    assert toy.weight(run).isfinite().all() and toy.weight(run).any()


def test_the_scale_is_in_the_state(toy: Toy, tmp_path: Path) -> None:
    whole = half_run(toy, 12)
    toy.train(whole, tiny_losses(toy, whole, 4.0))
    first = half_run(toy, 3)
    toy.train(first, tiny_losses(toy, first, 4.0))
    path = write_checkpoint(tmp_path / "states", snapshot_state(first), keep=1)
    second = half_run(toy, 12)
    load_state(path, second)
    assert second.loss_scaler.scale == first.loss_scaler.scale < 65536
    toy.train(second, tiny_losses(toy, second, 4.0))
    assert (
        torch.equal(toy.weight(second), toy.weight(whole)) and toy.weight(whole).any()
    )
