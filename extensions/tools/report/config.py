"""The section of `type: report`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from extensions.tools.shared.html_page import is_page
from toolkit.config.field_types import PathStr
from toolkit.config.process import Diagnostic, JobContext
from toolkit.config.tool import ToolConfig
from toolkit.files.writing import file_in_the_way, refusal
from toolkit.train.run_reader import runs_in

FILE = "report.html"


class ReportConfig(ToolConfig):
    """`type: report`: one HTML page of a run, running or finished, that opens without a network: samples over steps,
    curves, settings, dataset, events, files."""

    process_types: ClassVar[tuple[str, ...]] = ("report",)
    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: PathStr
    """Folder of a run, or a folder that contains several runs: one page is written for each."""

    output: PathStr = ""
    """File to write; a page of this program is replaced, any other file is not. Empty: `report.html` in the folder of
    each run."""

    embed: bool = True
    """Put the pictures into the page, as small JPEG: one file to pass on. false: the page links to the samples and the
    images of the dataset where they lie."""

    share: bool = False
    """A page for others: without the images, captions and names of the dataset, the job, the events, errors and the
    folder of the run."""

    hashes: bool = True
    """Compute the SHA-256 of each saved file, which reads them whole. false: only those that the run recorded."""

    foreign: ClassVar = "report"

    def folder(self) -> Path:
        """`run` as a path."""
        return Path(self.run).expanduser()

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A folder without a run, several for one file, a file in the way."""
        if not job.will_write(self.folder()):
            runs = runs_in(self.folder())
            if not runs:
                yield Diagnostic(("run",), f"{self.run!r} holds no run (no run.json). Give the folder of a run.")
            if len(runs) > 1 and self.output:
                names = ", ".join(run.folder.name for run in runs[:5])
                yield Diagnostic(("output",), f"is one file, {self.run!r} holds {len(runs)} runs ({names}). Give one.")
        if self.output:
            yield from self._in_the_way(Path(self.output).expanduser())

    def _in_the_way(self, path: Path) -> Iterable[Diagnostic]:
        if path.is_dir():
            yield Diagnostic(("output",), f"'{path}' is a folder. Give a file, such as '{path / FILE}'.")
        elif reason := refusal(path, is_page):
            yield Diagnostic(("output",), reason)
        elif file := file_in_the_way(path.parent):
            yield Diagnostic(("output",), f"'{file}' is a file. Give a path in a folder.")
