"""The thread between a run and a tracker, with trackers that fail, hang and lag
behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from toolkit.config.sections.output import PACKAGES
from toolkit.extension import discover
from toolkit.train.trackers.tracker import TrackerWorker

ROOT = Path(__file__).resolve().parents[4]
LONG_S = 60.0


class DirectoryListing:
    """A tracker in name only: what is called is up to each call."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def tracker() -> DirectoryListing:
    return DirectoryListing()


def test_the_config_knows_the_package_of_every_tracker() -> None:
    assert discover().uids("tracker") >= PACKAGES.keys()


def hear(number: int):
    return lambda tracker: tracker.heard.append(number)


def test_calls_are_made_in_order_also_those_from_before_the_start(
    tracker, said
) -> None:
    feed = TrackerWorker("it")
    feed.put(hear(1))
    feed.start(lambda: tracker)
    feed.put(hear(2))
    feed.end()
    assert feed.wait(LONG_S)
    assert (tracker.heard, tracker.closed, said) == ([1, 2], 1, [])


def test_a_tracker_that_raises_is_told_once_and_called_no_more(tracker, said) -> None:
    def fail(_) -> None:
        raise ConnectionError("no route to host")

    feed = TrackerWorker("it")
    for call in (hear(1), fail, hear(2), fail):
        feed.put(call)
    feed.start(lambda: tracker)
    assert feed.wait(LONG_S)
    feed.put(hear(3))
    feed.end()
    assert feed.wait(LONG_S)
    assert (tracker.heard, tracker.closed) == ([1], 1)
    assert said == [
        "it failed; the run continues without it: ConnectionError: no route to host"
    ]


def test_the_oldest_calls_go_when_a_tracker_does_not_keep_up(tracker, said) -> None:
    may_go_on, is_in_it = threading.Event(), threading.Event()

    def wait(_) -> None:
        is_in_it.set()
        may_go_on.wait(LONG_S)

    feed = TrackerWorker("it", most=3)
    feed.start(lambda: tracker)
    feed.put(wait)
    is_in_it.wait(LONG_S)
    for number in range(1, 8):
        feed.put(hear(number))
    may_go_on.set()
    feed.end()
    assert feed.wait(LONG_S)
    assert tracker.heard == [5, 6, 7]
    assert said == [
        "it queue is full: dropping its oldest values (metrics.jsonl has them all)"
    ]


def test_a_tracker_that_hangs_holds_up_neither_the_run_nor_the_end_of_the_process() -> (
    None
):
    program = """
import threading
from toolkit.train.trackers.tracker import TrackerWorker
feed = TrackerWorker("it")
feed.start(lambda: None)
feed.put(lambda tracker: threading.Event().wait())
for number in range(100):
    feed.put(lambda tracker: None)
feed.end()
print("closed:", feed.wait(0.01))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "closed: False"
