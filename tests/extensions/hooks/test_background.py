"""The thread behind callbacks and trackers, with calls that fail and that lag behind."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace

from extensions.hooks.background import Background, BackgroundCallback

LONG_S = 60.0


def test_calls_are_made_in_order_also_behind_one_that_fails_and_after_the_end() -> None:
    done: list[int | str] = []

    def fail(*reason: str) -> None:
        raise ConnectionError(*reason)

    background = Background("it", done.append)
    assert background.wait(0.0)
    for call in (
        partial(done.append, 1),
        partial(fail, "no route to host"),
        fail,
        partial(done.append, 2),
    ):
        background.later(call)
    background.end()
    assert background.wait(LONG_S)
    background.later(partial(done.append, 3))
    background.end()
    assert background.wait(LONG_S)
    assert done == [1, "ConnectionError: no route to host", "ConnectionError", 2, 3]


def test_the_oldest_calls_go_when_the_thread_does_not_keep_up(said) -> None:
    may_go_on, is_in_it = threading.Event(), threading.Event()
    done: list[int | str] = []
    background = Background("it", done.append, most=3)
    background.later(lambda: is_in_it.set() or may_go_on.wait(LONG_S))
    is_in_it.wait(LONG_S)
    for number in range(1, 8):
        background.later(partial(done.append, number))
    may_go_on.set()
    background.end()
    assert background.wait(LONG_S)
    assert done == [5, 6, 7]
    assert said == [
        "it does not keep up: the oldest of what it has not been told is dropped "
        "(events.jsonl and metrics.jsonl have all)"
    ]


def test_the_end_of_a_run_waits_for_the_warning(monkeypatch) -> None:
    begins, may_end, said = threading.Event(), threading.Event(), list[str]()

    def warn(line: str) -> None:
        begins.set()
        may_end.wait(10)
        said.append(line)

    monkeypatch.setattr("extensions.hooks.background.logger.warning", warn)
    callback = BackgroundCallback(SimpleNamespace(type="webhook", timeout_s=0.01))
    callback.later(lambda: 1 / 0)
    begins.wait(10)
    end = threading.Thread(target=callback.finish)
    end.start()
    end.join(0.2)
    assert end.is_alive()
    may_end.set()
    end.join()
    assert len(said) == 1
