"""Draws the pictures of `type: mascots` into a folder.

Each picture has a caption next to it, or two pictures and an instruction where
edits are drawn. A job with `type: mascots` runs it; the section is in `config`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from jobs.process import BaseExtensionProcess
from toolkit.errors import UserError
from toolkit.files.log import StatusLine
from toolkit.files.now import Now
from toolkit.files.writing import atomic_write_dir, settle, write_json
from toolkit.system.seeding import key

from .config import RECIPE, MascotsConfig
from .drawing import draw, scribble
from .mascot import Casting, Lots, Pair, random_mascot, scene_of
from .words import caption_in, edit, edit_of_two

logger = logging.getLogger(__name__)

DRAWING = 3
"""Version of the drawing. It is increased when the same settings give other pictures
than before."""


class MascotsProcess(BaseExtensionProcess):
    """Draws a folder of pictures. Complete pictures of the same settings are not
    changed, so a job can be run again.

    Example::

        process:
          - type: mascots
            path: datasets/mascots
    """

    section: MascotsConfig

    def run(self) -> None:
        super().run()
        section, folder = self.section, self.section.folder()
        settle(folder)
        recipe = {**section.recipe(), "drawing": DRAWING, "licence": "CC0-1.0"}
        if not section.overwrite and _recorded(folder) == recipe:
            logger.info(f"mascots: {section.path} is there already")
            return
        if folder.is_dir() and any(folder.iterdir()) and not section.overwrite:
            raise UserError(
                f"process[{self.process_id}].path: {section.path} holds pictures of other settings. "
                "Give another folder, or set overwrite: true."
            )
        with atomic_write_dir(folder) as new:
            self._draw_all(new)
            write_json(new / RECIPE, recipe)
            os.sync()  # one for all: file by file takes longer than drawing
        logger.info(
            f"mascots: generated {section.total():,} samples in {section.path} (seed {section.seed})"
        )

    def _draw_all(self, folder: Path) -> None:
        section = self.section
        edit_of_one = partial(edit, changes=section.changes)
        hat_or_both = partial(edit_of_two, hat_rate=section.hat_rate)
        sets: tuple[tuple[str, int, Callable[[Path, int], None]], ...] = (
            ("pictures", section.count, self._picture),
            (
                "edits",
                section.edits,
                lambda place, index: self._pair(place, index, edit_of_one),
            ),
            (
                "edits_of_two",
                section.edits_of_two,
                lambda place, index: self._pair(place, index, hat_or_both),
            ),
            ("scribbles", section.scribbles, self._scribble),
        )
        status, done = StatusLine(), 0
        for name, count, add in sets:
            for index in range(count):
                add(folder / name, index)
                done += 1
                status.update(Now("drawing", done, section.total(), "pictures").line())
        status.finish()

    def _picture(self, folder: Path, index: int) -> None:
        lots = self._lots("picture", index)
        casting = self.section.casting()
        mascot = random_mascot(lots, casting)
        if casting.fixed:
            mascot = scene_of(mascot, lots, casting)
        picture = self._cropped(
            draw((mascot,), *self._size(index)), f"crop of picture {index}"
        )
        _write(folder, index, picture, caption_in(self.section.captions, mascot, lots))

    def _pair(
        self, folder: Path, index: int, make: Callable[[int, int, Casting], Pair]
    ) -> None:
        pair = make(self.section.seed, index, self.section.casting())
        _write(
            folder / "after",
            index,
            draw(pair.after, *self._size(index)),
            self.section.instruction or pair.instruction,
        )
        for number, before in enumerate(pair.before, 1):
            _write(
                folder / f"picture_{number}", index, draw((before,), *self._size(index))
            )

    def _scribble(self, folder: Path, index: int) -> None:
        picture = scribble(self._lots("scribble", index), *self._size(index))
        _write(folder, index, self._cropped(picture, f"crop of scribble {index}"))

    def _cropped(self, picture: Image.Image, purpose: str) -> Image.Image:
        """A square of `crop` pixels from a random place, or the whole picture."""
        if not (side := self.section.crop):
            return picture
        left, top = (
            key(self.section.seed, f"mascots {purpose} {axis}") % (length - side + 1)
            for axis, length in zip("xy", picture.size, strict=True)
        )
        return picture.crop((left, top, left + side, top + side))

    def _size(self, index: int) -> tuple[int, int]:
        return self._lots("size", index).choose("size", self.section.size)

    def _lots(self, kind: str, index: int) -> Lots:
        return Lots(self.section.seed, kind, index)


def _write(folder: Path, index: int, picture: Image.Image, caption: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{index:06}.png"
    picture.save(file)
    if caption:
        file.with_suffix(".txt").write_text(
            caption + "\n", encoding="utf-8", newline="\n"
        )


def _recorded(folder: Path) -> object:
    """The recipe of the pictures in the folder; None where there is none."""
    file = folder / RECIPE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
