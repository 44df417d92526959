"""Ctrl-C and SIGTERM: the first one requests a stop, the second one stops the program at once.

By default a signal raises `Interrupted` in the running code. Work that must not be interrupted anywhere
(training between two saves) runs inside `defer_signals()`: there the first signal only sets
`request.requested`, and the work stops at its next safe point:

    with signals.defer_signals() as request:
        while not done and not request.requested:
            step()
        save()
    request.check()
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from toolkit.errors import EXIT_SIGINT, EXIT_SIGTERM, Interrupted


def _exit_codes() -> dict[int, int]:
    codes: dict[int, int] = {signal.SIGINT: EXIT_SIGINT}
    if hasattr(signal, "SIGTERM"):
        codes[signal.SIGTERM] = EXIT_SIGTERM
    return codes


EXIT_CODES = _exit_codes()
"""The signals that stop the program, where this platform has them, and the exit code of each."""


@dataclass
class StopRequest:
    """Whether a signal has requested a stop."""

    exit_code: int | None = None
    """130 after Ctrl-C, 75 after SIGTERM, None before either."""

    @property
    def requested(self) -> bool:
        return self.exit_code is not None

    def check(self) -> None:
        """Raises Interrupted when a signal has come: for work that loses nothing by stopping here."""
        if self.exit_code is not None:
            raise Interrupted(self.exit_code)


_request: StopRequest | None = None
"""The request of the `defer_signals` block that is open, if one is. Signals are global; so is this."""


_quiet = False


def install(quiet: bool = False) -> None:
    """Installs the signal handlers. Only possible in the main thread of a process; elsewhere a no-op.

    quiet: prints no message, as rank 0 prints it.
    """
    global _quiet
    _quiet = quiet
    if threading.current_thread() is not threading.main_thread():
        return
    for number in EXIT_CODES:
        signal.signal(number, _on_signal)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_parent)


def ignore() -> None:
    """Ignores the signals from here on: the program is shutting down.

    With several processes the launcher sends signals to the others once one of them exits.
    """
    if threading.current_thread() is threading.main_thread():
        for number in EXIT_CODES:
            signal.signal(number, signal.SIG_IGN)


def _leave_to_parent() -> None:
    """A forked worker ignores Ctrl-C, which the terminal sends to it too, until its parent ends it."""
    for number, handler in ((signal.SIGINT, signal.SIG_IGN), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[StopRequest]:
    """Inside the block the first signal is only recorded. A nested block shares the outer request."""
    global _request
    if _request is not None:
        yield _request
        return
    _request = request = StopRequest()
    try:
        yield request
    finally:
        _request = None


def _on_signal(number: int, frame: FrameType | None) -> None:
    code = EXIT_CODES[number]
    if _request is None or _request.requested:
        raise Interrupted(code)
    _request.exit_code = code
    if not _quiet:
        _write_message("\nStopping after this step, then saving. Press Ctrl-C again to quit now.\n")


def _write_message(text: str) -> None:
    """Writes past Python's buffers: the signal may have come within a print, which cannot be re-entered."""
    if sys.__stderr__ is None:
        return
    with suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno(), text.encode())
