"""Writing that does not hold up the training: one piece of work at a time, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable


class AsyncWriter:
    """Runs one piece of work at a time; what it says or raises is heard at the next `collect` or `submit`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._said: list[str] = []
        self._error: Exception | None = None

    def submit(self, work: Callable[[], str]) -> list[str]:
        """Starts `work` once the one before has ended. `work` returns a line for the user.

        Returns what finished work had to say; raises what it raised.
        """
        said = self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="save")
        self._thread.start()
        return said

    def wait(self) -> list[str]:
        """Waits until nothing is being written; otherwise like `collect`."""
        if self._thread:
            self._thread.join()
        return self.collect()

    def collect(self) -> list[str]:
        """What finished work had to say, without waiting. Raises what it raised."""
        if self._thread and not self._thread.is_alive():
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error
        said, self._said = self._said, []
        return said

    def _run(self, work: Callable[[], str]) -> None:
        try:
            line = work()
            self._said.append(line)
        except Exception as error:  # noqa: BLE001 - carried to the training's own thread, which raises it
            self._error = error
