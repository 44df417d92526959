"""The last stage of a scan: a folder becomes the samples of its images.

A sample is an image with its trained captions, its control images, its mask and its
weight; an image that is mirrored becomes several samples. `folder_info` also counts
what the plan and `lint` list of a folder: missing captions, transparency, colours that
are converted. `folder` calls it for each folder. Sizes of training come later, in
`items`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.contracts.data import Sample
from toolkit.data.scan.captions import caption_rules, trained_caption
from toolkit.data.scan.directory import ImageFile
from toolkit.data.scan.found import matched_name, texts_of
from toolkit.data.scan.masks import MaskLook
from toolkit.data.scan.records import ImageFolder
from toolkit.data.scan.repeats import REPEATS


class ConvertedImage(NamedTuple):
    """An image file that is converted to sRGB.

    >>> ConvertedImage("photos/a.jpg", "Display P3").colours
    'Display P3'
    """

    path: str
    colours: str
    """Its colours before the conversion: `Display P3`."""


@dataclass(frozen=True)
class FolderInfo:
    """One folder that holds images.

    Example::

        for info in scan_datasets(section.datasets, section.trigger_word).folders:
            print(info.folder, info.repeats, len(info.samples))
    """

    dataset: int
    """Index of its entry in `datasets`."""

    folder: str
    """As the user wrote it, a subfolder appended with a slash."""

    repeats: int
    samples: tuple[Sample, ...]
    missing_captions: int
    """Images whose caption is missing or empty."""

    note: str = ""
    """A line for the user when `num_repeats` overrides the folder's name."""

    is_reg: bool = False
    """Whether its images are regularisation images."""

    with_alpha: int = 0
    """Images and control images with an alpha channel that is not used as a mask."""

    converted: tuple[ConvertedImage, ...] = ()
    """Images, control images and masks whose colours are not sRGB."""

    mask_looks: tuple[MaskLook, ...] = ()
    """Measurements of its masks, of those that were measured."""

    has_default: bool = False
    """Whether images without a caption train with `default_caption`."""


def folder_info(folder: ImageFolder, trigger_word: str | None) -> FolderInfo:
    """A folder with its samples. trigger_word: of the job."""
    dataset = folder.dataset
    controls = [file for image in folder.images for file in image.controls]
    images = [image.file for image in folder.images if not dataset.alpha_mask]
    with_alpha = {f.path for f in (*controls, *images) if f.facts and f.facts.alpha}
    return FolderInfo(
        dataset=folder.index,
        folder=folder.listing.folder,
        repeats=folder.repeats,
        samples=tuple(_samples(folder, trigger_word)),
        missing_captions=sum(image.caption == "" for image in folder.images),
        note=_unused_repeats(folder),
        is_reg=dataset.is_reg,
        with_alpha=len(with_alpha),
        converted=tuple(_converted(folder)),
        mask_looks=folder.mask_looks,
        has_default=bool(dataset.default_caption),
    )


def _unused_repeats(folder: ImageFolder) -> str:
    """A line where `num_repeats` overrides the folder's name; else empty."""
    named = matched_name(folder.listing.folder, REPEATS)
    if not named or int(named) == folder.repeats:
        return ""
    return (
        f"{folder.listing.folder}: num_repeats: {folder.dataset.num_repeats} is given; "
        f"the {int(named)} in the folder's name is not used"
    )


def _samples(folder: ImageFolder, trigger_word: str | None) -> Iterator[Sample]:
    """Each image of a folder, and where they are asked for its mirrored copy."""
    dataset = folder.dataset
    listing = folder.listing
    repeats = folder.repeats
    background = dataset.canvas
    rules = caption_rules(dataset, trigger_word)
    # Regularisation images show things that the trigger word should not mean.
    add_trigger = not dataset.is_reg
    for image in folder.images:
        texts = texts_of(image.caption, dataset)
        captions = [
            trained_caption(text, dataset, rules, add_trigger) for text in texts
        ]
        sample = Sample(
            image=image.file.path,
            caption=captions[0],
            repeats=repeats,
            size=listing.facts[image.file.name].size,
            folder=listing.folder,
            control_images=_paths(image.controls),
            rules=rules,
            mask=folder.trained_mask(image),
            loss_weight=image.weight,
            background=background,
            dataset=folder.index,
            captions=tuple(captions) if len(captions) > 1 else (),
            layers=_paths(image.layers),
            focus=image.focus,
        )
        yield sample
        if dataset.flip_x:
            yield sample._replace(flip=True)


def _paths(files: Sequence[ImageFile]) -> tuple[str, ...]:
    return tuple([file.path for file in files])


def _converted(folder: ImageFolder) -> Iterator[ConvertedImage]:
    """The files of a folder's images, and of what belongs to them, whose colours are
    not sRGB."""
    files = [image.file for image in folder.images]
    files += [partner for _, partner in folder.partners()]
    for file in files:
        facts = file.facts
        if facts and facts.colours:
            yield ConvertedImage(file.path, facts.colours)
