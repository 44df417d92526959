"""Ctrl-C, SIGTERM and SIGHUP (the terminal is gone): the first one requests a stop, the
second one stops the program at once. A SIGHUP after the first signal is passed over:
Ctrl-C may have come before the terminal went, and the save goes on.

By default a signal raises `Interrupted` in the running code. Work that must not be
interrupted anywhere (training between two saves) runs inside `defer_signals()`: there
the first signal only sets `request.requested`, and the work stops at its next safe
point:

    with signals.defer_signals() as request:
        while not done and not request.requested:
            step()
        save()
    request.check()

`run` installs the handlers; `jobs.process.trainer` and `jobs.multi_run` defer the
signals. With several processes `distributed` passes a stop on to the other ranks.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from toolkit.errors import EXIT_SIGINT, EXIT_SIGTERM, Interrupted

EXIT_CODES: dict[int, int] = {
    getattr(signal, name): code
    for name, code in (
        ("SIGINT", EXIT_SIGINT),
        ("SIGTERM", EXIT_SIGTERM),
        ("SIGHUP", EXIT_SIGTERM),
    )
    if hasattr(signal, name)
}
"""The signals that stop the program, where this platform has them, and the exit code of
each."""


def to_handle() -> list[int]:
    """The signals of `EXIT_CODES`, without SIGHUP where `nohup` made the program
    ignore it."""
    return [
        number
        for number in EXIT_CODES
        if number in (signal.SIGINT, signal.SIGTERM)
        or signal.getsignal(number) is not signal.SIG_IGN
    ]


@dataclass
class StopRequest:
    """Whether a signal has requested a stop.

    >>> request = StopRequest()
    >>> request.requested
    False
    >>> StopRequest(exit_code=130).requested
    True
    """

    exit_code: int | None = None
    """130 after Ctrl-C, 75 after SIGTERM or SIGHUP, None before any."""

    @property
    def requested(self) -> bool:
        return self.exit_code is not None

    def check(self) -> None:
        """Raises Interrupted when a signal has come. Called where stopping loses no
        work."""
        if self.exit_code is not None:
            raise Interrupted(self.exit_code)


_request: StopRequest | None = None
"""The request of the open `defer_signals` block; None where none is open. It is global
because signals are."""


def check() -> None:
    """`StopRequest.check` of the open `defer_signals` block, for work that is given no
    request; without one signals raise by themselves."""
    if _request is not None:
        _request.check()


_quiet = False


def install(quiet: bool = False) -> None:
    """Installs the signal handlers. This is only possible in the main thread of a
    process; in other threads the call has no effect.

    quiet: no message is printed, because rank 0 prints it.
    """
    global _quiet
    _quiet = quiet
    if threading.current_thread() is not threading.main_thread():
        return
    for number in to_handle():
        signal.signal(number, _on_signal)
    if PARENT_GONE is not None:
        signal.signal(PARENT_GONE, _on_parent_gone)
    if sys.unraisablehook is not _on_unraisable:
        _hooks.append(sys.unraisablehook)
        sys.unraisablehook = _on_unraisable
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_parent)


def stop_with_parent() -> None:
    """Makes the end of the parent process request a stop, however it ends: a launcher
    that is killed cannot send a signal.

    It works on Linux only; on other systems the call has no effect.
    """
    if PARENT_GONE is not None:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, PARENT_GONE)


PARENT_GONE: int | None = getattr(signal, "SIGRTMAX", None)
"""The signal that the system sends when the parent has ended. It is not SIGTERM: a
parent with threads causes one signal for each thread that ends before the last one, and
a second SIGTERM would end the save."""

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def ignore() -> None:
    """Ignores the signals from now on: the program is shutting down.

    With several processes the launcher sends signals to the other ones once one of them
    exits.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (
            *EXIT_CODES,
            *([PARENT_GONE] if PARENT_GONE is not None else []),
        ):
            signal.signal(number, signal.SIG_IGN)


def _leave_to_parent() -> None:
    """A forked worker ignores Ctrl-C, which the terminal sends to it too, until its
    parent ends it."""
    for number in EXIT_CODES:
        if signal.getsignal(number) is _on_signal:
            signal.signal(
                number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL
            )


@contextmanager
def defer_signals() -> Iterator[StopRequest]:
    """Inside the block the first signal is only recorded. A nested block shares the
    outer request."""
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
        if _request and number not in (signal.SIGINT, signal.SIGTERM):
            return  # see above
        raise Interrupted(code)
    _request.exit_code = code
    if not _quiet:
        again = " Press Ctrl-C again to quit now." if number == signal.SIGINT else ""
        _write_message(f"\nStopping at the next safe point, then saving.{again}\n")


def _on_parent_gone(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    # a process that is stopping already may finish its save
    if _request is None or not _request.requested:
        _on_signal(signal.SIGTERM, frame)


_hooks: list[Callable[[sys.UnraisableHookArgs], object]] = []
"""The hooks for exceptions that cannot be raised, as they were before `install`; the
last one is used."""


def _on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Sends a signal again that came within a `__del__` or a callback of the garbage
    collector, which drop exceptions.

    A thread sends it, because the main thread is still within that code. It is not a
    thread of `threading`, whose locks that code may hold.
    """
    if isinstance(unraisable.exc_value, Interrupted):
        code = unraisable.exc_value.exit_code
        number = next(
            number for number, of_signal in EXIT_CODES.items() if of_signal == code
        )
        _thread.start_new_thread(_send_later, (number,))
    else:
        _hooks[-1](unraisable)


def _send_later(number: int) -> None:
    time.sleep(0.02)
    main = threading.main_thread().ident
    # this also ends a sleep or a read of the main thread
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)


def _write_message(text: str) -> None:
    """Writes past Python's buffers: the signal may have come within a print, which
    cannot be re-entered."""
    if sys.__stderr__ is None:
        return
    with suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno(), text.encode())
