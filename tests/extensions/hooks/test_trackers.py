"""What trackers are told of a run, and that a run never depends on them."""

from __future__ import annotations

import json
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from extensions.hooks import trackers as hook_module
from extensions.hooks.trackers import TrackerCallback
from tests.event_files import curves
from tests.running import lines, run_job
from toolkit.config.sections.output import LoggingConfig
from toolkit.contracts.training import TrainState
from toolkit.train.callbacks.metrics import MetricsCallback
from toolkit.train.trackers.tracker import RunInfo, Tracker

KEY = "c0ffee99" * 5


class Recording(Tracker):
    """Keeps what it is told."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self.curves: dict[str, dict[int, float]] = defaultdict(dict)
        self.steps: list[int] = []
        self.images: list[tuple[int, str, Path]] = []
        self.closed = False

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.steps.append(step)
        for name, value in values.items():
            assert step not in self.curves[name]
            self.curves[name][step] = value

    def image(self, step: int, name: str, path: Path) -> None:
        self.steps.append(step)
        self.images.append((step, name, path))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """Every tracker that was opened."""
    found: list[Recording] = []

    def open_tracker(name: str, run: RunInfo) -> Recording:
        found.append(Recording(run))
        return found[-1]

    monkeypatch.setattr(hook_module, "open_tracker", open_tracker)
    monkeypatch.setattr(hook_module, "WAIT_AT_END_S", 60.0)
    return found


@pytest.fixture
def run(toy):
    toy.folder.mkdir()
    return toy.run(100)


def watching(run, **options) -> TrackerCallback:
    section = LoggingConfig(logging_dir="tb", **options)
    return TrackerCallback(section, "job", run.folder)


def tell(run, results, finished: bool = True, **options) -> TrackerCallback:
    """What the loop calls for these results."""
    callback = watching(run, **options)
    metrics = MetricsCallback()
    for each in (metrics, callback):
        each.on_start(run)
    for result in results:
        run.state.step = result.step
        for each in (metrics, callback):
            each.on_metrics(run, result)
    for each in (metrics, callback):
        each.on_end(run, finished)
    return callback


def test_every_step_has_its_numbers(run, opened, result) -> None:
    tell(
        run,
        [
            result(1, loss=0.5),
            result(
                2, loss=1.0, lr_by_group={"up": 0.5}, extra_metrics={"norm/max": 3.0}
            ),
        ],
        False,
    )
    [tracker] = opened
    assert tracker.closed
    assert dict(tracker.curves) == {
        "loss/current": {1: 0.5, 2: 1.0},
        "loss/average": {1: 0.5, 2: 0.75},
        "lr": {1: 0.1, 2: 0.1},
        "lr/up": {2: 0.5},
        "norm/max": {2: 3.0},
        "grad_norm": {1: 2.0, 2: 2.0},
        "time/step_s": {1: 0.25, 2: 0.25},
        "time/data_s": {1: 0.0625, 2: 0.0625},
        "skipped": {1: 0, 2: 0},
    }


def test_a_step_that_was_skipped_has_no_loss_and_is_counted(
    run, opened, result
) -> None:
    nan = float("nan")
    run.state.skipped = 3
    tell(run, [result(1, loss=nan, grad_norm=nan), result(2, loss=1.0)], finished=False)
    curves = opened[0].curves
    assert (curves["loss/current"], curves["grad_norm"], curves["skipped"]) == (
        {2: 1.0},
        {2: 2.0},
        {1: 4, 2: 4},
    )


def test_the_loss_by_noise_level_is_the_mean_over_the_interval(
    run, opened, result
) -> None:
    samples = [
        ((0.05, 0.95), (1.0, 4.0)),
        ((0.05, 0.35), (2.0, 8.0)),
        ((0.05,), (5.0,)),
    ]
    results = [
        result(n, per_sample={"t": t, "loss": loss})
        for n, (t, loss) in enumerate(samples, start=1)
    ]
    tell(run, results, log_every=2)
    bands = {
        name: curve
        for name, curve in opened[0].curves.items()
        if name.startswith("loss_by_t/")
    }
    assert bands == {
        "loss_by_t/0.0-0.1": {2: 1.5, 3: 5.0},
        "loss_by_t/0.3-0.4": {2: 8.0},
        "loss_by_t/0.9-1.0": {2: 4.0},
    }


def test_a_trainer_without_noise_levels_has_no_bands(run, opened, result) -> None:
    tell(run, [result(1, per_sample={"loss": (1.0,)})], log_every=1)
    assert not [name for name in opened[0].curves if name.startswith("loss_by_t")]


def test_averages_go_on_over_a_resume(run, opened, result) -> None:
    """Two epochs of 4 steps, then the end of a third; broken off after step 6 and
    resumed from step 5, and whole."""
    results = [result(n, epoch=(n - 1) // 4, loss=float(n)) for n in range(1, 11)]
    tell(run, results)
    run.state = TrainState()
    tell(run, results[:6], finished=False)
    run.state = TrainState(step=5)
    tell(run, results[5:])
    whole, before, after = (tracker.curves for tracker in opened)
    assert whole["loss/epoch"] == {5: 2.5, 9: 6.5, 11: 9.5}
    for name in ("loss/average", "loss/epoch"):
        assert {
            **{n: value for n, value in before[name].items() if n <= 5},
            **after[name],
        } == whole[name]
    assert opened[2].run.step == 5


def test_samples_and_numbers_of_other_hooks_come_in_the_order_of_the_steps(
    run, opened, result
) -> None:
    """They are made at their step, whose own numbers may come later."""
    callback = watching(run)
    run.callbacks = [callback]
    callback.log(0, {"validation/loss": 9.0})  # before its own start
    run.event("sample", step=0, files=["a.jpg"])
    callback.on_start(run)
    callback.log(2, {"validation/loss": 4.0, "validation/t_0.9": float("inf")})
    run.event("sample", step=2, files=["b.jpg", "c.jpg"])
    run.event("save", step=2, files=["x.safetensors"])
    for step in (1, 2, 3):
        callback.on_metrics(run, result(step))
    run.event("sample", step=3, files=["d.jpg"])
    callback.log(4, {"validation/loss": 3.0})
    callback.on_end(run, finished=False)
    [tracker] = opened
    assert tracker.steps == sorted(tracker.steps)
    assert tracker.curves["validation/loss"] == {0: 9.0, 2: 4.0, 4: 3.0}
    assert "validation/t_0.9" not in tracker.curves
    assert [(step, name, path.name) for step, name, path in tracker.images] == [
        (0, "samples/0", "a.jpg"),
        (2, "samples/0", "b.jpg"),
        (2, "samples/1", "c.jpg"),
        (3, "samples/0", "d.jpg"),
    ]
    assert {path.parent for _, _, path in tracker.images} == {run.folder / "samples"}


def test_numbers_told_where_a_resume_begins_come_before_those_of_its_first_step(
    run, opened, result
) -> None:
    run.state = TrainState(step=5)
    callback = watching(run)
    callback.log(5, {"validation/loss": 9.0})
    callback.on_start(run)
    callback.on_metrics(run, result(6))
    callback.on_end(run, finished=False)
    assert opened[0].steps == [5, 6]


def test_all_trackers_are_told(run, opened, result) -> None:
    tell(run, [result(1)], log_with="all")
    assert [tracker.curves["loss/current"] for tracker in opened] == [
        {1: 0.5},
        {1: 0.5},
    ]


# ------------------------------------------------------------ trackers that fail


@pytest.mark.parametrize("where", ["open", "scalars", "close"])
def test_a_run_ends_as_usual_beside_a_tracker_that_fails(
    said: list[str], toy, monkeypatch, where: str
) -> None:
    def fail(*_):
        raise ConnectionError("gone")

    made = []

    class Failing(Recording):
        def __init__(self, run: RunInfo) -> None:
            super().__init__(run)
            made.append(self)

    if where != "open":
        setattr(Failing, where, fail)
    monkeypatch.setattr(
        hook_module,
        "open_tracker",
        fail if where == "open" else lambda name, run: Failing(run),
    )
    toy.folder.mkdir()
    plain, watched = toy.run(6), toy.run(6)
    callback = watching(toy)
    watched.callbacks = [callback]
    for each in (plain, watched):
        assert toy.train(each, toy.step(each))
    assert toy.weight(plain).equal(toy.weight(watched))
    assert said == [
        "tensorboard failed; the run continues without it: ConnectionError: gone"
    ]
    closed = {"open": [], "scalars": [True], "close": [False]}
    assert [tracker.closed for tracker in made] == closed[where]


def test_a_run_ends_beside_a_tracker_that_never_answers(
    said: list[str], toy, monkeypatch
) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(
        hook_module, "open_tracker", lambda name, run: may_end.wait() and Recording(run)
    )
    monkeypatch.setattr(hook_module, "WAIT_AT_END_S", 0.01)
    toy.folder.mkdir()
    run = toy.run(6)
    run.callbacks = [
        MetricsCallback(),
        watching(toy),
    ]
    assert toy.train(run, toy.step(run))
    may_end.set()
    assert said == ["tensorboard did not finish within 0.01 s: not waiting for it"]
    lines = (toy.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_trackers_are_closed_when_the_run_fails(run, opened, result) -> None:
    callback = watching(run)
    callback.on_start(run)
    callback.on_metrics(run, result(1))
    callback.on_error(run, RuntimeError())
    assert opened[0].closed and opened[0].curves["loss/current"] == {1: 0.5}


def test_an_error_before_the_start_is_no_second_one(run, opened) -> None:
    watching(run).on_error(run, RuntimeError())
    assert opened == []


# ------------------------------------------------------------ a whole job


@pytest.fixture
def job_of(
    trainer, make_pictures, write_job, tmp_path: Path, monkeypatch
) -> Callable[[int], None]:
    """Runs a job of so many steps in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # the machine may be busy
    monkeypatch.setattr("extensions.hooks.trackers.WAIT_AT_END_S", 60.0)
    photos = make_pictures(tmp_path / "photos", "a", "b", "c")

    def run(steps: int) -> None:
        section = trainer(
            photos,
            train={"steps": steps},
            name="first",
            save={"dtype": "float32", "save_every": 2},
            sample={
                "sample_every": 2,
                "sample_steps": 1,
                "width": 64,
                "height": 64,
                "guidance_scale": 1,
                "prompts": ["a", "b"],
            },
            validation={"fraction": 0.34, "every": 2},
            logging={
                "use_wandb": True,
                "logging_dir": "tb",
                "log_every": 2,
                "wandb_api_key": KEY,
            }
            | {"report": True},
        )
        run_job(write_job(section))

    return run


@pytest.mark.slow
def test_curves_and_samples_are_drawn_without_a_double_over_a_resume(
    job_of, tmp_path: Path
) -> None:
    folder = tmp_path / "output" / "job" / "first"
    job_of(4)
    wandb_run = (folder / "wandb" / "run_id").read_text()
    # as if it had been killed before it saved a second time
    shutil.rmtree(folder / "state" / "step_000000004")
    job_of(5)

    drawn = curves(tmp_path / "tb" / "job" / "first")
    rows = lines(folder / "metrics.jsonl")
    assert [line["step"] for line in rows] == [1, 2, 3, 4, 5]
    for name, key in (
        ("loss/current", "loss"),
        ("grad_norm", "grad_norm"),
        ("lr", "lr"),
    ):
        assert drawn[name] == pytest.approx(
            {line["step"]: line[key] for line in rows}
        ), name
    assert (
        list(drawn["loss/average"])
        == list(drawn["time/step_s"])
        == list(drawn["skipped"])
        == [1, 2, 3, 4, 5]
    )
    assert {
        step
        for name, curve in drawn.items()
        if name.startswith("loss_by_t/")
        for step in curve
    } == {2, 4, 5}
    assert list(drawn["samples/0"]) == list(drawn["samples/1"]) == [0, 2, 4, 5]
    validated = lines(folder / "validation.jsonl")
    name = next(name for name in validated[0] if name != "step")
    assert list(drawn[name]) == [line["step"] for line in validated] == [0, 2, 4, 5]

    assert (folder / "wandb" / "run_id").read_text() == wandb_run
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 2
    assert (
        len(list((folder / "wandb").glob("offline-run-*/files/media/images/samples/*")))
        == 10
    )
    # behind the status of the end and all that was saved
    report = (folder / "report.html").read_text()
    assert (
        ">finished<" in report and "5 steps" in report and "first.safetensors" in report
    )
    files = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name != "job.yaml"
    ]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    # OMP_NUM_THREADS is set in tests
    assert "threads of the CPU: " not in (folder / "log.txt").read_text()
