"""The present activity of a run in one line: `downloading 12 of 58 GB, 40 min left`,
`encoding 12 of 29 images`, `step 120 of 2000`. Imports no torch.

Code that takes long reports its phase with `tell`. The listener of the run (`told_to`,
in `toolkit.train.now`) shows it and writes it to run.json. Without a listener nothing
happens, so the code that downloads, quantizes or encodes does not depend on a run.

    with during("saving"):            # and the phase before it afterwards
        write()
    tell("encoding", 12, 29, "images")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from toolkit.files.run_files import amount

STEP = "step"
"""The phase of training."""

BLOCK = "block"
"""A unit that is written before its number; others are written behind it."""


BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class Now:
    """One moment of a run. None: not known.

    >>> Now("encoding", 12, 29, "images", phase_left_s=40).line()
    'encoding 12 of 29 images, 40 s left'
    """

    phase: str
    """`downloading`, `reading`, `quantizing`, `encoding`, `compiling`, `step`,
    `sampling`, `validating` or `saving`."""

    done: float | None = None
    of: float | None = None
    unit: str = ""
    """The things that are counted; empty where the phase names them."""

    started: str = ""
    """When the phase began, as `run_files.utc_now` writes it."""

    phase_left_s: float | None = None
    """Seconds left of this phase."""

    left_s: float | None = None
    """Seconds left of everything, samples and saves included."""

    share: float | None = None
    """Share of everything that is done, 0 to 1."""

    def text(self) -> str:
        """The phase and its progress, as the status line shows it: `quantizing block 31
        of 60`. The phase alone where no progress is known."""
        if self.done is None:
            return self.phase
        count = _figure(self.done) + (
            f" of {_figure(self.of)}" if self.of is not None else ""
        )
        words = (self.unit, count) if self.unit == BLOCK else (count, self.unit)
        return " ".join(filter(None, (self.phase, *words)))

    def left(self) -> str:
        """The time left for the phase and for everything; for a step only the latter.
        Empty where neither is known."""
        is_step = self.phase == STEP
        parts = []
        if self.phase_left_s is not None and not is_step:
            parts.append(f"{span(self.phase_left_s)} left")
        if self.left_s is not None:
            left = "" if parts else " left"
            whole = "" if is_step else " for everything"
            parts.append(f"{span(self.left_s)}{left}{whole}")
        return "; ".join(parts)

    def line(self) -> str:
        """The line that the terminal and the page show: `encoding 12 of 29 images, 40 s
        left; 35 min for everything`."""
        return ", ".join(filter(None, [self.text(), self.left()]))

    def to_json(self) -> dict[str, Any]:
        """The entry `now` of run.json. `phase_left_s` and `left_s` are seconds, `share`
        is a fraction from 0 to 1; all three are None where they are not known."""
        return {
            "phase": self.phase,
            "done": self.done,
            "of": self.of,
            "unit": self.unit,
            "started": self.started,
            "phase_left_s": _rounded(self.phase_left_s, 1),
            "left_s": _rounded(self.left_s, 1),
            "share": _rounded(self.share, 4),
        }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _figure(value: float) -> str:
    """12, 2,000, 0.5: whole from 10 on."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def span(seconds: float) -> str:
    """A time that is left: 45 s, 14 min, 5.3 h.

    >>> span(45.2), span(850)
    ('45 s', '14 min')
    """
    return f"{max(0, round(seconds))} s" if seconds < 60 else amount(seconds)


def of_bytes(done: float, of: float | None) -> tuple[float, float | None, str]:
    """So many bytes, of so many, in the unit that suits them, as `tell` takes them."""
    largest = max(done, of or 0)
    unit, size = next((pair for pair in BYTES if largest >= pair[1]), BYTES[-1])
    return round(done / size, 3), None if of is None else round(of / size, 3), unit


# ------------------------------------------------------------ telling

Told = tuple[str, float | None, float | None, str]
"""The arguments of `tell`."""

NOTHING: Told = ("", None, None, "")


class Listener(Protocol):
    """Shows and keeps the phases of a run.

    Example::

        with told_to(listener):
            tell("encoding", 12, 29, "images")
    """

    def tell(self, phase: str, done: float | None, of: float | None, unit: str) -> None:
        """Takes the present phase and its progress, as the function `tell` got them."""
        ...

    def count(self, phase: str, units: float) -> None:
        """Notes that the phase has made this number of units in the time since it
        began."""

    @property
    def told(self) -> Told:
        """The phase that was told last; an empty phase at the beginning."""


_listener: Listener | None = None


def tell(
    phase: str, done: float | None = None, of: float | None = None, unit: str = ""
) -> None:
    """Reports the present phase and its progress. May be called from any thread."""
    if _listener is not None:
        _listener.tell(phase, done, of, unit)


def is_heard() -> bool:
    """Whether `tell` reaches a listener. Code that would compute its progress only for
    the report asks first."""
    return _listener is not None


@contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """Inside the block, `tell` calls `listener`. Afterwards the earlier listener, if
    any, is called again."""
    global _listener
    before = _listener
    _listener = listener
    try:
        yield
    finally:
        _listener = before


@contextmanager
def during(
    phase: str, done: float | None = None, of: float | None = None
) -> Iterator[None]:
    """Inside the block this phase is reported; afterwards the one before it again."""
    before = enter(phase, done, of)
    try:
        yield
        if _listener is not None:
            _listener.count(phase, of or 1)
    finally:
        go_back(before)


def enter(
    phase: str, done: float | None = None, of: float | None = None, unit: str = ""
) -> Told:
    """Like `tell`; returns the phase before it, for `go_back`."""
    before = _listener.told if _listener is not None else NOTHING
    tell(phase, done, of, unit)
    return before


def go_back(before: Told) -> None:
    """Reports the phase again that `enter` returned."""
    if before[0]:
        tell(*before)
