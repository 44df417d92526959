"""Output for people: a copy of it in a file, and one status line that is redrawn in
place.

A terminal shows progress by overwriting a line with carriage returns. In a log file
that would be thousands of lines of noise, so the copy holds only complete lines, in
their last state.

Modules log with `logging.getLogger(__name__)`. Inside `shown` their messages are
printed without a prefix. `jobs` sets this up; the callbacks of a training and the tools
draw the status line.

Secrets are redacted everywhere. Control characters of file names, captions or metadata,
which could make a terminal do or hide something, are shown as escapes. The program
itself uses only the carriage return.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from toolkit.errors import Interrupted, RunError, UserError
from toolkit.files.redact import redact_text
from toolkit.version import COMMAND, with_addresses

_CONTROLS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""C0 but tab and line ends, DEL, C1; separators of lines and what changes the direction
of text (https://www.unicode.org/reports/tr36/, 3.1)."""

_CURSOR_UP = "\x1b[A"
"""Progress bars of downloads write it, as a separate text."""


_STYLES = tuple(
    (re.compile(rf"(?m)^( *)({words})"), code)
    for words, code in (
        (
            rf"warning: this will not start|{re.escape(COMMAND)}[ \w]*(?=: error: )",
            "1;31",
        ),
        ("warning(?=: )", "1;33"),
        ("(?:trained weights|next|saved|all samples on one sheet)(?=:? )", "1;32"),
    )
)
"""How lines begin, refusals, warnings and results -> codes of a terminal for bold and a
colour."""

_PLACE = ((re.compile(r"(?m)^()(\S.{,79}?)(?=: )"), "1;31"),)
"""The same for a line of an error: its place is what stands before the first colon."""

_is_error = False


@contextmanager
def of_an_error() -> Iterator[None]:
    """Inside the block, the lines that are printed are those of an error."""
    global _is_error
    _is_error = True
    try:
        yield
    finally:
        _is_error = False


def has_colours(stream: TextIO) -> bool:
    """Whether bold and colours are for a stream: a terminal, unless NO_COLOR is set, or
    any stream with FORCE_COLOR (https://no-color.org, https://force-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("FORCE_COLOR"):
        return not os.environ.get("NO_COLOR")
    return stream.isatty() and os.name != "nt" and os.environ.get("TERM") != "dumb"


def _coloured(text: str) -> str:
    for pattern, code in _PLACE if _is_error else _STYLES:
        text = pattern.sub(rf"\1\033[{code}m\2\033[0m", text)
    return text


def escape_controls(text: str, carriage_returns: bool = True) -> str:
    """`text` with control characters as in JSON (`\\u001b`), so that JSON stays the
    same data. Tab and line ends stay.

    carriage_returns: also those within a line.
    """
    text = _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return re.sub("\r(?!\n)", r"\\u000d", text) if carriage_returns else text


class RedactingStream:
    """A stream without secrets and control characters (but carriage returns);
    everything else is the stream's own.

    A secret may come in pieces, so text is passed on in whole lines (a carriage return
    ends one, too). A terminal gets an unfinished line when it is flushed, as it always
    does; a pipe or a file when it is complete.

    Output that cannot be written any more (a closed pipe, a full disk) does not end a
    training: the rest of it is dropped.

    >>> import io
    >>> stream = RedactingStream(io.StringIO())
    >>> print("from https://anna:pass@example.com", file=stream)
    >>> print(stream.getvalue(), end="")
    from https://<redacted>@example.com
    """

    error: OSError | None = None
    """Why output was dropped; None where all was written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held = ""
        self._terminal = stream.isatty()
        self._colours = has_colours(stream)
        self._lock = threading.RLock()  # re-entrant, as in Tee

    def write(self, text: str) -> int:
        """Passes on full lines without secrets, and holds an unfinished line back until
        it ends or `release` is called. On a terminal, text after a line break is passed
        on with it. Returns the length of `text`. May be called from any thread."""
        with self._lock:
            moves = not text.replace(_CURSOR_UP, "")
            held = self._held + (
                text if moves else escape_controls(text, carriage_returns=False)
            )
            end = max(held.rfind("\n"), held.rfind("\r")) + 1
            if end and self._terminal:
                end = len(held)  # what follows a carriage return is to be seen at once
            self._held = held[end:]
            self._pass_on(held[:end])
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Passes an unfinished line on if the stream is a terminal. Otherwise it stays
        held, since a secret may be divided between two writes."""
        if self._terminal:
            self.release()
        else:
            self._pass_on("")

    def release(self) -> None:
        """Passes an unfinished line on."""
        with self._lock:
            ready = self._held
            self._held = ""
            self._pass_on(ready)

    def _pass_on(self, text: str) -> None:
        """Writes and flushes."""
        try:
            if text:
                text = with_addresses(redact_text(text))
                self._stream.write(_coloured(text) if self._colours else text)
            self._stream.flush()
        except OSError as error:
            if self.error is None:
                self.error = error
                self._discard()

    def _discard(self) -> None:
        """Sends the rest, and the buffer of the stream, to the null device: Python would
        try to write it again at its exit."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if not isinstance(self.error, BrokenPipeError) and self is not sys.stderr:
            print(
                f"standard output is lost ({self.error}): the rest goes to the log alone",
                file=sys.stderr,
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_closed_streams() -> None:
    """Standard streams that were closed before the program began (`>&-`, a service, a
    program without a console) become /dev/null. Otherwise the next file that is opened
    would get the number of the closed one, and its output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - as long as the program
            os.set_inheritable(nowhere.fileno(), True)
            setattr(sys, name, nowhere)
            setattr(sys, f"__{name}__", nowhere)


def redact_streams() -> None:
    """From here on no secret reaches standard output or standard error by way of
    Python's streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactingStream):
            setattr(sys, name, RedactingStream(stream))


def flush_streams() -> bool:
    """Passes on last lines without a line end. Returns whether all of standard output
    was written."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, RedactingStream):
            stream.release()
    return not isinstance(sys.stdout, RedactingStream) or sys.stdout.error is None


class LogFile:
    """A text file that grows by whole lines. Several streams (and processes) may append
    to one file.

    Example::

        log = LogFile(Path("output/log.txt"))
        log.write_line("step 120 of 2000")
        log.close()
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unencodable characters (parts of a file name, say) must not end a run:
            # they are escaped.
            self._file: TextIO | None = path.open(
                "a", encoding="utf-8", errors="backslashreplace", buffering=1
            )
        except OSError as error:
            raise UserError(
                f"{path}: cannot write the log there: {error.strerror or error}"
            ) from error
        self.path = path
        self._lock = threading.RLock()

    def write_line(self, line: str) -> None:
        """Appends one line. A full disk ends the log with one message on standard error;
        the run continues."""
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(
                    escape_controls(redact_text(line.replace(_CURSOR_UP, ""))) + "\n"
                )
            except OSError as error:
                self._file = None
                print(
                    redact_text(f"{self.path}: the log ends here: {error}"),
                    file=sys.__stderr__,
                )

    def close(self) -> None:
        """Closes the file. A second call has no effect."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


class Tee:
    """A stream that also copies its finished lines to a log; everything else is the
    stream's own.

    Example::

        sys.stdout = Tee(sys.stdout, LogFile(Path("output/log.txt")))
        print("step 120 of 2000")  # on the terminal, and in the file
    """

    def __init__(self, stream: TextIO, log: LogFile) -> None:
        self._stream = stream
        self._log = log
        self._pending = ""
        # re-entrant: a signal handler may print in the middle of a print
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Writes to the stream at once, and to the log once a line is complete. Of a
        line that was overwritten with carriage returns the log gets its last state."""
        written = self._stream.write(text)
        with self._lock:
            *lines, unfinished = (self._pending + text).split("\n")
            # Without its overwritten states, so that it stays short however long it
            # lives.
            body = unfinished.rstrip("\r")
            self._pending = body.rpartition("\r")[2] + unfinished[len(body) :][:1]
            for line in lines:
                self._log.write_line(_last_state(line))
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def log_instead(self, text: str) -> TextIO:
        """Adds `text` to the log alone. Returns the stream for what is printed in its
        place."""
        for line in text.splitlines():
            self._log.write_line(line)
        return self._stream

    def close_line(self) -> None:
        """Copies a last line that has no line end."""
        rest = _last_state(self._pending)
        if rest:
            self._log.write_line(rest)
        self._pending = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _last_state(line: str) -> str:
    """The text that a terminal shows of `line` after its carriage returns."""
    return line.rstrip("\r").rpartition("\r")[2].rstrip()


@contextmanager
def tee_output(path: Path) -> Iterator[None]:
    """Inside the block, standard output and standard error are also appended to `path`.

    An exception that leaves the block is written to the file as well, since it is
    printed outside of the block.
    """
    log = LogFile(path)
    outer = sys.stdout, sys.stderr
    tees = Tee(sys.stdout, log), Tee(sys.stderr, log)
    sys.stdout, sys.stderr = tees
    try:
        yield
    except BaseException as error:
        end_status()  # while standard output still writes the status line
        for tee in tees:
            tee.close_line()
        is_reported = isinstance(error, UserError | RunError | Interrupted)
        for line in (
            str(error) if is_reported else "".join(traceback.format_exception(error))
        ).splitlines():
            log.write_line(line)
        raise
    finally:
        sys.stdout, sys.stderr = outer
        for tee in tees:
            tee.close_line()
        log.close()


def quiet_libraries() -> None:
    """Silences warnings of libraries about optional parts that this program does not
    use."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def wrapped(text: str, stream: TextIO) -> str:
    """`text` with lines that fit the terminal, broken between words; as it is where
    `stream` is not a terminal."""
    if not stream.isatty():
        return text
    width = max(20, shutil.get_terminal_size().columns - 1)
    lines = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        fit = textwrap.wrap(
            line.strip(),
            width,
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += fit or [""]
    return "\n".join(lines)


class StatusLine:
    """One line of progress: redrawn in place on a terminal, otherwise a plain line now
    and then.

    >>> import io
    >>> stream = io.StringIO()
    >>> status = StatusLine(stream)
    >>> status.update("step 1 of 20")
    >>> status.finish("20 steps")
    >>> print(stream.getvalue(), end="")
    step 1 of 20
    20 steps
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """stream: standard output by default. every_s: seconds between two plain
        lines."""
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._every_s = every_s
        self._clock = clock
        self._next_s = float("-inf")
        self._quiet_since = clock()
        self._shown = ""

    def update(self, text: str, at_once: bool = True, always: bool = False) -> None:
        """Shows the newest state. at_once: False for a phase that is usually short: its
        first plain line can wait. always: write a plain line even if the last one was
        just written."""
        if self._terminal:
            self._draw(text)
        elif always or self._clock() >= (
            self._next_s if at_once else self._quiet_since + self._every_s
        ):
            self._quiet_since = self._clock()
            self._next_s = self._quiet_since + self._every_s
            self._stream.write(escape_controls(text) + "\n")
        self._stream.flush()

    def count(self, what: str, done: int, total: int) -> None:
        """Shows how much of something is done: a `Progress`."""
        self.update(f"{what} {done}/{total}")

    @property
    def is_shown(self) -> bool:
        """Whether it is shown in the last line of the terminal."""
        return bool(self._shown) and self._stream is sys.stdout

    def note(self, text: str) -> None:
        """Prints a full line that stays; the status line continues below it."""
        status = self._shown
        self._erase()
        self._stream.write(escape_controls(text) + "\n")
        if status:
            self._draw(status)
        self._stream.flush()

    def finish(self, text: str = "") -> None:
        """Replaces the status by `text`, or removes it. A later `update` starts
        over."""
        self._erase()
        if text:
            self._stream.write(escape_controls(text) + "\n")
        self._stream.flush()
        self._next_s, self._quiet_since = float("-inf"), self._clock()

    def _draw(self, text: str) -> None:
        # A line that wraps could not be overwritten; plain spaces erase on every kind
        # of terminal. A secret that is cut off could no longer be recognised.
        global _last_drawn
        text = escape_controls(redact_text(text))
        width = shutil.get_terminal_size().columns - 1
        # the parts between ` | ` that have room; the beginning of the first where none
        # has
        if len(text) > width:
            end = text.rfind(" | ", 0, width + 3)
            text = text[: end if end >= 0 else width]
        if _last_drawn is not None and _last_drawn is not self:
            _last_drawn._erase()
        self._stream.write("\r" + text.ljust(len(self._shown)))
        self._shown = text
        _last_drawn = self

    def _erase(self) -> None:
        if self._shown:
            self._stream.write("\r" + " " * len(self._shown) + "\r")
            self._shown = ""


def end_status() -> None:
    """Ends the line of the status that is shown, so that another stream begins a
    line."""
    if _last_drawn is not None and _last_drawn.is_shown:
        _last_drawn.finish(_last_drawn._shown)


# ---------------------------------------------------------------- logging


_last_drawn: StatusLine | None = None

OWN_PACKAGES = ("toolkit", "jobs", "extensions")
"""The program's own packages, whose loggers have their names; extensions in other
folders have further ones."""


IN_LOG = "in_log"
"""Attribute of a record: the text that a log of `tee_output` has in its place."""

is_verbose = False
"""Whether that text is printed too (`-v`)."""


class StdoutHandler(logging.Handler):
    """Prints each record as one line of standard output, above the status line where
    one is shown.

    Example::

        with shown():
            logging.getLogger("toolkit.train").info("saved")  # printed
    """

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        out = sys.stdout
        if whole := getattr(record, IN_LOG, ""):
            if is_verbose:
                text = whole
            elif isinstance(out, Tee):
                out = out.log_instead(whole)
            text = wrapped(text, out)
        if _last_drawn is not None and _last_drawn.is_shown:
            _last_drawn.note(text)
        else:
            # In one piece, so that threads do not tear each other's lines apart.
            out.write(escape_controls(text) + "\n")
            out.flush()


_handler = StdoutHandler()
_handler.setFormatter(logging.Formatter("%(message)s"))
_others: set[str] = set()
"""Loggers of extensions that do not come with the program."""

_is_shown = False


@contextmanager
def shown() -> Iterator[None]:
    """Inside the block, messages of the program and its extensions at INFO and above go
    to standard output.

    Standard output is looked up for each line. Loggers of libraries stay as they are.
    """
    global _is_shown
    _is_shown = True
    for name in (*OWN_PACKAGES, *_others):
        _show(name)
    try:
        yield
    finally:
        _is_shown = False
        for name in (*OWN_PACKAGES, *_others):
            logger = logging.getLogger(name)
            logger.removeHandler(_handler)
            logger.setLevel(logging.NOTSET)
            logger.propagate = True


def show_extension(name: str) -> None:
    """Adds the logger of an extension, and with it those of its modules, to what
    `shown` prints."""
    _others.add(name)
    if _is_shown:
        _show(name)


def _show(name: str) -> None:
    logger = logging.getLogger(name)
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)
    # a library that gives the root logger a handler would print each line twice
    logger.propagate = False
