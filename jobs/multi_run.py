"""Runs several configs one after another and summarises the results.

`run_series` checks every config before it runs the first one. Each runs in a separate
interpreter (`ChildRunner`), which returns all memory to the system when it ends.
Signals are forwarded to the child.

`run.py` calls it for several configs on one command line, and for `--seeds` and `--sweep`. What a
config does is not known here; a run is an exit code.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from types import FrameType
from typing import Any

from toolkit.errors import EXIT_DONE, EXIT_FAILURE, EXIT_MISTAKE
from toolkit.system.signals import EXIT_CODES, to_handle

STOP_CODES = frozenset(EXIT_CODES.values())

WORDS = {
    None: "not run",
    EXIT_DONE: "done",
    EXIT_FAILURE: "failed",
    EXIT_MISTAKE: "mistake in the config",
}


def run_series(
    configs: Sequence[str],
    run_one: Callable[[str], int],
    *,
    recover: bool,
    check: Callable[[str], int] = lambda config: EXIT_DONE,
) -> int:
    """Checks every config, then runs each; stops after a failure unless `recover`, and
    always after a stop request.

    check: the exit code of a config that is not to run, which it reports; unless
    `recover`, no other one runs either. Prints one line per config, where there are
    several, and returns the first exit code that is not 0.
    """
    checked = _run_each(configs, check, go_on=True)
    refused = [code for code in checked if code != EXIT_DONE]
    codes: Sequence[int | None]
    if STOP_CODES.intersection(refused) or (refused and not recover):
        codes = [None if code == EXIT_DONE else code for code in checked]
    else:
        by_check = iter(checked)
        codes = _run_each(
            configs, lambda config: next(by_check) or run_one(config), go_on=recover
        )
    if len(configs) > 1:
        for config, code in zip_longest(configs, codes):
            print(f"{config}: {_describe(code)}")
    return next((code for code in codes if code), EXIT_DONE)


def _run_each(
    configs: Sequence[str], run_one: Callable[[str], int], go_on: bool
) -> list[int]:
    """The exit codes, up to a stop request, and up to the first failure unless
    `go_on`."""
    codes: list[int] = []
    for config in configs:
        code = run_one(config)
        codes.append(code)
        if code in STOP_CODES or (code != EXIT_DONE and not go_on):
            break
    return codes


def _describe(code: int | None) -> str:
    if code in STOP_CODES:
        return f"stopped (exit code {code})"
    words = WORDS.get(code, "failed")
    return words if code in (None, EXIT_DONE) else f"{words} (exit code {code})"


class ChildRunner:
    """Runs a config in a new interpreter, so that all its memory is freed, and forwards
    signals to it.

    The child has its own session: a Ctrl-C at the terminal reaches it only through this
    process.

    Example::

        runner = ChildRunner([sys.executable, "run.py"])
        exit_code = runner("config/my_char.yaml", "--restart")
    """

    def __init__(self, command: Sequence[str]) -> None:
        """command: the program and its flags for every config."""
        self._command = list(command)
        self._child: subprocess.Popen[bytes] | None = None
        self._undelivered: list[int] = []
        self._stop_code: int | None = None

    def __call__(self, config: str, *flags: str) -> int:
        """Runs one config, with further flags, and returns its exit code; after a
        signal it returns the exit code of the signal and runs nothing."""
        # here: while the configs are checked, there is no child to forward a signal to
        for number in to_handle():
            signal.signal(number, self._on_signal)
        if self._stop_code is not None:
            return self._stop_code
        sys.stdout.flush()
        self._child = subprocess.Popen(
            [*self._command, *flags, "--", config], **_own_session()
        )
        self._deliver()
        code = self._child.wait()
        self._child = None
        if code < 0:  # killed by a signal before it could handle it
            code = EXIT_CODES.get(-code, 128 - code)
        return code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_code = EXIT_CODES[number]
        self._undelivered.append(number)
        self._deliver()

    def _deliver(self) -> None:
        while self._child is not None and self._undelivered:
            self._child.send_signal(_sendable(self._undelivered.pop(0)))


def _own_session() -> dict[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _sendable(number: int) -> int:
    """Windows can interrupt another process group only with CTRL_BREAK."""
    if sys.platform == "win32":
        return signal.CTRL_BREAK_EVENT
    return number
