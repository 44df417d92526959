"""The process of `type: example`: counts images when a job runs.

It opens no image and loads no model. The section in `config` is already checked. The
runner of jobs creates the process and calls `run`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from extensions.example.config import ExampleConfig
from jobs.process import BaseExtensionProcess
from toolkit.files.writing import write_json


class ExampleProcess(BaseExtensionProcess):
    """Writes {"job", "folders": {folder: images}, "images"} to `output`.

    Example::

        process:
          - type: example
            folder_path: datasets/my_images
    """

    section: ExampleConfig

    def run(self) -> None:
        super().run()
        counts = count_images(Path(self.section.folder_path), self.section.suffixes)
        report = {
            "job": self.job.name,
            "folders": counts,
            "images": sum(counts.values()),
        }
        output = Path(self.section.output)
        write_json(output, report)
        print(
            f"{self.name}: {report['images']} images in {len(counts)} folders, see {output}"
        )

    def on_error(self, error: Exception) -> None:
        print(f"{self.name}: nothing was written to {self.section.output}")


def count_images(root: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    """Folder, relative to `root` (which is "."), -> its number of images, in
    alphabetical order."""
    files = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file()
    ]
    return dict(
        sorted(
            Counter(path.parent.relative_to(root).as_posix() for path in files).items()
        )
    )
