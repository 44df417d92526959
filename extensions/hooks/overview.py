"""The samples of a run on one sheet.

Training images are at the top. Below them each prompt has a row and each step a column;
the control images of a prompt are on the left. The sheet is drawn from the files of the
run, so it can be drawn again at any time. `toolkit.train.callbacks.standard` adds it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from toolkit.data.pixels.images import IMAGE_SUFFIXES, ImageError, open_image
from toolkit.files.run_files import SAMPLES
from toolkit.files.writing import atomic_write, short
from toolkit.train.run import Callback, Run, Sampled
from toolkit.train.run_reader import SampleImage, list_samples, spread

logger = logging.getLogger(__name__)

OVERVIEW = "overview.png"
"""The sheet, in the folder of the samples."""

COLUMNS = 8
"""At most so many steps: the first, the last, and evenly chosen ones between."""

ROWS = 32
"""At most so many prompts, the first ones."""

CELL = 192
"""Pixels of the longer side of an image on the sheet; smaller images stay as they
are."""

_GAP = 6
_LINE = 14


class OverviewCallback(Callback):
    """`sample.overview`: rewrites the sheet of all samples after each set; the run
    continues where that fails. Its path is the last word of a run.

    Example::

        callbacks.append(OverviewCallback(folder, [Path("datasets/maya")]))
    """

    def __init__(
        self,
        folder: Path,
        training: Iterable[Path],
        references: Iterable[Sequence[Path]] = (),
    ) -> None:
        """folder: of the run's files. training: folders of images for the first row.
        references: the reference images of each sample, in order."""
        self._folder = folder
        self._folders = tuple(training)
        self._references = tuple(references)
        self._images: Sequence[Path] | None = None

    def on_sample(self, run: Run, sampled: Sampled) -> None:
        try:
            if self._images is None:
                self._images = _images_in(self._folders)
            write_contact_sheet(self._folder, self._images, self._references)
        except (OSError, ImageError) as error:
            logger.warning(f"no sheet of the samples: {error}")

    def on_end(self, run: Run, finished: bool) -> None:
        if (run.folder / SAMPLES / OVERVIEW).is_file():
            logger.info(
                f"all samples on one sheet: {short(run.folder / SAMPLES / OVERVIEW)}"
            )


def _images_in(folders: Iterable[Path]) -> list[Path]:
    """The images below folders, without files whose names begin with a dot or an
    underscore."""
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith((".", "_"))
    ]


def write_contact_sheet(
    folder: Path,
    training: Sequence[Path] = (),
    references: Sequence[Sequence[Path]] = (),
) -> Path | None:
    """Writes the sheet of a run and returns its path; None where there are no samples.
    training: images for its first row, in half size; of many, evenly chosen ones.
    references: the reference images of each sample, in order. Raises OSError where an
    image cannot be read or the sheet cannot be written."""
    samples = list_samples(folder)
    if not samples:
        return None
    steps = spread(sorted({sample.step for sample in samples}), COLUMNS)
    rows = sorted({sample.index for sample in samples})[:ROWS]
    cells = {
        (sample.index, sample.step): sample
        for sample in samples
        if sample.step in steps
    }
    path = folder / SAMPLES / OVERVIEW
    sheet = _drawn(cells, rows, steps, training, references)
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="png")
    return path


def _drawn(
    cells: dict[tuple[int, int], SampleImage],
    rows: Sequence[int],
    steps: Sequence[int],
    training: Sequence[Path],
    references: Sequence[Sequence[Path]],
) -> Image.Image:
    """The sheet: images of the training, steps above the columns, the prompt above each
    row, its references on the left."""
    images: dict[tuple[int, int | None], Image.Image] = {
        place: _thumbnail(sample.path)
        for place, sample in cells.items()
        if place[0] in rows
    }
    width = max(image.width for image in images.values())
    small = (width - _GAP) // 2
    beside = {
        row: _stacked(paths, small)
        for row, paths in enumerate(references)
        if paths and row in rows
    }
    images |= {(row, None): image for row, image in beside.items()}
    left = _GAP + (small + _GAP if beside else 0)
    columns: dict[int | None, int] = {
        step: left + place * (width + _GAP) for place, step in enumerate(steps)
    }
    if beside:
        columns[None] = _GAP
    total = left + len(steps) * (width + _GAP)
    shown = (
        [_thumbnail(path, small) for path in spread(training, 2 * len(steps))]
        if len(steps) > 1
        else []
    )
    above = _LINE + max(image.height for image in shown) + 3 * _GAP if shown else 0
    font = ImageFont.load_default(11)
    titles = {row: _title(cells, row, total) for row in rows}
    heights = _row_heights(images, rows)
    height = (
        above
        + _LINE
        + _GAP
        + sum(heights[row] + len(titles[row]) * _LINE + _GAP for row in rows)
    )
    sheet = Image.new("RGB", (total, height), "white")
    pen = ImageDraw.Draw(sheet)
    for place, image in enumerate(shown):
        sheet.paste(
            image,
            (left + place // 2 * (width + _GAP) + place % 2 * (small + _GAP), _LINE),
        )
    if shown:
        pen.text((left, 0), "training images", fill="black", font=font)
        pen.line((0, above - _GAP, total, above - _GAP), fill="grey")
    for step, x in columns.items():
        pen.text(
            (x, above + 2),
            "control images" if step is None else f"step {step}",
            fill="black",
            font=font,
        )
    top = above + _LINE + _GAP
    for row in rows:
        for line in titles[row]:
            pen.text((_GAP, top), line, fill="black", font=font)
            top += _LINE
        for step, x in columns.items():
            if (row, step) in images:
                sheet.paste(images[row, step], (x, top))
        top += heights[row] + _GAP
    return sheet


def _row_heights(
    images: dict[tuple[int, int | None], Image.Image], rows: Sequence[int]
) -> dict[int, int]:
    """The height of each row's tallest image; 0 for a row without images."""
    heights = dict.fromkeys(rows, 0)
    for (row, _), image in images.items():
        heights[row] = max(heights[row], image.height)
    return heights


def _stacked(paths: Sequence[Path], longest: int) -> Image.Image:
    """Thumbnails, one below the other."""
    images = [_thumbnail(path, longest) for path in paths]
    stack = Image.new(
        "RGB", (longest, sum(image.height + _GAP for image in images) - _GAP), "white"
    )
    top = 0
    for image in images:
        stack.paste(image, (0, top))
        top += image.height + _GAP
    return stack


def _title(
    cells: dict[tuple[int, int], SampleImage], row: int, width: int
) -> list[str]:
    """The prompt of a row in at most two lines."""
    prompt = ""
    for (index, _), sample in cells.items():
        if index == row and sample.prompt:
            prompt = sample.prompt
            break
    # A font of another script may lack letters, and Pillow's own then fails to draw
    # them.
    plain = prompt.encode("latin-1", "replace").decode("latin-1")
    return wrap(plain, max(10, width // 6))[:2]


def _thumbnail(path: Path, longest: int = CELL) -> Image.Image:
    small = open_image(path, at_least=longest)
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return small
