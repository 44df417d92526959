"""The time that is left, and who writes run.json when."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import heard
from tests.processes import until
from toolkit.config.sections.train import UNTIL_THE_DATA_ENDS
from toolkit.contracts.training import TrainState
from toolkit.errors import RunError
from toolkit.files import now
from toolkit.files.log import StatusLine
from toolkit.train import now as module
from toolkit.train.now import RunNow
from toolkit.train.run import Callback, Run

PLANNED = {
    "loading": 60.0,
    "encoding": 40.0,
    "compiling": 30.0,
    "steps": 1000.0,
    "samples": 80.0,
    "validation": 20.0,
    "saving": 10.0,
}


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=100.0)


@pytest.fixture
def run_now(clock) -> RunNow:
    found = RunNow(StatusLine(io.StringIO()), lambda: clock.now)
    found.plan(PLANNED, pictures=8)
    return found


class Coming(Callback):
    def __init__(self, coming: dict[str, float]) -> None:
        self.coming = lambda run: coming


def a_run(step: int, steps: int = 1000, **coming: float) -> Run:
    return Run(
        "run",
        Path("run"),
        steps,
        grad_accum_steps=1,
        seed=0,
        roles={},
        state=TrainState(step=step),
        callbacks=[Coming(coming)],
    )


def left(run_now: RunNow) -> float | None:
    return run_now.now().left_s


def test_the_time_of_the_plan_is_there_from_the_beginning_and_passes(
    run_now: RunNow, clock
) -> None:
    run_now.tell("reading")
    assert left(run_now) == sum(PLANNED.values()) and run_now.now().share == 0
    clock.now += 25
    assert left(run_now) == sum(PLANNED.values()) - 25
    assert run_now.now().share == pytest.approx(25 / sum(PLANNED.values()))
    clock.now += 100  # longer than planned: the rest is as planned
    assert left(run_now) == sum(PLANNED.values()) - 60


def test_what_is_counted_is_measured(run_now: RunNow, clock) -> None:
    others = sum(PLANNED.values()) - 60 - 40
    run_now.tell("encoding", 1, 21, "images")
    clock.now += 10
    run_now.tell("encoding", 6, 21, "images")
    assert run_now.now().phase_left_s == 30 and left(run_now) == others + 60 + 30
    run_now.tell("quantizing", 1, 11, "block")
    clock.now += 4
    run_now.tell("quantizing", 3, 11, "block")
    assert run_now.now().phase_left_s == 16 and left(run_now) == others + 16, (
        "encoding is over"
    )


def test_a_download_comes_on_top_once_its_pace_is_known(run_now: RunNow, clock) -> None:
    run_now.tell("downloading", 30, 58, "GB")  # an interrupted one goes on
    assert (run_now.now().phase_left_s, left(run_now)) == (None, None)
    clock.now += 100
    run_now.tell("downloading", 32, 58, "GB")
    assert (
        run_now.now().phase_left_s == 1300
        and left(run_now) == sum(PLANNED.values()) + 1300
    )


def test_measured_steps_samples_and_saves_take_the_place_of_planned_ones(
    run_now: RunNow, clock
) -> None:
    run = a_run(0, sampling=8, saving=4)
    run_now.follow(run)
    with now.told_to(run_now):
        with now.during("sampling", 1, 2):
            clock.now += 3
            now.tell("sampling", 2, 2)
            clock.now += 3
        run_now.step(run, None)
        assert left(run_now) == 30 + 1000 + 8 * 3 + 20 + 10, (
            "compiling, steps, validation and saving are planned"
        )
        run.state.step = 500
        run_now.step(run, 0.5)
        assert left(run_now) == 250 + 24 + (20 + 10) / 2
        with now.during("saving"):
            clock.now += 2
        assert left(run_now) == 250 + 24 + 20 / 2 + 4 * 2
        run.callbacks[0].coming = lambda run: {"sampling": 6, "saving": 4}
        now.tell("sampling", 1, 2)
        assert (
            run_now.now().phase_left_s == 6 and left(run_now) == 250 + 24 + 20 / 2 + 8
        )


def test_without_a_plan_it_is_known_after_a_step(clock) -> None:
    run_now, run = RunNow(StatusLine(io.StringIO()), lambda: clock.now), a_run(3, 10)
    run_now.follow(run)
    run_now.tell("reading")
    assert (left(run_now), run_now.now().share) == (None, 0.3)
    clock.now += 7
    assert run_now.step(run, 2.0).line() == "step 3 of 10, 14 s left"
    assert run_now.now().share == pytest.approx(7 / 21)


def test_the_steps_of_an_earlier_start_count_in_the_bar(run_now: RunNow, clock) -> None:
    run = a_run(500)
    run_now.plan({}, steps_before=500)
    run_now.follow(run)
    run_now.step(run, 2.0)
    assert run_now.now().share == pytest.approx(0.5)


def test_until_the_data_ends_nobody_knows_the_end(run_now: RunNow) -> None:
    run = a_run(4, UNTIL_THE_DATA_ENDS, sampling=3)
    run_now.follow(run)
    assert run_now.step(run, 2.0).line() == "step 4"
    assert (left(run_now), run_now.now().share) == (None, None)


def test_a_pipe_gets_a_line_for_each_new_phase_and_few_others(clock) -> None:
    stream = io.StringIO()
    run_now = RunNow(StatusLine(stream, clock=lambda: clock.now), lambda: clock.now)
    for second in range(25):
        run_now.tell("encoding", second + 1, 25, "images")
        clock.now += 1
    for _ in range(3):
        run_now.tell("sampling", 1, 3)
        run_now._take("step", 1, 10, "")
    lines = [line.split(",")[0] for line in stream.getvalue().splitlines()]
    assert lines == [
        "encoding 1 of 25 images",
        "encoding 11 of 25 images",
        "encoding 21 of 25 images",
        "sampling 1 of 3",
    ]


# ------------------------------------------------------------ run.json


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.02)


def document(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_it_stands_in_run_json_from_the_beginning_to_the_end(
    tmp_path: Path, quick
) -> None:
    run_now = RunNow(StatusLine(io.StringIO()))
    run_now.tell("reading")
    with run_now.written(tmp_path, "job"):
        first = document(tmp_path)
        assert (first["name"], first["status"], first["now"]["phase"]) == (
            "job",
            "running",
            "reading",
        )
        run_now.tell("encoding", 1, 2, "images")
        until(lambda: document(tmp_path)["now"]["phase"] == "encoding")
        run_now.post({"name": "job", "status": "running", "step": 3})
        until(lambda: document(tmp_path).get("step") == 3)
        assert document(tmp_path)["now"]["unit"] == "images"
    before = (tmp_path / "run.json").read_bytes()
    run_now.tell("saving")
    run_now.close()
    assert (tmp_path / "run.json").read_bytes() == before and not run_now.writes


def test_what_an_earlier_start_left_stays_but_for_its_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        '{"name": "a", "status": "failed", "step": 7, "error": "E", "record": {"x": 1}}'
    )
    with RunNow(StatusLine(io.StringIO())).written(tmp_path, "job"):
        found = document(tmp_path)
    assert {key: found[key] for key in ("name", "status", "step", "record")} == {
        "name": "a", "status": "failed", "step": 7, "record": {"x": 1},
    }  # fmt: skip
    assert "error" not in found


@pytest.mark.slow
def test_it_is_written_at_most_once_in_its_interval_and_by_no_one_who_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.2)
    writers: list[str] = []
    real = module.write_json

    def noted(*given: object, **named: object) -> None:
        writers.append(threading.current_thread().name)
        real(*given, **named)

    monkeypatch.setattr(module, "write_json", noted)
    run_now = RunNow(StatusLine(io.StringIO()))
    begun = time.monotonic()
    with run_now.written(tmp_path, "job"):
        while time.monotonic() < begun + 1:
            run_now.tell("step", 1, 10)
            time.sleep(0.001)
        took = time.monotonic() - begun
    assert set(writers[1:]) == {"now"} and 2 <= len(writers) <= 2 + took / 0.2


def test_a_full_disk_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick
) -> None:
    run_now, calls = RunNow(StatusLine(io.StringIO())), []
    with heard() as said, run_now.written(tmp_path, "job"):

        def full(*_: object, **__: object) -> None:
            calls.append(1)
            raise RunError(
                "output/job/run.json: cannot be written: No space left on device."
            )

        monkeypatch.setattr(module, "write_json", full)
        for index in range(5):
            run_now.tell("step", index)
            until(lambda least=index: len(calls) > least)
    assert [line.partition(":")[0] for line in said] == [
        "output/job/run.json"
    ] and "No space left" in said[0]


def test_a_file_that_cannot_be_written_at_the_beginning_is_an_error(
    tmp_path: Path,
) -> None:
    (tmp_path / "run.json").mkdir()
    with (
        pytest.raises(RunError, match=r"run\.json"),
        RunNow(StatusLine(io.StringIO())).written(tmp_path, "job"),
    ):
        pass
