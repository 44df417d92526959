"""The process of `lint`: reads the datasets, runs the checks, prints the findings.

Findings go to standard output, as lines or as one JSON object, and the progress to
standard error. With `preview` the page is written. Images and captions are never
changed. The table of tools (`extensions/tools/__init__.py`) names the process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from extensions.tools.lint.checks import names_of, run_checks
from extensions.tools.lint.config import LintConfig
from extensions.tools.lint.dataset import Dataset, read_datasets
from extensions.tools.lint.ignored import Ignored
from extensions.tools.lint.preview import preview_page
from extensions.tools.shared.findings import CHECKS, kinds
from extensions.tools.shared.html_page import is_page
from jobs.process import BaseExtensionProcess
from toolkit.data.pixels.alignment import Alignment
from toolkit.data.scan.found import count_of
from toolkit.errors import Diagnostic, RunError
from toolkit.files.log import StatusLine
from toolkit.files.now import Now
from toolkit.files.writing import readable_size, require_own, write_text

logger = logging.getLogger(__name__)

SILENT_S = 2.0
"""Seconds after which progress is written to a pipe; a terminal shows it at once."""


MOST_LINES = 3
"""Findings of a kind that have a line each."""


class LintProcess(BaseExtensionProcess):
    """Raises RunError, exit code 1, where there are findings: a job then trains
    nothing.

    Example::

        python run.py lint config/my_character.yaml --preview
    """

    section: LintConfig

    def run(self) -> None:
        super().run()
        section = self.section
        datasets = list(read_datasets(section, self._progress()))
        findings: dict[Diagnostic, None] = {}
        for data in datasets:
            findings |= dict.fromkeys(run_checks(data, section))
        ignored_ones = Ignored()
        shown = [finding for finding in findings if finding not in ignored_ones]
        images = len({item.image for data in datasets for item in data.items})
        ignored = len(findings) - len(shown)
        if section.preview:
            self._write_preview(datasets, shown)
        if section.as_json:
            rows = [
                {"check": one.check, "file": one.place, "message": one.message}
                for one in shown
            ]
            report = {"images": images, "ignored": ignored, "findings": rows}
            print(json.dumps(report | {"pairs": pairs(datasets)}, indent=2))
        else:
            print(*render(shown), sep="\n", end="\n" if shown else "")
        checked = f"{count_of(images, 'image')} checked"
        if ignored:
            checked += f", {count_of(ignored, 'finding')} ignored"
        if shown:
            raise RunError(
                f"{count_of(len(shown), 'finding')}: {names_of(shown)}. {checked}."
            )
        if not section.as_json:
            logger.info(f"{section.path}: nothing found. {checked}.")

    def _progress(self) -> Any:
        """Shows on standard error how many images are read, because standard output has
        only the findings."""
        line = StatusLine(sys.stderr)
        begun = time.monotonic()
        is_quiet = self.section.as_json and not sys.stderr.isatty()

        def show(done: int, total: int) -> None:
            if done == total:
                line.finish()
            elif sys.stderr.isatty() or (
                time.monotonic() - begun >= SILENT_S and not is_quiet
            ):
                line.update(Now("reading", done, total, "images").line())

        return show

    def _write_preview(
        self, datasets: Sequence[Dataset], findings: Sequence[Diagnostic]
    ) -> None:
        path = Path(self.section.output).expanduser()
        require_own(path, is_page)
        write_text(path, preview_page(datasets, findings))
        if not self.section.as_json:
            logger.info(f"{path}: {readable_size(path.stat().st_size)}")


def pairs(datasets: Sequence[Dataset]) -> list[dict[str, Any]]:
    """How each image is aligned with its control images of the same shape, as JSON
    values."""
    return [
        {"image": item.image, "reference": reference.path}
        | _measures(reference.alignment)
        for data in datasets
        for item in data.items
        for reference in item.references
        if reference.alignment
    ]


def _measures(alignment: Alignment) -> dict[str, Any]:
    names = ("zoom", "rotation", "shift", "drift", "peak")
    error = alignment.error if isfinite(alignment.error) else None
    measures = {name: getattr(alignment, name) for name in names}
    return {"measurable": alignment.is_measurable, **measures, "error": error}


def render(findings: Sequence[Diagnostic]) -> list[str]:
    """A heading for each check, and a line for each finding; more than MOST_LINES that
    differ in their numbers only are one line, with the names of their files below."""
    lines = []
    for kind in kinds((one.check, one.place, one.message) for one in findings):
        check = CHECKS[kind.check]
        rows = []
        for message, files in kind.merged():
            if len(files) <= MOST_LINES:
                rows += [f"  {file}: {text}" for file, text in files]
                continue
            if not (check.numbers or kind.alike):  # else the heading says it
                rows.append(f"  {message}:")
            rows += _names(dict(files), dict(kind.alike))
        title = kind.line if len(rows) < kind.total else check.title
        lines += [f"{kind.check}: {title}. {check.remedy}", *rows, ""]
    return lines


def _names(files: Iterable[str], like: Mapping[str, str]) -> list[str]:
    """A line for each folder: its files, and after `=` what they show too."""
    folders: dict[str, list[str]] = {}
    for path in files:
        folder, name = os.path.split(path)
        also = f" = {os.path.basename(like[path])}" if path in like else ""
        folders.setdefault(folder, []).append(f"{name}{also}")
    return [f"  {folder}: {', '.join(names)}" for folder, names in folders.items()]
