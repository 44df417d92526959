"""The thread in which callbacks do what takes long, so that training does not wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from toolkit.train.run import Callback

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Calls that wait for a slow thread at most."""


class Background:
    """A thread that makes calls in order, one at a time; it begins with the first. When
    too many wait, the oldest ones are dropped. The thread is a daemon: what hangs does
    not keep the process alive.

    Example::

        background = Background("beeper", print)
        background.later(beep)
        background.end()
        background.wait(5.0)
    """

    def __init__(
        self, name: str, failed: Callable[[str], None], most: int = MAX_WAITING
    ) -> None:
        """name: for messages. failed: gets the reason when a call raises; the next one
        is made all the same."""
        self.name = name
        self._failed = failed
        self._most = most
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._has_dropped = False
        self._lock = threading.Lock()  # the thread that saves calls, too

    def later(self, call: Callable[[], None]) -> None:
        """Has the thread do this, behind what it was given before."""
        with self._lock:
            if self._calls.qsize() >= self._most:
                with suppress(Empty):  # the thread may just have taken it
                    self._calls.get_nowait()
                if not self._has_dropped:
                    logger.warning(
                        f"{self.name} does not keep up: the oldest of what it has not been told is dropped "
                        "(events.jsonl and metrics.jsonl have all)"
                    )
                self._has_dropped = True
            self._calls.put(call)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, daemon=True, name=self.name
                )
                self._thread.start()

    def end(self) -> None:
        """The thread ends when all that it was given is done."""
        with self._lock:
            if self._thread:
                self._calls.put(None)

    def wait(self, seconds: float) -> bool:
        """Waits at most so long for the end. Returns whether all is done."""
        if thread := self._thread:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                with self._lock:
                    # an error may follow the end
                    if self._calls.empty():
                        self._thread = None
                        return
                continue
            try:
                call()
            except Exception as error:  # noqa: BLE001 - whatever a network or a library raises: the run matters more
                self._failed(f"{type(error).__name__}: {error}".removesuffix(": "))


class BackgroundCallback(Callback):
    """Does what it is given in the background. What fails is reported, the first time
    only. `section` has `timeout_s`.

    Example::

        class Beep(BackgroundCallback):
            def on_save(self, run: Run, saved: Saved) -> None:
                self.later(beep)
    """

    included_in_step_time = False

    def __init__(self, section: object) -> None:
        super().__init__(section)
        self._background = Background(self.section.type, self._tell)
        self._told = False
        self._telling = threading.Lock()

    def later(self, call: Callable[[], None]) -> None:
        """Has the thread do this, behind what it was given before."""
        self._background.later(call)

    def finish(self) -> None:
        """Waits until all is done, at most `timeout_s`."""
        self._background.end()
        if not self._background.wait(self.section.timeout_s):
            self._tell(f"not done within {self.section.timeout_s:g} s")

    def _tell(self, reason: str) -> None:
        # two threads may tell; at the end of a run the second waits until it is told
        with self._telling:
            if not self._told:
                logger.warning(
                    f"the callback {self.section.type!r} failed: {reason}. The run goes on; it is tried "
                    "again at the next event, and said only once."
                )
            self._told = True
