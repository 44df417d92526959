"""Keeps the present activity of a run (`toolkit.files.now`): the line of the terminal,
`now` in run.json, the time that is left.

The time left comes from the plan at first; measured times replace it part by part. A
separate thread writes run.json, at most once a second, so that reporting a step or an
image never waits for the disk.

`jobs.process.trainer` makes one `RunNow` for each run; `callbacks.status` shows it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.config.sections.train import UNTIL_THE_DATA_ENDS
from toolkit.errors import RunError
from toolkit.files import run_files
from toolkit.files.log import StatusLine
from toolkit.files.now import STEP, Now, Told
from toolkit.files.writing import write_json
from toolkit.train.run import Run

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 1.0

PART_OF = {
    "reading": "loading",
    "quantizing": "loading",
    "encoding": "encoding",
    "compiling": "compiling",
    STEP: "steps",
    "sampling": "samples",
    "validating": "validation",
    "saving": "saving",
}
"""Phase -> its part of the plan's time (`RunWork.parts`). A download is in no plan."""

BEFORE_STEPS = ("loading", "encoding")
"""Parts that are over once a sample or a step is made."""

RECURRING = {"samples": "sampling", "validation": "validating", "saving": "saving"}
"""Parts that come again until the end -> their phase."""


class RunNow:
    """The present activity of a run, for all who show it; a `Listener`. Any thread may
    report to it.

    Example::

        now = RunNow(StatusLine())
        with now.written(folder, "maya"):
            now.tell("encoding", done=10, of=100)
    """

    def __init__(
        self, line: StatusLine, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.line = line
        self._clock = clock
        self._lock = threading.RLock()
        self._planned: dict[str, float] = {}
        self._pictures = 0.0
        self._begun = clock()
        self._phase = ""
        self._unit = ""
        self._done: float | None = None
        self._of: float | None = None
        self._started = ""
        self._phase_began = self._counted_since = self._begun
        self._counted_from: float | None = None
        self._spent: dict[str, float] = {}
        self._units: dict[str, float] = {}
        self._run: Run | None = None
        self._step_s: float | None = None
        self._steps_before = 0
        self._folder: Path | None = None
        self._document: dict[str, Any] = {}
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._complaint = ""

    # ------------------------------------------------------------ what is told

    @property
    def told(self) -> Told:
        return self._phase, self._done, self._of, self._unit

    def tell(
        self,
        phase: str,
        done: float | None = None,
        of: float | None = None,
        unit: str = "",
    ) -> None:
        """As `toolkit.files.now.tell`; shows it too: on a terminal at once, elsewhere
        where the phase is a new one."""
        is_new = phase not in self._spent and phase != self._phase
        self._take(phase, done, of, unit)
        if phase != STEP:  # the line of a step has more in it
            self.line.update(
                self.now().line(),
                at_once=phase not in RECURRING.values(),
                always=is_new,
            )

    def count(self, phase: str, units: float) -> None:
        """As of a `Listener`."""
        with self._lock:
            self._units[phase] = self._units.get(phase, 0.0) + units

    def step(self, run: Run, step_s: float | None) -> Now:
        """So many steps of a run are done. step_s: seconds of one; None: not known
        yet."""
        self._step_s = step_s
        self._take(
            STEP,
            run.state.step,
            None if run.steps == UNTIL_THE_DATA_ENDS else run.steps,
            "",
        )
        return self.now()

    def _take(
        self, phase: str, done: float | None, of: float | None, unit: str
    ) -> None:
        with self._lock:
            time_now = self._clock()
            if phase != self._phase:
                self._leave(time_now)
                self._phase = phase
                self._phase_began = time_now
                self._started = run_files.utc_now()
            if (phase, unit, of) != (
                self._phase,
                self._unit,
                self._of,
            ) or self._counted_from is None:
                self._counted_from = done
                self._counted_since = time_now
            self._done = done
            self._of = of
            self._unit = unit
        self._changed.set()

    def _leave(self, time_now: float) -> None:
        """Keeps the time that the phase has taken."""
        if not self._phase:
            return
        self._spent[self._phase] = (
            self._spent.get(self._phase, 0.0) + time_now - self._phase_began
        )
        self._counted_from = None

    # ------------------------------------------------------------ the time that is left

    def plan(
        self, seconds: Mapping[str, float], pictures: float = 0, steps_before: int = 0
    ) -> None:
        """The time of the plan: part -> seconds that are left of it. pictures: sample
        images in all. steps_before: done by an earlier start."""
        self._planned = dict(seconds)
        self._pictures = pictures
        self._steps_before = steps_before

    def follow(self, run: Run) -> None:
        """From here on the run provides the work that is still to come."""
        self._run = run

    def now(self) -> Now:
        """The record as it is."""
        with self._lock:
            left = self._left_of_everything()
            return Now(
                self._phase,
                self._done,
                self._of,
                self._unit,
                self._started,
                self._left_of_phase(),
                left,
                self._share(left),
            )

    def _left_of_phase(self) -> float | None:
        if self._phase == STEP:
            return self._left_of_steps()
        unit_s = (
            self._seconds_per_unit(self._phase)
            if self._phase in RECURRING.values()
            else None
        )
        if unit_s and self._of:
            return (self._of - (self._done or 1) + 1) * unit_s
        if (
            self._done is None
            or self._of is None
            or self._counted_from is None
            or self._done <= self._counted_from
        ):
            return None
        took = self._clock() - self._counted_since
        return (
            max(0.0, self._of - self._done) * took / (self._done - self._counted_from)
        )

    def _left_of_steps(self) -> float | None:
        run = self._run
        if run is None or self._step_s is None or run.steps == UNTIL_THE_DATA_ENDS:
            return self._planned.get("steps")
        return max(0, run.steps - run.state.step) * self._step_s

    def _left_of_everything(self) -> float | None:
        steps = self._left_of_steps()
        of_phase = self._left_of_phase() if self._phase == "downloading" else 0.0
        if steps is None or of_phase is None:
            return None
        if self._run is not None and self._run.steps == UNTIL_THE_DATA_ENDS:
            return None
        return (
            steps
            + of_phase
            + sum(map(self._left_of, (*BEFORE_STEPS, "compiling", *RECURRING)))
        )

    def _left_of(self, part: str) -> float:
        """Seconds left of a part; 0 where nothing is known of it."""
        planned = self._planned.get(part, 0.0)
        if phase := RECURRING.get(part):
            return self._left_of_recurring(part, phase, planned)
        is_over = (
            self._step_s is not None if part == "compiling" else self._is_past(part)
        )
        if is_over:
            return 0.0
        if PART_OF.get(self._phase) == part and self._phase != "reading":
            if (left := self._left_of_phase()) is not None:
                return left
        return max(0.0, planned - self._spent_on(part))

    def _left_of_recurring(self, part: str, phase: str, planned: float) -> float:
        unit_s = self._seconds_per_unit(phase)
        run = self._run
        coming = None
        if run is not None and run.steps != UNTIL_THE_DATA_ENDS:
            coming = 0.0
            for callback in run.listening():
                with run.contained(callback):
                    coming += callback.coming(run).get(phase, 0.0)
        if phase == self._phase and self._of:  # of a set, those that are not done
            coming = (coming or 0.0) + self._of - (self._done or 1) + 1
        if coming is None:
            return planned
        if unit_s is None and part == "samples" and self._pictures:
            unit_s = planned / self._pictures
        if unit_s is None:  # as the steps that are left
            if run and run.steps:
                return planned * (1 - run.state.step / run.steps)
            return planned
        return coming * unit_s

    def _seconds_per_unit(self, phase: str) -> float | None:
        """Measured seconds of one unit of a phase; None where none was measured."""
        units = self._units.get(phase, 0.0)
        return self._spent[phase] / units if units else None

    def _is_past(self, part: str) -> bool:
        if self._phase in (STEP, "compiling", *RECURRING.values()):
            return True
        return (
            part == "encoding"
            and self._phase == "quantizing"
            and "encoding" in self._spent
        )

    def _spent_on(self, part: str) -> float:
        spent = sum(
            seconds
            for phase, seconds in self._spent.items()
            if PART_OF.get(phase) == part
        )
        if PART_OF.get(self._phase) == part:
            spent += self._clock() - self._phase_began
        return spent

    def _share(self, left: float | None) -> float | None:
        run = self._run
        if left is None:
            if run is None or run.steps in (0, UNTIL_THE_DATA_ENDS):
                return None
            return run.state.step / run.steps if run.state.step else None
        worked = (
            self._clock()
            - self._begun
            + self._steps_before * (self._step_s or self._planned_step_s())
        )
        return worked / (worked + left) if worked + left > 0 else 0.0

    def _planned_step_s(self) -> float:
        run = self._run
        left = run.steps - self._steps_before if run else 0
        return self._planned.get("steps", 0.0) / left if left > 0 else 0.0

    # ------------------------------------------------------------ run.json

    @contextmanager
    def written(self, folder: Path, name: str) -> Iterator[None]:
        """Inside the block run.json has this record. The entries of an earlier start
        stay until the run itself writes.

        Raises RunError where the file cannot be written at the beginning; later that is
        a warning.
        """
        before = run_files.read_status(folder) or {"name": name, "status": "running"}
        before.pop("error", None)
        self._folder = folder
        self._document = before
        self._write()
        self._thread = threading.Thread(
            target=self._keep_writing, daemon=True, name="now"
        )
        self._thread.start()
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Nothing is written from here on: the run itself writes its end."""
        self._closed.set()
        self._changed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    @property
    def writes(self) -> bool:
        """Whether posted entries will be in run.json."""
        return self._thread is not None

    def post(self, document: Mapping[str, Any]) -> None:
        """The other entries of run.json, from here on."""
        self._document = dict(document)
        self._changed.set()

    def _keep_writing(self) -> None:
        while not self._closed.wait(WRITE_EVERY_S):
            self._changed.wait()
            if self._closed.is_set():
                return
            self._changed.clear()
            try:
                self._write()
                self._complaint = ""
            except RunError as error:  # a full disk, say: the end of the run tells whether it is still full
                if not self._complaint:
                    logger.warning(
                        f"{error} The run goes on; its page shows what it did before."
                    )
                self._complaint = str(error)

    def _write(self) -> None:
        assert self._folder is not None
        entry = {"now": self.now().to_json()} if self._phase else {}
        document = self._document | {"updated": run_files.utc_now()} | entry
        write_json(self._folder / run_files.STATUS, document, durable=False)
