"""The section of `type: diagrams`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from toolkit.config.field_types import PathStr
from toolkit.config.process import Diagnostic, JobContext
from toolkit.config.tool import ToolConfig
from toolkit.errors import missing_package
from toolkit.files.writing import file_in_the_way
from toolkit.train.run_reader import runs_in


class DiagramsConfig(ToolConfig):
    """`type: diagrams`: draws the curves of runs, running or finished, as PNG files, and writes a summary in words."""

    process_types: ClassVar[tuple[str, ...]] = ("diagrams",)
    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: PathStr
    """Folder of a run, or one with several."""

    output: PathStr = ""
    """Folder to write. Empty: `graph/` in the folder of each run."""

    suffix: str = ""
    """Put behind the name of each file, such as `_vae`, where several runs are drawn into one folder."""

    def folder(self) -> Path:
        """`run` as a path."""
        return Path(self.run).expanduser()

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A folder without a run, a file in the way, a package that is missing."""
        if not job.will_write(self.folder()) and not runs_in(self.folder()):
            yield Diagnostic(("run",), f"{self.run!r} holds no run (no run.json). Give the folder of a run.")
        if self.output and (file := file_in_the_way(Path(self.output).expanduser())):
            yield Diagnostic(("output",), f"'{file}' is a file. Give a folder to write.")
        if lack := missing_package("matplotlib", "diagrams"):
            yield Diagnostic(("run",), lack)
