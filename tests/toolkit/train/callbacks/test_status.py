"""run.json and the status line."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from toolkit.config.sections.train import CompileConfig
from toolkit.contracts.training import RoleResult, TrainState
from toolkit.files.log import StatusLine
from toolkit.memory.compiling import Programs
from toolkit.train.callbacks.status import StatusCallback


@pytest.fixture
def run(toy):
    toy.folder.mkdir()
    return toy.run(40)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=50.0)
    fake = SimpleNamespace(
        monotonic=lambda: clock.now, strftime=time.strftime, gmtime=time.gmtime
    )
    monkeypatch.setattr("toolkit.train.callbacks.status.time", fake)
    return clock


def status(run) -> dict:
    return json.loads((run.folder / "run.json").read_text(), parse_constant=pytest.fail)


def hook_on() -> tuple[StatusCallback, io.StringIO]:
    stream = io.StringIO()
    return StatusCallback(StatusLine(stream)), stream


def test_it_is_running_from_before_the_first_step_and_ends_without_a_line_if_there_is_none(
    run,
) -> None:
    callback, stream = hook_on()
    callback.on_start(run)
    document = status(run)
    assert (
        document["status"],
        document["step"],
        document["steps"],
        document["loss"],
    ) == ("running", 0, 40, None)
    callback.on_end(run, finished=True)
    assert (stream.getvalue(), status(run)["status"]) == ("", "finished")


def test_it_is_rewritten_once_a_second_with_the_newest_numbers(
    run, result, clock
) -> None:
    callback, _ = hook_on()
    callback.on_start(run)
    seen = []
    for step in range(1, 9):
        run.state = TrainState(step=step, epoch=1, samples=3 * step)
        clock.now += 0.3
        callback.on_metrics(run, result(step, loss=float(step)))
        seen.append(status(run)["step"])
    assert seen == [0, 0, 0, 4, 4, 4, 4, 8]
    document = status(run)
    assert (
        document["epoch"],
        document["samples"],
        document["lr"],
        document["step_s"],
    ) == (1, 24, 0.1, 0.25)
    assert document["loss"] == 4.5  # the mean of 1 to 8


def test_a_loss_that_is_no_number_keeps_it_valid_json(run, result, clock) -> None:
    callback, stream = hook_on()
    callback.on_start(run)
    for step, loss in [(1, float("nan")), (2, 0.5), (3, float("inf"))]:
        clock.now += 2
        run.state = TrainState(step=step, skipped=1 + (step == 3))
        callback.on_metrics(run, result(step, loss=loss))
        assert status(run)["loss"] == (None if step == 1 else 0.5)
    assert status(run)["skipped"] == 2
    callback.on_end(run, finished=True)
    assert "2 skipped" in stream.getvalue()


@pytest.mark.parametrize(("finished", "word"), [(True, "finished"), (False, "stopped")])
def test_the_end_says_which_end_it_was(run, result, finished: bool, word: str) -> None:
    callback, stream = hook_on()
    callback.on_start(run)
    run.state = TrainState(step=7)
    callback.on_metrics(run, result(7))
    callback.on_end(run, finished)
    assert (status(run)["status"], status(run)["step"]) == (word, 7)
    assert "step 7 of 40 | " in stream.getvalue().splitlines()[-1]


def test_a_failure_is_told_with_its_error(run) -> None:
    callback, _ = hook_on()
    callback.on_start(run)
    callback.on_error(run, ValueError("no such thing"))
    assert (status(run)["status"], status(run)["error"]) == (
        "failed",
        "ValueError: no such thing",
    )


def test_the_line_tells_step_loss_speed_and_what_is_left(run, result) -> None:
    callback, stream = hook_on()
    callback.on_start(run)
    run.state = TrainState(step=10)
    callback.on_metrics(run, result(10, loss=0.5, step_s=4.0))
    line = stream.getvalue()
    for part in (
        "step 10 of 40 | ",
        "loss 0.5000 | avg 0.5000",
        "lr 1.0e-01",
        "4.00 s/it",
        "0s, 2 min left",
    ):
        assert part in line


def test_the_line_tells_the_terms_of_a_sum(run, result) -> None:
    callback, stream = hook_on()
    callback.on_start(run)
    numbers = {
        "loss_recon": 0.25,
        "loss_kl": 12.0,
        "loss_kl_weighted": 0.12,
        "kl_beta": 0.01,
        "contrast_loss": 0.5,
    }
    numbers |= {
        "loss_scale": 65536.0,
        "loss_disc": 2.0,
        "loss_disc_real": 1.0,
        "loss/vae": 0.9,
        "d_real": 1.0,
    }
    by_role = {"vae": RoleResult(0.9, 0.1, 1.0)}
    callback.on_metrics(
        run, replace(result(10), extra_metrics=numbers, by_role=by_role)
    )
    assert " | recon 0.25, kl 12, contrast 0.5, disc 2" in stream.getvalue()
    callback, stream = hook_on()
    callback.on_metrics(run, replace(result(10), extra_metrics={"loss_flow": 0.25}))
    assert "flow" not in stream.getvalue()
    callback, stream = hook_on()
    callback.on_metrics(run, replace(result(10), extra_metrics={"loss/held": 0.125}))
    assert " | held 0.125" in stream.getvalue()


def test_a_step_of_other_roles_alone_keeps_the_loss_of_the_last_that_had_one(
    run, result
) -> None:
    callback, stream = hook_on()
    run.roles = {"vae": SimpleNamespace(), "discriminator": SimpleNamespace()}
    callback.on_start(run)
    for step, names in enumerate(
        [("vae", "discriminator"), ("discriminator",), ("vae", "discriminator")], 1
    ):
        losses = {"vae": 0.25, "discriminator": 2.0}
        by_role = {name: RoleResult(losses[name], 0.1, 1.0) for name in names}
        callback.on_metrics(
            run,
            result(
                step, loss=0.25 if "vae" in names else float("nan"), by_role=by_role
            ),
        )
        assert "loss 0.2500" in callback._text(run, callback._last)
    callback.on_end(run, finished=True)
    assert "loss 0.2500 | avg 0.2500" in stream.getvalue()
    assert status(run)["loss"] == 0.25


def test_steps_that_compile_have_no_part_in_the_time_that_is_left(
    run, result, clock
) -> None:
    callback, stream = hook_on()
    callback.on_start(run)
    for step, changes in enumerate(
        [{"step_s": 60.0, "compiled": True}] * 2 + [{"step_s": 0.5}] * 2, start=1
    ):
        clock.now += 100.0
        run.state = TrainState(step=step)
        callback.on_metrics(run, result(step, **changes))
        assert status(run)["step_s"] == (None if step < 3 else 0.5)
    assert callback.now.now().left_s == 18
    callback.on_end(run, finished=True)
    shown = stream.getvalue()
    assert (
        "compiling" in shown
        and "60.00 s/it" not in shown
        and " left" not in shown.splitlines()[-1]
    )


def test_times_of_compiled_steps_are_forgotten_where_their_programs_are_given_up(
    run, result, clock
) -> None:
    callback, _ = hook_on()
    run.programs = Programs(CompileConfig())
    callback.on_start(run)
    for step, seconds in [(1, 0.5), (2, 0.5), (3, 2.0)]:
        if step == 3:
            run.programs.stop()
        clock.now += 100.0
        callback.on_metrics(run, result(step, step_s=seconds))
    assert status(run)["step_s"] == 2.0


def test_after_a_resume_the_mean_of_the_loss_is_that_of_the_run(run, result) -> None:
    """As an uninterrupted run shows it: over the latest 50 steps that learned; steps
    that are repeated count once."""
    losses = {step: step / 8 for step in range(1, 81)} | {70: None}
    rows = [
        {"step": step, "loss": loss, **({"skipped": True} if step == 75 else {})}
        for step, loss in losses.items()
    ]
    (run.folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows)
    )
    run.state = TrainState(step=78)
    callback, stream = hook_on()
    callback.on_start(run)
    callback.on_metrics(run, result(79, loss=losses[79]))
    kept = [losses[step] for step in range(1, 80) if step not in (70, 75)][-50:]
    assert f"loss {losses[79]:.4f} | avg {sum(kept) / 50:.4f}" in stream.getvalue()
    callback.on_end(run, finished=True)
    assert status(run)["loss"] == round(sum(kept) / 50, 6)
