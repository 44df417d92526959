"""`sample.overview`: the sheet of all samples, rewritten after each set; its path is printed at the end of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.data.images import IMAGE_SUFFIXES
from toolkit.files.run_files import SAMPLES
from toolkit.train.contact_sheet import OVERVIEW, write_contact_sheet
from toolkit.train.run import Callback, Run

logger = logging.getLogger(__name__)


class OverviewCallback(Callback):
    """Writes the sheet; the run continues where that fails."""

    def __init__(self, folder: Path, training: Iterable[Path], references: Iterable[Sequence[Path]] = ()) -> None:
        """folder: of the run's files. training: folders of images for the first row. references: the reference
        images of each sample, in order."""
        self._folder, self._folders = folder, tuple(training)
        self._references = tuple(references)
        self._images: Sequence[Path] | None = None

    def event(self, event: str, **details: object) -> None:
        """Takes the run's events; behind their log, which has the prompts."""
        if event != "sample":
            return
        try:
            if self._images is None:
                self._images = [image for folder in self._folders for image in _images_in(folder)]
            write_contact_sheet(self._folder, self._images, self._references)
        except OSError as error:
            logger.warning(f"no sheet of the samples: {error}")

    def on_end(self, run: Run, finished: bool) -> None:
        if (run.folder / SAMPLES / OVERVIEW).is_file():
            logger.info(f"all samples on one sheet: {run.folder / SAMPLES / OVERVIEW}")


def _images_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path for path in found if not path.name.startswith((".", "_"))]
