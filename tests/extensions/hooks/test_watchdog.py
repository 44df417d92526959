"""The watchdog: says once per stall where everything stands, and nothing while steps go
on."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from extensions.hooks.watchdog import FILE, WatchdogCallback
from tests.processes import until


@pytest.fixture
def run(toy):
    toy.folder.mkdir()
    return toy.run(50)


@pytest.fixture
def watch(run, said: list[str]):
    """Starts watchdogs with these limits, and stops them at the end."""
    started = []

    def start(least_s: float) -> tuple[WatchdogCallback, list[str]]:
        callback = WatchdogCallback(least_s=least_s, look_every_s=0.005)
        callback.on_start(run)
        started.append(callback)
        return callback, said

    yield start
    for callback in started:
        callback.on_end(run, True)
        assert not callback._thread.is_alive()


def stand_here(may_go: threading.Event) -> None:
    may_go.wait(10)


def test_a_stall_is_told_once_with_the_stacks_of_all_threads(
    run, watch, result
) -> None:
    may_go = threading.Event()
    thread = threading.Thread(target=stand_here, args=(may_go,))
    thread.start()
    hook, said = watch(least_s=0.03)
    until(lambda: said)
    time.sleep(0.1)
    may_go.set()
    thread.join()
    assert len(said) == 1 and FILE in said[0] and "step 0" in said[0]
    stacks = (run.folder / FILE).read_text()
    assert stacks.count("no step finished for") == 1
    for name in ("stand_here", "test_a_stall_is_told_once", "_look"):
        assert name in stacks
    # A step ends the stall; the next one is told again.
    hook.after_step(run)
    until(lambda: len(said) == 2)
    assert (run.folder / FILE).read_text().count("no step finished for") == 2


def test_nothing_is_said_while_steps_go_on(run, watch, monkeypatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("extensions.hooks.watchdog.time", clock)
    hook, said = watch(least_s=0.5)
    for _ in range(10):
        clock.now += 0.4
        time.sleep(0.01)
        hook.after_step(run)
    assert said == []
    assert not (run.folder / FILE).exists()


@pytest.mark.slow
def test_slow_steps_are_no_stall(run, watch, result) -> None:
    """Ten times the median: one step of 100 s among steps of 0.08 s changes nothing."""
    hook, said = watch(least_s=0.01)
    for step_s in (0.08, 100.0, 0.08, 0.08, 0.08):
        hook.on_metrics(run, result(1, step_s=step_s))
        hook.after_step(run)
    time.sleep(0.25)
    assert said == []
    until(lambda: said)


def test_a_full_disk_does_not_end_the_watch(run, watch) -> None:
    (run.folder / FILE).mkdir()
    _, said = watch(least_s=0.01)
    until(lambda: said)
    assert "could not be written" in said[0]
