"""The report of a run: its page (shared/pages/run.html.j2) with all images, curves and
scripts in one file.

It writes no file and does not change the run. `process` calls it for the owner's page,
and for a page to share, which contains nothing private.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from extensions.tools.shared.feed import Feed
from extensions.tools.shared.html_page import PAGES, embedded, link_to, page
from extensions.tools.shared.run_job import control_images, training_section
from extensions.tools.shared.run_records import (
    MOST_POINTS,
    MOST_ROWS,
    dataset_images,
    diagrams,
    marks,
    page_values,
)
from toolkit.commands import command, command_for_others
from toolkit.data.pixels.images import ImageError, open_image
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.run_files import final_files, read_status
from toolkit.plan.next_commands import next_commands
from toolkit.train.run_reader import RunInfo, RunStatus

MOST_SAMPLES = 240
"""Maximum number of samples in the page; of more, only some steps are shown."""

SAMPLE_SIDE, CONTROL_SIDE, THUMBNAIL_SIDE = 512, 256, 112
"""Pixels of the longer side of an image that is put into the page."""

_CURVES = ("LICENSE", "uPlot.min.css", "uPlot.iife.min.js", "curves.css", "curves.js")
_SHARED = [PAGES / "viewer.js", *(PAGES / "curves" / name for name in _CURVES)]


def report_page(
    run: RunInfo,
    folder: Path,
    embed: bool = True,
    hashed: bool = True,
    share: bool = False,
) -> str:
    """The page of a run. folder: the folder of the page, for its links. The other
    arguments: as in `ReportConfig`."""

    def address(path: Path, side: int = SAMPLE_SIDE) -> str | None:
        """The address of an image; None if it cannot be read. side: as in
        `embedded`."""
        if not embed:
            return link_to(path, folder) if path.is_file() else None
        try:
            return embedded(open_image(path, "gray", at_least=2 * side), side)
        except ImageError:
            return None

    run = _as_recorded(run)
    feed = Feed(run.folder)
    most = MOST_SAMPLES if embed else None
    values = page_values(run, feed, "", address, most, MOST_ROWS, hashed)
    values |= _nothing_private(run) if share else _private(run, address)
    curves = (series.curves(points=MOST_POINTS) for series in feed.series)
    values["data"] |= {
        "diagrams": diagrams(chain.from_iterable(curves)),
        "marks": [] if share else marks(run.folder),
    }
    return page(
        PAGES / "run.html.j2",
        redact_text(run.name),
        shared=_SHARED,
        **values,
        base="page.html.j2",
        cost=None,
        shown=max(values["samples"]["steps"], default=0),
        picture=lambda file, side: file if side or not embed else "",
        marked=[],
        difference=None,
    )


def _nothing_private(run: RunInfo) -> dict[str, Any]:
    """Empty values, in a page for others, for everything about the dataset and this
    machine."""
    hidden = ("dataset", "settings", "events", "log", "plan", "folder", "result")
    run = replace(run, error=None, reason=None)
    return dict.fromkeys(hidden) | {"run": run, "warnings": [], "references": []}


def _private(
    run: RunInfo, address: Callable[[Path, int], str | None]
) -> dict[str, Any]:
    """The values that only the owner's page has."""
    images = dataset_images(run.folder)
    dataset = [
        (image, image.file and address(image.file, THUMBNAIL_SIDE))
        for image in images[:MOST_ROWS]
    ]
    references = []
    for paths in control_images(run):
        addresses = [address(path, CONTROL_SIDE) for path in paths]
        references.append([("", small) for small in addresses if small])
    result, commands = _result(run)
    return {
        "dataset": dataset,
        "image_count": len(images),
        "lost": sum(image.file is None for image in images),
        "references": references,
        "result": result,
        "commands": commands,
    }


def _result(run: RunInfo) -> tuple[str, list[str]]:
    """The file of a finished run, and the commands that use it. The commands do not
    contain the path of the interpreter, because pages are passed on."""
    files = final_files(run.folder, run.name)
    if not files:
        return "", []
    try:
        section = training_section(run, check_files=False)
    except UserError:  # another trainer, or a job that is not read any more
        section = None
    lines = [
        line.replace(command(), command_for_others(), 1)
        for line in next_commands(run.folder, run.name, section)
    ]
    return str(files[0]), lines[:-1]  # the last one makes this page


def _as_recorded(run: RunInfo) -> RunInfo:
    """The run with its recorded status. A run that writes its last report still holds
    its lock, but has already recorded how it ended."""
    recorded = read_status(run.folder).get("status")
    if (
        run.status is RunStatus.RUNNING
        and recorded in list(RunStatus)
        and recorded != RunStatus.RUNNING
    ):
        return replace(run, status=RunStatus(recorded), eta_s=None, now=None)
    return run
