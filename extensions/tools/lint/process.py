"""Checks the datasets of a job or a folder, and tells what it found."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from extensions.tools.lint.checks import CHECKS, names_of, run_checks
from extensions.tools.lint.config import LintConfig
from extensions.tools.lint.dataset import Dataset, read_datasets
from extensions.tools.lint.ignored import Ignored
from extensions.tools.lint.preview import preview_page
from extensions.tools.shared.html_page import is_page
from jobs.process import BaseExtensionProcess
from toolkit.data.scan.found import count_of
from toolkit.errors import Diagnostic, RunError
from toolkit.files.log import StatusLine
from toolkit.files.now import Now
from toolkit.files.writing import readable_size, why_not_replaced, write_text

logger = logging.getLogger(__name__)

SILENT_S = 2.0
"""Seconds for which a pipe is told nothing of the reading; a terminal shows it at
once."""


class LintProcess(BaseExtensionProcess):
    """Ends with RunError, exit code 1, where anything is found: a job then trains
    nothing."""

    section: LintConfig

    def run(self) -> None:
        super().run()
        section = self.section
        datasets = list(read_datasets(section, self._progress()))
        found = list(
            dict.fromkeys(
                finding for data in datasets for finding in run_checks(data, section)
            )
        )
        ignored_ones = Ignored()
        told = [finding for finding in found if finding not in ignored_ones]
        images = len({item.sample.image for data in datasets for item in data.items})
        ignored = len(found) - len(told)
        if section.preview:
            self._write_preview(datasets, told)
        if section.as_json:
            print(
                json.dumps(
                    as_json(told, images, ignored) | {"pairs": pairs(datasets)},
                    indent=2,
                )
            )
        else:
            for line in render(told):
                print(line)
        checked = f"{count_of(images, 'image')} checked"
        if ignored:
            checked += f", {count_of(ignored, 'finding')} ignored"
        if told:
            raise RunError(
                f"{count_of(len(told), 'finding')}: {names_of(told)}. {checked}."
            )
        if not section.as_json:
            logger.info(f"{section.path}: nothing found. {checked}.")

    def _progress(self) -> Any:
        """Shows on standard error how many images are read: standard output has the
        findings alone."""
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
        reason = why_not_replaced(path, is_page)
        if reason:
            raise RunError(reason)
        write_text(path, preview_page(datasets, findings))
        if not self.section.as_json:
            logger.info(f"{path}: {readable_size(path.stat().st_size)}")


def as_json(
    findings: Sequence[Diagnostic], images: int, ignored: int
) -> dict[str, Any]:
    """The findings as one JSON object."""
    rows = []
    for each in findings:
        rows.append({"check": each.check, "file": each.place, "message": each.message})
    return {"images": images, "ignored": ignored, "findings": rows}


def pairs(datasets: Sequence[Dataset]) -> list[dict[str, Any]]:
    """How each image lies on its references of its shape, as JSON values."""
    return [
        {
            "image": item.sample.image,
            "reference": reference.path,
            "measurable": found.is_measurable,
        }
        | {"zoom": found.zoom, "rotation": found.rotation, "shift": list(found.shift)}
        | {
            "drift": found.drift,
            "error": found.error if isfinite(found.error) else None,
            "peak": found.peak,
        }
        for data in datasets
        for item in data.items
        for reference in item.references
        if (found := reference.alignment)
    ]


def render(findings: Sequence[Diagnostic]) -> list[str]:
    """A heading for each check, and a line for each finding."""
    lines = []
    for name, check in CHECKS.items():
        found = [finding for finding in findings if finding.check == name]
        if found:
            lines += [f"{name}: {check.title}. {check.remedy}"]
            lines += [f"  {finding.place}: {finding.message}" for finding in found] + [
                ""
            ]
    return lines
