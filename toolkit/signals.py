"""Ctrl-C and SIGTERM: the first asks the program to end, the second ends it at once.

By default a signal raises `Interrupted` where the program happens to be. Work that must not be torn
apart (training between two saves) runs inside `deferred()`: there the first signal only sets
`request.asked`, and the work ends itself at its next good moment:

    with interrupt.deferred() as request:
        while not done and not request.asked:
            step()
        save()
    if request.asked:
        raise Stopped(request.exit_code)
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
"""The signals that end the program, as far as this platform has them, and the exit code of each."""


@dataclass
class StopRequest:
    """Whether a signal has asked the running work to end."""

    exit_code: int | None = None
    """130 after Ctrl-C, 75 after SIGTERM, None before either."""

    @property
    def requested(self) -> bool:
        return self.exit_code is not None

    def check(self) -> None:
        """Raises Stopped when a signal has come: for work that loses nothing by ending here."""
        if self.exit_code is not None:
            raise Interrupted(self.exit_code)


_request: StopRequest | None = None
"""The request of the `defer_signals` block that is open, if one is. Signals are global; so is this."""


_quiet = False


def install(quiet: bool = False) -> None:
    """Handles the signals from here on. Only the main thread of a process may; elsewhere a no-op.

    quiet: says nothing about it, as another process does.
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
    """From here on the signals do nothing: the program is on its way out.

    Of several processes: a launcher that sees one of them end sends signals to the others.
    """
    if threading.current_thread() is threading.main_thread():
        for number in EXIT_CODES:
            signal.signal(number, signal.SIG_IGN)


def _leave_to_parent() -> None:
    """A forked worker outlives Ctrl-C, which the terminal sends to it too, until its parent ends it."""
    for number, answer in ((signal.SIGINT, signal.SIG_IGN), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, answer)


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
        _say("\nStopping after this step, then saving. Press Ctrl-C again to quit now.\n")


def _say(text: str) -> None:
    """Writes past Python's buffers: the signal may have come within a print, which cannot be re-entered."""
    if sys.__stderr__ is None:
        return
    with suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno(), text.encode())
