"""The first minute of a run, before it has made a sample or a step: its images, and what
is done of its preparation (`toolkit.files.now`).

The page of a run (`extensions.tools.ui.views.after`) shows it with
templates/first_minute.html.j2.
"""

from __future__ import annotations

from typing import Any

from extensions.tools.ui.datasets import read_dataset, thumbs
from extensions.tools.ui.job_text import JobText
from extensions.tools.ui.path import dataset_at
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

    def given(key: str) -> str:
        return saved.get(saved.path(key)) if saved else ""

    ticks = dict(TICKS)
    if given("model.quantize") != "true":
        del ticks["quantizing"]
    if "true" in (given("train.skip_first_sample"), given("train.disable_sampling")):
        del ticks["sampling"]
    names = list(ticks)
    now = next((n for n, phases in ticks.items() if run.now.phase in phases), names[1])
    place = names.index(now)
    data = dataset_at(ui, given("datasets[].folder_path"))
    images = read_dataset(ui, data.name).images[:MOST_IMAGES] if data else []
    return {
        "ticks": [
            (name, "done" if at < place else "now" if at == place else "")
            for at, name in enumerate(names)
        ],
        "how_far": run.now.text().removeprefix(run.now.phase).strip(),
        "left": run.now.left(),
        "images": [thumbs(data, image) for image in images] if data else [],
    }
