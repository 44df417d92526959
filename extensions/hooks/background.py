"""A callback whose work is done by a thread, so that training does not wait for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from toolkit.train.run import Callback

logger = logging.getLogger(__name__)


class BackgroundCallback(Callback):
    """Works on what it is given in order, one at a time. What fails is reported, the
    first time only; the next is tried all the same. `section` has `timeout_s`.

    Example::

        class Beep(BackgroundCallback):
            def on_save(self, run: Run, saved: Saved) -> None:
                self.later(beep)
    """

    included_in_step_time = False

    def __init__(self, section: object) -> None:
        super().__init__(section)
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._told = False
        self._lock = threading.Lock()  # the thread that saves calls, too

    def later(self, call: Callable[[], None]) -> None:
        """Has the thread do this, behind what it was given before."""
        with self._lock:
            self._calls.put(call)
            if self._thread is None:
                # a daemon: what hangs does not keep the process alive
                self._thread = threading.Thread(
                    target=self._work, daemon=True, name=self.section.type
                )
                self._thread.start()

    def finish(self) -> None:
        """Waits until all is done, at most `timeout_s`."""
        with self._lock:
            if (thread := self._thread) is None:
                return
            self._calls.put(None)
        thread.join(self.section.timeout_s)
        if thread.is_alive():
            self._tell(f"not done within {self.section.timeout_s:g} s")

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
                self._tell(f"{type(error).__name__}: {error}")

    def _tell(self, reason: str) -> None:
        if not self._told:
            logger.warning(
                f"the callback {self.section.type!r} failed: {reason}. The run goes on; it is tried "
                "again at the next event, and said only once."
            )
        self._told = True
