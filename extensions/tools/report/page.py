"""The page of a run: what `records` has read, as HTML. Markup, look and script are in report.html.j2, .css and .js."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from extensions.tools.shared.html_page import embedded, link_to, page
from extensions.tools.shared.run_job import training_section
from extensions.tools.shared.run_records import (
    MOST_POINTS,
    dataset_images,
    diagrams,
    events,
    marks,
    sample_rows,
    saved_files,
    settings_text,
    which_file,
)
from extensions.tools.shared.series import IN_STEPS, Series, series_of
from toolkit.commands import command, command_for_others
from toolkit.data.images import ImageError, open_image
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.run_files import duration, final_files, read_status
from toolkit.files.writing import readable_size
from toolkit.plan.next_commands import next_commands
from toolkit.train.run_reader import RunInfo, RunStatus

MOST_SAMPLES = 240
"""Samples that are put into the page; of more, only some steps."""

MOST_IMAGES = 300
"""Images of the dataset, events, files: rows of each table."""

SAMPLE_SIDE, THUMBNAIL_SIDE = 512, 112
"""Pixels of the longer side of an image that is put into the page."""

_FILES = ("LICENSE", "uPlot.min.css", "uPlot.iife.min.js", "curves.css", "curves.js")
CURVES = [Path(__file__).parents[1] / "shared" / "curves" / name for name in _FILES]
"""Licence, look and script of the diagrams, which the page of a run has too."""

_LONGEST_TEXT = 100_000


def report_page(run: RunInfo, folder: Path, embed: bool = True, hashed: bool = True, share: bool = False) -> str:
    """The page of a run. folder: where the page will lie, for its links. The rest: as of `ReportConfig`."""

    def address(path: Path, side: int) -> str | None:
        """The address of an image; None if it cannot be read. side: as in `embedded`."""
        if not embed:
            return link_to(path, folder) if path.is_file() else None
        try:
            return embedded(open_image(path, "gray", at_least=2 * side), side)
        except ImageError:
            return None

    series = [each.update() for each in series_of(run.folder)]
    curves = diagrams(curve for each in series for curve in each.curves(points=MOST_POINTS))
    rows, all_steps = sample_rows(run.folder, MOST_SAMPLES if embed else None)
    steps = sorted({sample.step for row in rows for sample in row.samples})
    samples = [
        {
            "index": row.index,
            "prompt": row.prompt,
            "by_step": dict.fromkeys(steps) | row.by_step,
        }
        for row in rows
    ]
    settings = settings_text(run.folder)
    cut = "\n... (cut off here)" if len(settings) > _LONGEST_TEXT else ""
    sections: dict[str, Any] = {"Samples": steps, "Curves": curves}
    if not share:
        sections |= {"Dataset": dataset_images(run.folder), "Settings": settings, "Events": events(run.folder)}
    sections["Files"] = list(islice(saved_files(run.folder, hashed), MOST_IMAGES + 1))
    status = _status(run)
    result, commands = ("", []) if share else _result(run)
    return page(
        Path(__file__).with_name("report.html.j2"),
        redact_text(run.name),
        shared=CURVES,
        data={"diagrams": curves, "marks": [] if share else marks(run.folder)},
        run=run,
        share=share,
        status=status,
        tone={"finished": "good", "failed": "bad", "killed": "bad"}.get(status, "faint"),
        facts=_facts(run, series[0], status, share),
        result=result,
        commands=commands,
        filled=[title for title, found in sections.items() if found],
        most=MOST_IMAGES,
        steps=steps,
        all_steps=all_steps,
        samples=samples,
        sample=lambda sample: address(sample.path, SAMPLE_SIDE),
        curves=curves,
        images=sections.get("Dataset"),
        thumbnail=lambda file: address(file, THUMBNAIL_SIDE),
        settings=settings[:_LONGEST_TEXT] + cut,
        events=sections.get("Events"),
        files=sections["Files"],
        readable_size=readable_size,
    )


def _facts(run: RunInfo, metrics: Series, status: str, share: bool) -> dict[str, str]:
    """The facts of a run; empty what is not recorded."""
    step = max(metrics.last_step, -1 if run.step is None else run.step)
    seconds = metrics.total(*IN_STEPS)
    loss = "" if run.loss is None else f"{run.loss:.4g}"
    return {
        "Steps": "" if step < 0 else f"{step:,}" + (f" of {run.total_steps:,}" if run.total_steps else ""),
        "Images seen": "" if run.samples is None else f"{run.samples:,}",
        "Loss": loss and f"{loss}, mean of the last 50 steps",
        "Best validation": "" if run.best_loss is None else f"{run.best_loss:.4g} at step {run.best_step}",
        **which_file(run.folder),
        "Time in steps": duration(seconds) if seconds else "",
        "Speed": "" if run.step_s is None else f"{run.step_s:.3g} s per step",
        "Skipped steps": str(run.skipped or ""),
        "Time left": "" if run.eta_s is None or status != RunStatus.RUNNING else duration(run.eta_s),
        "Began": run.started.strftime("%Y-%m-%d %H:%M UTC") if run.started else "",
        "Last written": run.updated.strftime("%Y-%m-%d %H:%M UTC") if run.updated else "",
        "Ended early": "" if share else redact_text(run.reason or ""),
    }


def _result(run: RunInfo) -> tuple[str, list[str]]:
    """The file of a finished run, and how it is used; without the path of the interpreter, for a page is passed on."""
    files = final_files(run.folder, run.name)
    if not files:
        return "", []
    try:
        section = training_section(run, check_files=False)
    except UserError:  # another trainer, or a job that is not read any more: the file is there all the same
        section = None
    lines = [line.replace(command(), command_for_others(), 1) for line in next_commands(run.folder, run.name, section)]
    return str(files[0]), lines[:-1]  # the last one makes this page


def _status(run: RunInfo) -> str:
    """A run that writes its last report still holds its lock, and has told how it ended."""
    recorded = read_status(run.folder).get("status")
    if run.status is RunStatus.RUNNING and recorded in list(RunStatus):
        return str(recorded)
    return run.status.value
