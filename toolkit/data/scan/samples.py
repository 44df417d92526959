"""The last stage of a scan: a checked folder becomes the samples of its images.

A sample is an image with its trained captions, its control images, its mask and its
weight; an image that is mirrored becomes several samples. `folder_info` also counts
what the plan and `lint` list of a folder: missing captions, transparency, colours that
are converted. `folder` calls it for each folder. Sizes of training come later, in
`items`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.contracts.data import CaptionRules, Flip, Sample
from toolkit.data.scan.captions import caption_rules, trained_caption
from toolkit.data.scan.directory import ImageFile
from toolkit.data.scan.found import matched_name, texts_of
from toolkit.data.scan.masks import MaskLook
from toolkit.data.scan.records import CheckedFolder, MatchedFolder, MatchedImage
from toolkit.data.scan.repeats import REPEATS


class ConvertedImage(NamedTuple):
    """An image file that is converted to sRGB.

    >>> ConvertedImage("photos/a.jpg", "Display P3", is_hdr=False).colours
    'Display P3'
    """

    path: str
    colours: str
    """Its colours before the conversion: `Display P3`."""

    is_hdr: bool
    """Whether light above the white of a page is clipped."""


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
    """Images, control images, worse ones and masks whose colours are not sRGB."""

    mask_looks: tuple[MaskLook, ...] = ()
    """Measurements of its masks, of those that were measured."""

    has_default: bool = False
    """Whether images without a caption train with `default_caption`."""


def folder_info(
    checked: CheckedFolder, trigger_word: str | None, reg_weight: float
) -> FolderInfo:
    """A folder with its samples. trigger_word: of the job. reg_weight: factor on the
    loss of regularisation images."""
    folder = checked.matched
    dataset = folder.dataset
    return FolderInfo(
        dataset=folder.index,
        folder=folder.listing.folder,
        repeats=folder.folder.repeats,
        samples=tuple(_samples(folder, trigger_word, reg_weight)),
        missing_captions=sum(image.caption == "" for image in folder.images),
        note=_unused_repeats(folder),
        is_reg=dataset.is_reg,
        with_alpha=_count_with_alpha(folder),
        converted=tuple(_converted(folder)),
        mask_looks=checked.mask_looks,
        has_default=bool(dataset.default_caption),
    )


def _unused_repeats(folder: MatchedFolder) -> str:
    """A line where `num_repeats` overrides the folder's name; else empty."""
    dataset = folder.dataset
    listing = folder.listing
    if dataset.repeats_from_names is False:
        return ""
    named = matched_name(listing.folder, REPEATS)
    if not named or int(named) == folder.folder.repeats:
        return ""
    unused = f"the {int(named)} in the folder's name is not used"
    return f"{listing.folder}: num_repeats: {dataset.num_repeats} is given; {unused}"


def _samples(
    folder: MatchedFolder, trigger_word: str | None, reg_weight: float
) -> Iterator[Sample]:
    """Each image of a folder, once for each way in which it is mirrored."""
    dataset = folder.dataset
    listing = folder.listing
    index = folder.index
    repeats = folder.folder.repeats
    background = dataset.canvas
    rules = caption_rules(dataset, trigger_word)
    weight = dataset.loss_multiplier
    if dataset.is_reg:
        weight *= reg_weight
    flips = []
    for y in sorted({False, dataset.flip_y}):
        for x in sorted({False, dataset.flip_x}):
            flips.append(Flip(x, y))
    mirrored = flips[1:]  # the first is not mirrored
    for image in folder.images:
        captions = _trained_captions(image, dataset, rules)
        sample = Sample(
            image=image.file.path,
            caption=captions[0],
            repeats=repeats,
            size=listing.facts[image.file.name].size,
            folder=listing.folder,
            control_images=_paths(image.controls),
            rules=rules,
            mask=folder.trained_mask(image.mask) if image.mask else None,
            loss_weight=weight * image.weight,
            background=background,
            dataset=index,
            captions=captions if len(captions) > 1 else (),
            worse=_paths(image.worse),
            own_weight=image.weight,
            layers=_paths(image.layers),
        )
        yield sample
        for flip in mirrored:
            yield sample._replace(flip=flip)


def _trained_captions(
    image: MatchedImage, dataset: DatasetConfig, rules: CaptionRules
) -> tuple[str, ...]:
    """The captions of an image as they are trained, with prefix and trigger word."""
    # Regularisation images show things that the trigger word should not mean.
    add_trigger = not dataset.is_reg
    texts = texts_of(image.caption, dataset)
    return tuple([trained_caption(text, dataset, rules, add_trigger) for text in texts])


def _paths(files: Sequence[ImageFile]) -> tuple[str, ...]:
    return tuple([file.path for file in files])


def _count_with_alpha(folder: MatchedFolder) -> int:
    """Images and control images with an alpha channel that is not used as a mask, each
    once."""
    files = [control for _, control in folder.controls()]
    if not folder.dataset.alpha_mask:
        files += [image.file for image in folder.images]
    facts = {file.path: file.facts for file in files}
    return sum(known is not None and known.alpha for known in facts.values())


def _converted(folder: MatchedFolder) -> Iterator[ConvertedImage]:
    """The files of a folder's images, and of what belongs to them, whose colours are
    not sRGB."""
    images = (image.file for image in folder.images)
    partners = (partner for _, partner in folder.partners())
    worse = (worse for _, worse in folder.worse())
    for file in chain(images, partners, worse):
        facts = file.facts
        if facts and facts.colours:
            yield ConvertedImage(file.path, facts.colours, facts.is_hdr)
