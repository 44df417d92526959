"""The section of `type: diagrams`, which is also the flags of `run.py diagrams`.

It checks that the folder has runs and that matplotlib is installed. It draws nothing:
`process` does. The reader of jobs and of flags (`toolkit.config.reading`) makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from extensions.tools.shared.keys import RunToolConfig, check_place
from toolkit.config.reading.field_types import PathStr, WritePathStr
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.errors import missing_package


class DiagramsConfig(RunToolConfig):
    """`type: diagrams`: plots the curves of runs, running or finished, as PNG files,
    and writes a text summary."""

    process_types: ClassVar[tuple[str, ...]] = ("diagrams",)
    example: ClassVar[str] = "output/quickstart"

    run: PathStr
    """Folder of a run, or one with several."""

    output: WritePathStr = ""
    """Folder to write. Empty: `graph/` in the folder of each run, and of several runs
    also `graph/` in `run`."""

    suffix: str = ""
    """Appended to the name of each file, such as `_vae`, if several runs are plotted
    into one folder."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A folder without a run, a file in the way, a package that is missing."""
        yield from self.check_runs(job)
        if self.output:
            yield from check_place(Path(self.output).expanduser())
        lack = missing_package("matplotlib", "diagrams")
        if lack:
            yield Diagnostic(("run",), lack)
