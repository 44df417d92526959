"""Writing files without blocking the training: one task at a time, in a background thread."""

from __future__ import annotations

import threading
from collections.abc import Callable


class AsyncWriter:
    """Runs one task at a time; its message or exception is returned or raised by the next `collect` or `submit`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._messages: list[str] = []
        self._error: Exception | None = None

    def submit(self, work: Callable[[], str]) -> list[str]:
        """Starts `work`, which returns a line for the user, once the previous task has ended.

        Returns the messages of finished tasks; raises what they raised.
        """
        messages = self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="save")
        self._thread.start()
        return messages

    def wait(self) -> list[str]:
        """Waits until nothing is being written; then as `collect`."""
        if self._thread:
            self._thread.join()
        return self.collect()

    def collect(self) -> list[str]:
        """The messages of finished tasks, without waiting. Raises what a task raised."""
        if self._thread and not self._thread.is_alive():
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error
        messages, self._messages = self._messages, []
        return messages

    def _run(self, work: Callable[[], str]) -> None:
        try:
            line = work()
            self._messages.append(line)
        except Exception as error:  # noqa: BLE001 - `collect` raises it in the training thread
            self._error = error
