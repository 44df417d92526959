"""What compiling took is in the log once."""

from __future__ import annotations

import pytest

from toolkit.config.sections.train import CompileConfig
from toolkit.memory import compiling
from toolkit.memory.compiling import CompileTime, Programs
from toolkit.train.callbacks.compiling import SETTLED_STEPS, CompilingCallback


@pytest.fixture
def run(toy):
    run = toy.run(1000)
    run.programs = Programs(CompileConfig(enabled=True, backend="eager"))
    return run


def steps(run, callback: CompilingCallback, count: int) -> None:
    for _ in range(count):
        run.state.step += 1
        callback.after_step(run)


def compile_one(monkeypatch: pytest.MonkeyPatch) -> None:
    programs, seconds = compiling._clock.total
    monkeypatch.setattr(
        compiling._clock, "total", CompileTime(programs + 1, seconds + 4.2)
    )


def test_it_is_said_once_nothing_was_compiled_for_some_steps(
    run, said: list[str], monkeypatch
) -> None:
    callback = CompilingCallback()
    compile_one(monkeypatch)  # by the trial of the largest batch
    callback.on_start(run)
    steps(run, callback, SETTLED_STEPS - 2)
    compile_one(monkeypatch)
    steps(run, callback, SETTLED_STEPS)
    assert said == []
    steps(run, callback, 1)
    assert said == ["compiled 2 programs in 8 s"]
    compile_one(monkeypatch)
    steps(run, callback, 3 * SETTLED_STEPS)
    callback.on_end(run, True)
    assert len(said) == 1


def test_a_short_run_says_it_at_its_end(run, said: list[str], monkeypatch) -> None:
    kept: list[float] = []
    callback = CompilingCallback(kept.append)
    callback.on_start(run)
    compile_one(monkeypatch)
    steps(run, callback, 3)
    callback.on_end(run, True)
    assert said == ["compiled 1 program in 4 s"] and kept == [pytest.approx(4.2)]


@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_is_said_without_programs(
    run, said: list[str], monkeypatch, stopped: bool
) -> None:
    if stopped:
        compile_one(monkeypatch)
        run.programs.stop()
    callback = CompilingCallback()
    callback.on_start(run)
    steps(run, callback, 2 * SETTLED_STEPS)
    callback.on_end(run, True)
    assert said == []
