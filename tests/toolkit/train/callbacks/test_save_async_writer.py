"""The writer beside the training: one piece of work at a time, in order, its errors heard."""

from __future__ import annotations

import threading
import time

import pytest

from toolkit.train.callbacks.save import AsyncWriter


def test_work_is_done_in_order_and_one_at_a_time() -> None:
    writer, running, most, done = AsyncWriter(), [0], [0], []

    def work(number: int) -> str:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.002)
        done.append(number)
        running[0] -= 1
        return f"wrote {number}"

    said = [line for number in range(5) for line in writer.submit(lambda number=number: work(number))]
    said += writer.wait()
    assert said == [f"wrote {number}" for number in range(5)]
    assert (done, most) == ([0, 1, 2, 3, 4], [1])


def test_submit_does_not_wait_for_its_own_work() -> None:
    writer, may_end = AsyncWriter(), threading.Event()
    assert writer.submit(lambda: str(may_end.wait(10))) == []
    assert writer.collect() == []  # still writing: nothing to hear, and no waiting
    may_end.set()
    assert writer.wait() == ["True"]
    assert writer.wait() == writer.collect() == []


@pytest.mark.parametrize("hear", ["collect", "wait", "submit"])
def test_an_error_is_raised_once_where_the_writer_is_next_asked(hear: str) -> None:
    writer, later = AsyncWriter(), []

    def fail() -> str:
        raise OSError("the disk is gone")

    writer.submit(fail)
    writer._thread.join()
    with pytest.raises(OSError, match="the disk is gone"):
        writer.submit(lambda: later.append(1) or "") if hear == "submit" else getattr(writer, hear)()
    assert later == [], "work after a failure began before the failure was heard"
    assert writer.submit(lambda: "again") == []
    assert writer.wait() == ["again"]


def test_what_was_said_before_an_error_is_not_lost() -> None:
    writer = AsyncWriter()
    writer.submit(lambda: "first")
    writer._thread.join()
    writer._thread, writer._error = None, OSError("second")
    with pytest.raises(OSError, match="second"):
        writer.collect()
    assert writer.collect() == ["first"]
