"""From an exception to an error message and an exit code.

A UserError and a RunError have a message for users, so only that is printed; of a disk
that cannot be written, or of a machine that is short of something, only the reason.
Anything else is a defect of the program (or of an extension) and is printed with its
traceback.
"""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Callable

from toolkit.errors import (
    EXIT_FAILURE,
    EXIT_SIGINT,
    ExtensionError,
    Interrupted,
    ReportedExit,
    RunError,
    UserError,
    with_short_words,
)
from toolkit.files.log import OWN_PACKAGES, end_status, escape_controls, of_an_error
from toolkit.files.redact import redact_text
from toolkit.shortage import shortage
from toolkit.system.environment import damaged_copy, lack_of

NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
OF_THE_SYSTEM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    *NO_PATH,
)
"""Full disks, quotas, missing rights, names that no file can have: no defect of the
program, wherever they are met."""


def report(error: BaseException) -> int:
    """Prints the error to standard error and returns the exit code. UserError, RunError
    and Interrupted bring their own code. A bug is printed with its traceback."""
    if said := damaged_copy(error):
        print_error(said)
        return EXIT_FAILURE
    if isinstance(error, UserError | RunError):
        print_error(str(error))
        if not isinstance(error, ExtensionError):
            _hint_at_missing_module(error)
        return error.exit_code
    if isinstance(error, Interrupted):
        print_error("Stopped.")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        print_error("Stopped.")
        return EXIT_SIGINT
    if isinstance(error, ReportedExit):
        # 0: stopped by control/stop
        return EXIT_FAILURE if error.code is None else int(error.code)
    if isinstance(error, SystemExit):
        print_error(
            f"Failed: the code of an extension called sys.exit({error.code!r})."
        )
        return EXIT_FAILURE
    if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
        print_error(f"Failed: {error.filename or 'a file'}: {error.strerror}")
        return EXIT_FAILURE
    if short := shortage(error):
        message = " ".join(str(error).split())
        reason = (
            f"{type(error).__name__}: {message}" if message else type(error).__name__
        )
        print_error(f"Failed: {short.what} ({reason}). {short.remedy}.")
        return EXIT_FAILURE
    print_error("".join(traceback.format_exception(error)).rstrip())
    print_error(f"Failed: {type(error).__name__}: {error}")
    _hint_at_missing_module(error)
    return EXIT_FAILURE


def run_with_exit_code(action: Callable[..., int], *arguments: object) -> int:
    """Calls `action(*arguments)` and returns its exit code. Any exception, SystemExit
    and KeyboardInterrupt included, is reported and becomes an exit code.

    >>> run_with_exit_code(max, 0, 3)
    3
    """
    return code_and_error(action, *arguments)[0]


def code_and_error(
    action: Callable[..., int], *arguments: object
) -> tuple[int, BaseException | None]:
    """As `run_with_exit_code`, with the exception that was reported."""
    try:
        return action(*arguments), None
    except BaseException as error:  # noqa: BLE001 - the outermost frame: every error becomes an exit code
        with of_an_error():
            return report(error), error


def print_error(text: str) -> None:
    """Prints one message to standard error, redacted here because a secret may span
    several lines."""
    end_status()
    print(
        escape_controls(with_short_words(redact_text(text))),
        file=sys.stderr,
        flush=True,
    )


def _hint_at_missing_module(error: BaseException) -> None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ModuleNotFoundError):
        cause = cause.__cause__
    # transformers raises a PackageNotFoundError whose name is a sentence about the
    # distribution.
    name = (isinstance(cause, ModuleNotFoundError) and cause.name) or ""
    quoted = re.search(r"'([^']+)'", name)
    # 'tokenizers>=0.22': no version
    match = re.match(r"[A-Za-z0-9_.-]+", quoted[1] if quoted else name)
    # A module of an installed package is missing: it is no package that pip could add.
    top, dot, _ = name.partition(".")
    if (
        match
        and (quoted or (match[0] == name and not (dot and top in sys.modules)))
        # nothing that could be installed brings a module of these
        and match[0].split(".")[0] not in OWN_PACKAGES
    ):
        of_others = "(A package of an extension: see the extension's README.)"
        print_error(f"{lack_of(match[0])}\n{of_others}")
