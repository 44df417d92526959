"""The section of `type: example`.

It checks the keys and counts nothing: `process` does. It imports no torch, because
checking a job and --dry-run use only this file. The reader of jobs
(`toolkit.config.reading`) makes the section.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from toolkit.config.reading.process import Diagnostic, JobContext, ProcessConfig


class ExampleConfig(ProcessConfig):
    """`type: example`: counts the images of each folder and writes the numbers to a
    file.

    Example:
        type: example
        folder_path: datasets/my_images
        output: output/counts.json
    """

    folder_path: str
    """Folder whose images are counted, those in its subfolders too."""

    output: str = "output/example.json"
    """File the report is written to, as JSON."""

    suffixes: tuple[str, ...] = Field((".jpg", ".jpeg", ".png", ".webp"), min_length=1)
    """Endings of the file names that count as images, in either case."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        folder = Path(self.folder_path)
        if not folder.is_dir() and not job.will_write(folder):
            where = f"does not exist (working directory: {Path.cwd()})"
            yield Diagnostic(
                ("folder_path",),
                f"{self.folder_path!r} {where}. Give a folder of images.",
            )
