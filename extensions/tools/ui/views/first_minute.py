"""The first minute of a run, before it has made a sample or a step: its images, and what
is done of its preparation (`toolkit.files.now`).

The page of a run (`extensions.tools.ui.views.after`) shows it with
templates/first_minute.html.j2.
"""

from __future__ import annotations

from typing import Any

from extensions.tools.ui.entries import images_of
from extensions.tools.ui.job_text import JobText
from extensions.tools.ui.state import Ui
from toolkit.files.now import STEP
from toolkit.files.run_files import SAMPLES
from toolkit.train.run_reader import RunInfo, RunStatus

TICKS = {
    "downloading": ("downloading",),
    "reading": ("reading",),
    "quantizing": ("quantizing",),
    "encoding": ("encoding",),
    "sampling": ("sampling",),
    STEP: ("compiling", "validating", STEP),
}
"""Line of the list -> the phases that belong to it, in their order."""

MOST_IMAGES = 15


def first_minute(ui: Ui, run: RunInfo, saved: JobText | None) -> dict[str, Any] | None:
    """The lines, each with its state (`done`, `now` or empty), how far the present one
    is, the time left, and addresses of small images. None: the run has made a step or a
    sample, or does not run. saved: its job."""
    if run.status is not RunStatus.RUNNING or run.now is None or run.step:
        return None
    if any((run.folder / SAMPLES).glob("*")):
        return None

    return {
        "ticks": ticks_of(saved, run.now.phase),
        "how_far": run.now.text().removeprefix(run.now.phase).strip(),
        "left": run.now.left(),
        "images": images_of(ui, saved, MOST_IMAGES),
    }


def ticks_of(job: JobText | None, phase: str = "") -> list[tuple[str, str]]:
    """The lines of a job, each with its state. phase: the present one; empty: nothing
    has begun."""

    def given(key: str) -> str:
        return job.get(job.path(key)) if job and job.root else ""

    ticks = dict(TICKS)
    if given("model.quantize") != "true":
        del ticks["quantizing"]
    if "true" in (given("train.skip_first_sample"), given("train.disable_sampling")):
        del ticks["sampling"]
    names = list(ticks)
    now = next((n for n, phases in ticks.items() if phase in phases), names[1])
    place = names.index(now) if phase else -1
    return [
        (name, "done" if at < place else "now" if at == place else "")
        for at, name in enumerate(names)
    ]
