"""The training loop on a regression that a reader can do by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from toolkit.config.sections.train import CompileConfig
from toolkit.contracts.training import StepLosses, TrainState
from toolkit.data.batches.epoch_order import epoch_cursor
from toolkit.errors import RunError, UserError
from toolkit.memory import compiling
from toolkit.memory.compiling import CompileTime, Programs
from toolkit.system.distributed import PeerFailedError
from toolkit.train.callbacks.metrics import MetricsCallback
from toolkit.train.metrics_buffer import MAX_CONSECUTIVE_SKIPS, MetricsBuffer
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Callback

NAN = float("nan")


def constant(lr: float):
    return lambda step: lr


# ------------------------------------------------------------ the arithmetic of a step


@pytest.mark.parametrize("accumulation", [1, 2, 3, 4])
def test_it_is_gradient_descent_on_the_mean_over_the_samples_of_a_window(
    toy, recorder, accumulation: int
) -> None:
    """The short batches of an epoch's end weigh by their samples, not as whole
    batches."""
    run = toy.run(8, accumulation=accumulation, callbacks=[recorder])
    assert toy.train(run, toy.step(run)) is True
    items = toy.items(8, accumulation)
    torch.testing.assert_close(recorder.weights, toy.by_hand(items, constant(0.1)))
    assert [r.samples for r in recorder.results] == list(accumulate(map(len, items)))


def test_the_loss_and_the_numbers_of_a_step_are_means_over_its_samples(
    toy, recorder
) -> None:
    run = toy.run(2, accumulation=2, callbacks=[recorder])
    toy.train(run, toy.step(run))
    # w = 0
    assert recorder.results[0].loss == pytest.approx(
        float((toy.y_N[:6] ** 2).mean()), rel=1e-6
    )
    assert recorder.results[0].per_sample["loss"] == pytest.approx(
        (toy.y_N[:6] ** 2).tolist()
    )
    assert recorder.results[1].per_sample["item"] == tuple(toy.items(2, 2)[1])
    assert [(r.step, r.epoch) for r in recorder.results] == [(1, 0), (2, 1)]


def test_the_average_moves_once_per_optimizer_step(toy, recorder) -> None:
    run = toy.run(3, accumulation=3, ema_decay=0.75, callbacks=[recorder])
    toy.train(run, toy.step(run))
    average, expected = torch.zeros(3), []
    weights = toy.by_hand(toy.items(3, accumulation=3), constant(0.1))
    for n, w_D in enumerate(weights, start=1):
        average = torch.lerp(average, w_D, 9 / (10 + n))
        expected.append(average)
    torch.testing.assert_close(recorder.averages, expected)


def test_only_the_batches_that_are_trained_are_loaded(toy) -> None:
    asked = []

    def load(specs):
        specs = list(specs)
        asked.extend(specs)
        return toy.load(specs)

    run = toy.run(4, accumulation=2)
    toy.train(run, toy.step(run), load)
    assert [spec.items for spec in asked] == [
        s.items for epoch in range(3) for s in toy.epoch_batches(epoch)
    ][:8]


# ------------------------------------------------------------ losses that are not
# numbers


def broken_for(toy, run, broken: set[int], value: float = NAN):
    """The toy's step, whose loss is `value` for these samples."""
    good = toy.step(run)

    def losses(batch):
        loss_B = good(batch).by_role["network"]
        bad_B = torch.tensor([item in broken for item in batch.spec.items])
        return StepLosses(
            {"network": torch.where(bad_B, torch.full_like(loss_B, value), loss_B)}
        )

    return losses


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_step_whose_loss_is_no_number_changes_nothing_but_the_count(
    toy, recorder, value: float
) -> None:
    run = toy.run(3, momentum=0.9, ema_decay=0.5, callbacks=[recorder])
    momentum_after = []

    class Momentum(Callback):
        def after_step(self, run) -> None:
            state = run.roles["network"].optimizer.state_dict()["state"][0]
            momentum_after.append(state["momentum_buffer"].clone())

    run.callbacks.append(Momentum())
    toy.train(run, broken_for(toy, run, {4}, value))  # sample 4 is in step 2 alone
    assert [r.skipped for r in recorder.results] == [False, True, False]
    for kept in (recorder.weights, recorder.averages, momentum_after):
        assert torch.equal(kept[0], kept[1])
        assert not torch.equal(kept[1], kept[2])
    assert run.roles["network"].ema.updates == 2
    assert (run.state.step, run.state.skipped, run.state.samples) == (3, 1, 7)
    assert not math.isfinite(recorder.results[1].loss)


def test_the_loss_of_a_step_is_that_of_the_first_role(toy, recorder) -> None:
    """Not a sum with a discriminator's own; in a step that does not train the first
    role it is no number."""
    run = toy.run(4, callbacks=[recorder], accumulation=2)
    weights = {"v": nn.Parameter(torch.ones(1))}
    run.roles["other"] = Role(
        weights,
        torch.optim.SGD(weights.values(), lr=0.0),
        lr=0.1,
        schedule=lambda step: 1.0,
    )
    run.roles["network"].every = 2
    good = toy.step(run)

    def step(batch) -> StepLosses:
        losses = good(batch)
        return StepLosses(
            losses.by_role | {"other": 100 * weights["v"].expand(len(batch)) ** 2},
            losses.per_sample,
        )

    toy.train(run, step)
    for result in recorder.results:
        if "network" in result.by_role:
            own = result.per_sample["loss"]
            assert (
                result.loss
                == result.by_role["network"].loss
                == pytest.approx(sum(own) / len(own))
            )
        else:
            assert math.isnan(result.loss) and "loss" not in result.per_sample
    assert ["network" in result.by_role for result in recorder.results] == [
        True,
        False,
        True,
        False,
    ]


def test_one_bad_micro_batch_skips_its_whole_window(toy, recorder) -> None:
    run = toy.run(1, accumulation=2, callbacks=[recorder])
    toy.train(run, broken_for(toy, run, {4}))  # in the second of the two
    assert [r.skipped for r in recorder.results] == [True]
    assert toy.weight(run).tolist() == [0.0, 0.0, 0.0]
    assert toy.weight(run).grad is None


def test_a_gradient_that_is_no_number_skips_the_step_though_the_loss_is_one(
    toy, recorder
) -> None:
    run = toy.run(2, callbacks=[recorder])
    w_D = toy.weight(run)
    toy.train(
        run, lambda batch: StepLosses({"network": w_D.sum().sqrt().repeat(len(batch))})
    )
    # d sqrt(w) at 0 is infinite
    assert [(r.loss, r.skipped) for r in recorder.results] == [
        (0.0, True),
        (0.0, True),
    ]
    assert w_D.tolist() == [0.0, 0.0, 0.0]


def test_three_skipped_steps_in_a_row_end_the_run_and_name_the_files(
    toy, recorder
) -> None:
    run = toy.run(9, callbacks=[recorder])
    with pytest.raises(RunError) as error:
        toy.train(run, broken_for(toy, run, {3, 6, 1, 2}))
    # Step 1 holds sample 1, step 2 sample 3, step 3 sample 6.
    assert run.state.step == run.state.skipped == MAX_CONSECUTIVE_SKIPS == 3
    assert "image_6.png" in str(error.value)
    # nothing is saved after the third
    assert recorder.calls == [
        "start",
        "step 1",
        "step 2",
        "error",
    ]
    assert recorder.errors == [error.value]


def test_skipped_steps_with_a_good_one_between_them_do_not_end_the_run(
    toy, recorder
) -> None:
    run = toy.run(9, callbacks=[recorder])
    toy.train(run, broken_for(toy, run, {3}))
    # Sample 3 is in batches [2nd], [1st], [1st] of the three epochs: never three in a
    # row.
    assert [r.step for r in recorder.results if r.skipped] == [2, 4, 7]
    assert run.state.step == 9


# ------------------------------------------------------------ stopping and going on


def stop_after(micro_batches: int):
    """A `should_stop` that says yes once the loop has asked this often (it asks before
    each window and batch)."""
    asked = iter(range(1000))
    return lambda: next(asked) >= micro_batches


def test_a_stop_within_a_window_discards_what_was_begun(toy, recorder) -> None:
    run = toy.run(6, accumulation=3, callbacks=[recorder])
    seen = []

    def step(batch):
        seen.append(batch.spec.items)
        return toy.step(run)(batch)

    run.should_stop = lambda: len(seen) == 4  # one micro-batch into the second window
    assert toy.train(run, step) is False
    assert run.state == TrainState(
        step=1, cursor=epoch_cursor(0, 3), epochs_done=1, samples=7
    )
    assert toy.weight(run).grad is None
    torch.testing.assert_close(
        toy.weight(run).detach(), toy.by_hand(toy.items(1, 3), constant(0.1))[-1]
    )
    assert recorder.calls == ["start", "step 1", "end False"]


@pytest.mark.parametrize("asked", [1, 2, 3, 5, 8])
def test_going_on_after_a_stop_ends_in_the_same_weights(toy, asked: int) -> None:
    whole = toy.run(5, accumulation=2)
    toy.train(whole, toy.step(whole))
    run = toy.run(5, accumulation=2)
    run.should_stop = stop_after(asked)
    assert not toy.train(run, toy.step(run))
    assert run.state.step < 5
    run.should_stop = lambda: False
    assert toy.train(run, toy.step(run))
    assert torch.equal(toy.weight(run), toy.weight(whole))
    assert run.state == whole.state


# ------------------------------------------------------------ randomness


def draws_of(toy, run) -> list[float]:
    """What a step that draws from torch's global generator gets in each micro-batch of
    a training."""
    drawn = []

    def step(batch):
        drawn.append(float(torch.rand(())))
        return toy.step(run)(batch)

    toy.train(run, step)
    return drawn


def test_global_draws_are_keyed_by_micro_batch_and_leave_the_global_generator_alone(
    toy,
) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    whole = draws_of(toy, toy.run(6))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(whole)) == 6
    torch.manual_seed(12)  # another process, that goes on after four steps
    resumed = toy.run(6)
    resumed.state = TrainState(step=4, epoch=1, cursor=epoch_cursor(1, 1))
    assert draws_of(toy, resumed) == whole[4:]
    assert draws_of(toy, toy.run(3, accumulation=2)) == whole
    assert draws_of(toy, replace(toy.run(6), seed=6)) != whole


# ------------------------------------------------------------ hooks and the clock


@dataclass
class Named(Callback):
    name: str
    said: list[str]

    def on_start(self, run) -> None:
        self.said.append(f"{self.name} start")

    def after_step(self, run) -> None:
        self.said.append(f"{self.name} step")

    def on_end(self, run, finished) -> None:
        self.said.append(f"{self.name} end")

    def on_error(self, run, error) -> None:
        self.said.append(f"{self.name} error")


def test_hooks_are_called_in_their_order_at_each_moment(toy) -> None:
    said: list[str] = []
    run = toy.run(1, callbacks=[Named("a", said), Named("b", said)])
    toy.train(run, toy.step(run))
    assert said == ["a start", "b start", "a step", "b step", "a end", "b end"]


@pytest.mark.parametrize("moment", ["on_start", "on_metrics", "after_step", "on_end"])
def test_every_hook_hears_of_an_error_and_the_error_goes_on(toy, moment: str) -> None:
    said: list[str] = []

    class Fails(Callback):
        essential = True

    def fail(*_) -> None:
        raise OSError("disk full")

    setattr(Fails, moment, fail)
    run = toy.run(1, callbacks=[Named("a", said), Fails(), Named("b", said)])
    with pytest.raises(OSError, match="disk full"):
        toy.train(run, toy.step(run))
    assert said[-2:] == ["a error", "b error"]


MOMENTS = {
    "on_start": lambda run: None,
    "after_step": lambda run: None,
    "on_metrics": lambda run: None,
    "on_end": lambda run: None,
    "log": lambda run: run.log(1, {"a": 1.0}),
    "on_save": lambda run: run.event("save", step=1),
    "on_sample": lambda run: run.event("sample", step=1),
}
"""Call of a callback -> what brings it about, where the loop does not."""


class Share(Callback):
    """Fails with an error at each call of one name."""

    def __init__(self, moment: str, error: BaseException) -> None:
        self.calls = 0

        def fail(*_, **__) -> None:
            self.calls += 1
            raise error

        setattr(self, moment, fail)


class After(Callback):
    def __init__(self, act: Callable) -> None:
        self.after_step = act


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("error", [OSError("share is gone"), SystemExit(3)], ids=repr)
def test_a_callback_that_raises_is_reported_once_and_switched_off(
    toy, recorder, caplog, moment: str, error: BaseException
) -> None:
    toy.folder.mkdir()
    share = Share(moment, error)
    run = toy.run(3, callbacks=[share, After(MOMENTS[moment]), recorder])
    assert toy.train(run, toy.step(run))
    assert share.calls == 1
    assert recorder.calls[-2:] == ["step 3", "end True"]
    (record,) = caplog.records
    assert f"the callback Share failed ({__file__}:" in record.getMessage()
    rows = [json.loads(row) for row in (toy.folder / "events.jsonl").open()]
    assert [row["kind"] for row in rows if row["event"] == "warning"] == ["callback"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("error", [RunError("no"), UserError("no")], ids=repr)
def test_the_errors_of_the_program_end_the_run_from_any_callback(
    toy, moment: str, error: Exception
) -> None:
    toy.folder.mkdir()
    run = toy.run(3, callbacks=[Share(moment, error), After(MOMENTS[moment])])
    with pytest.raises(type(error), match="no"):
        toy.train(run, toy.step(run))


def test_the_own_callbacks_and_what_is_derived_from_them_are_essential() -> None:
    class Derived(MetricsCallback):
        pass

    assert Derived.essential and not Share.essential


def test_an_error_in_on_error_hides_no_other_error(toy, recorder) -> None:
    toy.folder.mkdir()
    share = Share("on_error", RunError("the share is gone too"))
    first = Share("after_step", RunError("the first"))
    run = toy.run(1, callbacks=[first, share, recorder])
    with pytest.raises(RunError, match="the first"):
        toy.train(run, toy.step(run))
    assert (share.calls, recorder.calls[-1]) == (1, "error")


def test_after_the_end_of_another_process_no_number_is_fetched(
    toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reduction that the dead process never joins may be before it on the device."""
    fetched: list[str] = []
    monkeypatch.setattr(MetricsBuffer, "flush", lambda buffer: fetched.append("now"))
    for error in (PeerFailedError("rank 1 is gone"), RunError("of this one")):

        class Fails(Callback):
            def after_step(self, run, error=error) -> None:
                fetched.clear()
                raise error

        run = toy.run(2, callbacks=[Fails()])
        with pytest.raises(type(error)):
            toy.train(run, toy.step(run))
        assert bool(fetched) != isinstance(error, PeerFailedError)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What steps are timed by."""
    clock = SimpleNamespace(now=100.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr("toolkit.train.metrics_buffer.time", fake)
    return clock


def test_step_time_holds_data_and_logging_but_not_saving(toy, recorder, clock) -> None:

    class Takes(Callback):
        def __init__(self, seconds: float, counts: bool) -> None:
            self.seconds, self.included_in_step_time = seconds, counts

        def on_start(self, run) -> None:
            clock.now += 1000.0

        def after_step(self, run) -> None:
            clock.now += self.seconds

    def load(specs):
        for batch in toy.load(specs):
            clock.now += 1.0
            yield batch

    run = toy.run(
        3,
        accumulation=2,
        callbacks=[Takes(0.5, counts=True), Takes(64.0, counts=False), recorder],
    )

    def step(batch):
        clock.now += 4.0
        return toy.step(run)(batch)

    toy.train(run, step, load)
    # Two micro-batches of 1 s waiting and 4 s work each; the logging of a step is part
    # of the next one's time.
    assert [r.step_s for r in recorder.results] == [10.0, 10.5, 10.5]
    assert [r.data_s for r in recorder.results] == [2.0, 2.0, 2.0]


def test_step_time_is_that_without_compiling(
    toy, recorder, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling._clock, "total", CompileTime())
    run = toy.run(3, callbacks=[recorder])
    run.programs = Programs(CompileConfig(enabled=True, backend="eager"))

    def step(batch):
        took = 60.0 if run.state.step == 1 else 0.0
        clock.now += took + 4.0
        monkeypatch.setattr(
            compiling._clock,
            "total",
            CompileTime(1, compiling._clock.total.seconds + took),
        )
        return toy.step(run)(batch)

    toy.train(run, step)
    assert [r.step_s for r in recorder.results] == [4.0, 4.0, 4.0]
    assert [(r.compile_s, r.compiled) for r in recorder.results] == [
        (0.0, False),
        (60.0, True),
        (0.0, False),
    ]


# ------------------------------------------------------------ memory that runs out


def out_of_memory_above(toy, run, most: int, backward: bool = False):
    """The toy's step on a device that holds `most` samples at a time."""
    losses = toy.step(run)

    def step(batch):
        if len(batch) > most and not backward:
            raise RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            )
        result = losses(batch)
        if len(batch) > most:
            result.by_role["network"].register_hook(fail)
        return result

    def fail(gradient):
        raise torch.OutOfMemoryError("no memory left in the backward pass")

    return step


@pytest.mark.parametrize(
    ("accumulation", "backward"), [(1, False), (2, True), (3, False)]
)
def test_a_window_that_runs_out_of_memory_is_done_once_more_in_halves(
    toy, recorder, accumulation: int, backward: bool
) -> None:
    run = toy.run(6, accumulation=accumulation, callbacks=[recorder])
    toy.train(run, out_of_memory_above(toy, run, 2, backward))
    torch.testing.assert_close(
        recorder.weights, toy.by_hand(toy.items(6, accumulation), constant(0.1))
    )
    assert run.state.skipped == 0


def test_what_does_not_fit_in_halves_ends_the_run_with_advice(toy, recorder) -> None:
    run = toy.run(3, callbacks=[recorder])
    run.oom_hint = lambda: "Use less of everything."
    with pytest.raises(
        RunError, match=r"image_0\.png, image_1\.png .*Use less of everything\."
    ):
        toy.train(run, out_of_memory_above(toy, run, 1))
    assert recorder.calls == ["start", "error"]


def test_a_batch_of_one_cannot_be_halved(toy) -> None:
    run = toy.run(3)
    with pytest.raises(RunError, match="out of memory"):
        toy.train(
            run,
            out_of_memory_above(toy, run, 0),
            epoch_batches=lambda epoch: toy.epoch_batches(epoch)[2:],
        )


def test_nothing_is_halved_in_lockstep(toy, recorder) -> None:
    """The other processes would not make these passes."""
    run = toy.run(3, callbacks=[recorder])
    run.sharded, run.oom_hint = True, lambda: "Use less of everything."
    step = out_of_memory_above(toy, run, 2)
    with pytest.raises(RunError, match=r"out of memory .*Use less of everything"):
        toy.probe(run, next(toy.load(toy.epoch_batches(0))), step)
    with pytest.raises(RunError, match=r"out of memory .*Use less of everything"):
        toy.train(run, step)
    assert recorder.calls == ["start", "error"]


@pytest.mark.parametrize(
    ("room", "asked", "says"), [(0, 0, None), (2, 2, None), (5, 3, "split in two")]
)
def test_what_can_save_memory_is_asked_before_the_batch_is_halved(
    toy, room: int, asked: int, says
) -> None:
    """Memory is short until it was saved `room` times; it can be three times."""
    run, saved = toy.run(3), []
    fits, short = (out_of_memory_above(toy, run, most) for most in (3, 2))

    def save_more() -> bool:
        if len(saved) == 3:
            return False
        saved.append("more")
        return True

    batch = next(toy.load(toy.epoch_batches(0)))
    said = toy.probe(
        run,
        batch,
        lambda batch: (fits if len(saved) >= room else short)(batch),
        save_more,
    )
    assert len(saved) == asked
    assert said is None if says is None else says in said


@pytest.mark.parametrize(
    ("most", "says"), [(3, None), (2, "split in two"), (1, RunError)]
)
def test_the_largest_batch_is_tried_first_and_nothing_is_learned_from_it(
    toy, most: int, says
) -> None:
    run = toy.run(3)
    run.oom_hint = lambda: "Use less of everything."
    batch = next(toy.load(toy.epoch_batches(0)))
    step = out_of_memory_above(toy, run, most)
    if says is RunError:
        with pytest.raises(RunError, match="Use less of everything"):
            toy.probe(run, batch, step)
    else:
        said = toy.probe(run, batch, step)
        assert said is None if says is None else says in said
    assert toy.weight(run).grad is None
    assert not toy.weight(run).any()
    assert run.state == TrainState()
