"""The process of `align`: writes aligned copies of pairs, and a page that shows them.

How an image is shifted against its control image is measured in
`toolkit/data/pixels/alignment.py`. The control image is moved, and borders that it does
not cover are cut off. The originals are never changed. The table of tools
(`extensions/tools/__init__.py`) names the process.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageChops

from extensions.tools.align.config import AlignConfig
from extensions.tools.shared.html_page import embedded, page
from jobs.process import BaseExtensionProcess
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.contracts.data import Sample
from toolkit.data.pixels.alignment import Alignment, measure, onto_image
from toolkit.data.pixels.images import ImageError, open_image, open_mask
from toolkit.data.scan.captions import files_beside
from toolkit.data.scan.folder import scan_datasets
from toolkit.errors import DataErrors, Diagnostic, RunError, UserError
from toolkit.files.log import StatusLine
from toolkit.files.writing import atomic_write_dir, os_error_as_run_error, write_text

logger = logging.getLogger(__name__)

SHOWN_SIDE = 360
MOST_SHOWN = 200
"""Pairs on the page; those that were moved come first."""

ALIGNED = "aligned"
SAME = "lies on it already"
UNMEASURED = "not measurable"


@dataclass
class Pair:
    """The result for an image and one control image.

    Example::

        moved = [pair for pair in pairs if pair.state == ALIGNED]
        drift = max(pair.found.drift for pair in moved)
    """

    image: str
    reference: str
    found: Alignment
    """How the image is aligned with the control image, as `lint` reports it."""

    state: str
    pictures: list[str] = field(default_factory=list)
    """The differences before and after, as addresses for the page."""


class AlignProcess(BaseExtensionProcess):
    """Moves control images onto their images. Only borders are cut off the images, so
    that the pixels that are trained stay the same.

    Example::

        python run.py align after --control-path before --output aligned
    """

    section: AlignConfig

    def run(self) -> None:
        super().run()
        section, output = self.section, Path(self.section.output).expanduser()
        settings = DatasetConfig(
            folder_path=section.folder,
            control_path=section.control_path,
            mask_path=section.mask_path or None,
            mask_optional=bool(section.mask_path),
        )
        mistakes: list[Diagnostic] = []
        samples = scan_datasets(
            [settings], None, forgiven=mistakes, read_captions=False
        ).samples
        if mistakes:
            raise DataErrors(mistakes)
        if not samples:
            raise UserError(f"{section.folder}: holds no images with control images.")
        if output.exists():
            raise RunError(
                f"'{output}' is there already, and nothing is replaced. Give another folder."
            )
        line = StatusLine()
        pairs = list[Pair]()
        with os_error_as_run_error(output), atomic_write_dir(output) as folder:
            for done, sample in enumerate(samples, 1):
                try:
                    pairs += self._write(sample, folder)
                except ImageError as error:
                    raise RunError(str(error)) from error
                line.update(f"{done:,} of {len(samples):,} images")
            write_text(folder / "align.html", align_page(pairs))
        line.finish()
        counts = Counter(pair.state for pair in pairs)
        states = [state for state in (ALIGNED, SAME, UNMEASURED) if counts[state]]
        in_words = ", ".join(f"{counts[state]:,} {state}" for state in states)
        logger.info(
            f"{output}: {len(pairs):,} pairs: {in_words}. See {output / 'align.html'}"
        )

    def _write(self, sample: Sample, output: Path) -> list[Pair]:
        image = open_image(sample.image, sample.background)
        references = [
            open_image(path, sample.background) for path in sample.control_images
        ]
        pairs = []
        box = (0, 0, *image.size)
        put = dict[int, Image.Image]()
        measured = [measure(image, reference) for reference in references]
        for slot, (path, reference) in enumerate(
            zip(sample.control_images, references, strict=True)
        ):
            alignment = measured[slot]
            pair = Pair(
                sample.image,
                path,
                alignment.inverse(),
                self._state(alignment.inverse()),
            )
            if pair.state == ALIGNED:
                put[slot], covered = onto_image(reference, alignment)
                box = (
                    max(box[0], covered[0]),
                    max(box[1], covered[1]),
                    min(box[2], covered[2]),
                    min(box[3], covered[3]),
                )
                pair.pictures = [
                    _difference(image, reference),
                    _difference(image.crop(covered), put[slot].crop(covered)),
                ]
            pairs.append(pair)
        home = Path(self.section.folder).expanduser()
        image_file = Path(sample.image)
        # captions, and what `lint` is to ignore
        for beside in (*files_beside(image_file), image_file.with_suffix(".lint")):
            if beside.is_file():
                _copy(beside, output / "images" / _below(beside, home))
        target = output / "images" / _below(Path(sample.image), home)
        if put:
            _save(_whole(sample.image).crop(box), target)
        else:
            _copy(Path(sample.image), target)
        for slot, control in enumerate(sample.control_images):
            folder = "references" if not slot else f"references_{slot + 1}"
            # Under the name of its image, so that a dataset pairs them.
            name = _below(Path(sample.image), home).with_suffix(Path(control).suffix)
            to = output / folder / name
            if not put or pairs[slot].state == UNMEASURED:
                _copy(Path(control), to)
            else:  # one that is aligned already is cut as the image is
                if slot in put:
                    whole = put[slot]
                else:
                    whole = onto_image(references[slot], measured[slot])[0]
                _save(whole.crop(box), to)
        if sample.mask:
            mask = output / "masks" / _below(Path(sample.image), home)
            to = mask.with_suffix(Path(sample.mask.file).suffix)
            if put:
                _save(open_mask(sample.mask).resize(image.size).crop(box), to)
            else:
                _copy(Path(sample.mask.file), to)
        return pairs

    def _state(self, alignment: Alignment) -> str:
        if not alignment.is_measurable:
            return UNMEASURED
        if alignment.is_off(self.section.most_drift):
            return ALIGNED
        return SAME


def _below(path: Path, home: Path) -> Path:
    return Path(os.path.relpath(path, home))


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _save(image: Image.Image, target: Path) -> None:
    """Saves an image as PNG, which is lossless."""
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target.with_suffix(".png"))


def _whole(path: str) -> Image.Image:
    """An image with its transparency, if it has any."""
    image = open_image(path, channels=4)
    if image.getextrema()[-1] != (255, 255):
        return image
    return image.convert("RGB")


def _difference(image: Image.Image, reference: Image.Image) -> str:
    """The difference of two images, three times as bright, as an address for the
    page."""
    other = reference if reference.size == image.size else reference.resize(image.size)
    grey = ImageChops.difference(image.convert("L"), other.convert("L")).point(
        lambda value: min(255, 3 * value)
    )
    return embedded(grey, SHOWN_SIDE)


def align_page(pairs: list[Pair]) -> str:
    """The page of all pairs: measures, and differences before and after."""
    ordered = sorted(
        pairs,
        key=lambda pair: (
            pair.state != ALIGNED,
            pair.state != UNMEASURED,
            -pair.found.drift,
        ),
    )
    template = Path(__file__).with_name("align.html.j2")
    return page(
        template,
        "Aligned pairs",
        pairs=ordered[:MOST_SHOWN],
        count=len(pairs),
        aligned=ALIGNED,
    )
