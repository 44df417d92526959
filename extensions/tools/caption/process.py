"""The process of `caption`: captions the images of a folder that have no caption.

The images come from `files`, the captions from `captioner`. Each caption is written
before the next images are processed, so that an interrupted run resumes. Images that
cannot be read are reported at the end. The table of tools
(`extensions/tools/__init__.py`) names the process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from PIL import Image

from extensions.tools.caption.captioner import Captioner
from extensions.tools.caption.config import CaptionConfig
from extensions.tools.caption.files import (
    CaptionedImage,
    Captions,
    Table,
    find_images,
    open_captions,
)
from jobs.process import BaseExtensionProcess
from toolkit.data.pixels.images import ImageError, open_image
from toolkit.data.scan.captions import add_prefix, inject_trigger
from toolkit.errors import RunError
from toolkit.files.log import StatusLine

logger = logging.getLogger(__name__)


class CaptionProcess(BaseExtensionProcess):
    """Writes each caption to the disk before the next images are processed.

    Example::

        python run.py caption datasets/photos --format tsv
    """

    section: CaptionConfig

    def run(self) -> None:
        super().run()
        section = self.section
        images, refused = find_images(section)
        total = len(images) + len(refused)
        captions = open_captions(section)
        todo = captions.missing(images)
        had = len(images) - len(todo)
        todo = todo[: section.limit or None]
        if had:
            rest = "" if todo else ": nothing to do"
            logger.info(f"{had} of {len(images)} images have captions{rest}")
        if todo:
            refused += self._caption(todo, captions)
        if section.overwrite and isinstance(captions, Table):
            captions.finish_overwriting(images)
        captions.finish()
        if refused:
            reasons = "; ".join(map(str, refused))
            raise RunError(
                f"{len(refused)} of {total} images have no new caption: {reasons}."
            )

    def _caption(
        self, todo: list[CaptionedImage], captions: Captions
    ) -> list[ImageError]:
        """Writes the captions of images, and returns the images that could not be
        captioned."""
        section = self.section
        status = StatusLine()
        refused: list[ImageError] = []
        captioner = Captioner(section)
        written = cut = 0
        for start in range(0, len(todo), section.batch_size):
            batch = dict(_readable(todo[start : start + section.batch_size], refused))
            if not batch:
                continue
            names = [image.name for image in batch]
            answers = captioner.captions(list(batch.values()), names)
            for image, answer in zip(batch, answers, strict=True):
                if not answer.text:
                    why = "the model returned an empty caption. Try another prompt"
                    refused.append(ImageError(image.path, why))
                    continue
                text = add_prefix(answer.text, section.prefix)
                text = inject_trigger(text, section.trigger_word)
                if captions.write(image, text):
                    written += 1
                    cut += answer.cut
            status.update(f"captions {written + len(refused)}/{len(todo)}")
        status.finish(
            f"{written} captions written to {section.table() or section.folder}"
        )
        if cut:
            remedy = "Raise it (--max-tokens), or ask for less (--prompt)."
            logger.info(
                f"{cut} of them are cut at max_tokens ({section.max_tokens}). {remedy}"
            )
        return refused


def _readable(
    batch: list[CaptionedImage], refused: list[ImageError]
) -> Iterator[tuple[CaptionedImage, list[Image.Image]]]:
    """Each image with the pictures that the model is shown. Images that cannot be read
    are added to `refused`."""
    for image in batch:
        try:
            files = filter(None, (image.reference, image.path))
            yield image, list(map(open_image, files))
        except ImageError as error:
            refused.append(error)
