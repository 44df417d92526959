"""The section of `type: report`, which is also the flags of `run.py report`.

It checks that the folder has runs and that the output can be written. It makes no page:
`page` and `process` do. The reader of jobs and of flags (`toolkit.config.reading`)
makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from extensions.tools.shared.html_page import is_page
from extensions.tools.shared.keys import RunToolConfig, check_page
from toolkit.config.reading.field_types import PathStr, WritePathStr
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.train.run_reader import runs_in

FILE = "report.html"


class ReportConfig(RunToolConfig):
    """`type: report`: writes one HTML page of a run, running or finished, that opens
    without a network: samples over steps, curves, files, log, dataset, settings,
    events."""

    process_types: ClassVar[tuple[str, ...]] = ("report",)
    example: ClassVar[str] = "output/quickstart"

    run: PathStr
    """Folder of a run, or a folder that contains several runs: one page is written for
    each."""

    output: WritePathStr = ""
    """File to write; a page of this program is replaced, any other file is not. Empty:
    `report.html` in the folder of each run."""

    embed: bool = True
    """Embed the images as small JPEGs: one file to pass on. false: the page links to
    the samples and the images of the dataset."""

    share: bool = False
    """A page for others: without the images, captions and names of the dataset, the
    job, the log, the events, errors and the folder of the run."""

    hashes: bool = True
    """Compute the SHA-256 of each saved file, which reads all of it. false: only those
    that the run recorded."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A folder without a run, several for one file, a file in the way."""
        yield from self.check_runs(job)
        if self.output:
            runs = () if job.will_write(self.folder()) else runs_in(self.folder())
            if len(runs) > 1:
                names = ", ".join(run.folder.name for run in runs[:5])
                yield Diagnostic(
                    ("output",),
                    f"is one file, {self.run!r} holds {len(runs)} runs ({names}). Give one.",
                )
            yield from check_page(Path(self.output).expanduser(), is_page, FILE)
