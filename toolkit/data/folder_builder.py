"""Builds the samples of one folder of images during a scan."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat

from toolkit.config.dataset import DatasetConfig
from toolkit.data.caption_augment import inject_trigger
from toolkit.data.caption_files import caption_files, find_captions
from toolkit.data.control_images import ControlImageFinder
from toolkit.data.directory import DirectoryListing, ImageFile, join
from toolkit.data.unused_files import shorten
from toolkit.errors import InputError
from toolkit.interfaces import NO_FLIP, CaptionRules, Flip, Mask, Sample, Size

_REPEATS = re.compile(r"([0-9]+)_")


@dataclass(frozen=True)
class FolderInfo:
    """One folder that holds images."""

    dataset: int
    """Index of its entry in `datasets`."""

    folder: str
    """As the user wrote it, a subfolder appended with a slash."""

    repeats: int
    samples: tuple[Sample, ...]
    missing_captions: int
    """Images whose caption file is missing or empty."""

    note: str = ""
    """A line for the user when `num_repeats` overrides the folder's name."""

    is_reg: bool = False
    """Whether its images are regularisation images."""


class FolderBuilder:
    """Captions, control images and masks of one folder, by the stems of the images."""

    def __init__(self, index: int, dataset: DatasetConfig, listing: DirectoryListing, subfolder: str | None) -> None:
        self.index, self.dataset, self.listing, self.subfolder = index, dataset, listing, subfolder
        # abspath, not resolve: "." gets its name, a symlink keeps the one the user gave it.
        match = _REPEATS.match(os.path.basename(os.path.abspath(listing.folder)))
        self.named_repeats = int(match[1]) if match else None
        self.caption_files = caption_files(listing, dataset.caption_ext)
        self.captions: list[str] = []
        """Of each image, in their order; '' for none."""
        self.controls: dict[str, tuple[ImageFile, ...]] = {}
        self.masks: dict[str, ImageFile] = {}
        """Mask images; the image itself where its own opacity is the mask."""

    def match_files(self, partners: ControlImageFinder, mistakes: list[InputError]) -> None:
        """Finds caption, control images and mask of every image."""
        listing, dataset = self.listing, self.dataset
        for stem, files in listing.images.items():
            if len(files) > 1:
                reason = f"images share the stem {stem!r}: {shorten(files)}. Rename one"
                mistakes.append(InputError(join(listing.folder, files[0]), reason))
        self.captions = find_captions(listing, self.caption_files, mistakes)
        if dataset.control_path:
            self.controls = {
                stem: partners.references(image, stem, dataset, self.subfolder) for stem, image in self._images()
            }
        if dataset.alpha_mask:
            self.masks = dict(self._images())
        elif dataset.mask_path:
            masks = {stem: partners.mask(image, stem, dataset, self.subfolder) for stem, image in self._images()}
            self.masks = {stem: mask for stem, mask in masks.items() if mask}

    def _images(self) -> Iterator[tuple[str, ImageFile]]:
        return ((stem, ImageFile(self.listing, files[0])) for stem, files in self.listing.images.items())

    def pictures(self) -> Iterator[tuple[DirectoryListing, Iterable[str]]]:
        """All images that are used: their folders and names."""
        yield self.listing, chain.from_iterable(self.listing.images.values())
        for listing, name in chain(*self.controls.values(), self.masks.values()):
            yield listing, (name,)

    def check_masks(self) -> Iterator[str]:
        """Notes images that have no transparency to be their mask, and masks of another shape than their image.

        From here on the facts of every image are known, and one file has each stem.
        """
        opaque, stretched = [], []
        for stem, mask in list(self.masks.items()):
            (name,) = self.listing.images[stem]
            assert mask.facts is not None  # known from here on, see above
            if self.dataset.alpha_mask and not mask.facts.alpha:
                del self.masks[stem]
                opaque.append(name)
            elif not _same_aspect(mask.facts.size, self.listing.facts[name].size):
                stretched.append(name)
        folder = self.listing.folder
        if opaque:
            yield f"{folder}: alpha_mask: no transparency, so the whole image counts: {shorten(opaque)}"
        if stretched:
            yield f"{folder}: the mask has another shape and is stretched over: {shorten(stretched)}"

    def build_samples(self, trigger_word: str | None, reg_weight: float) -> FolderInfo:
        """The samples."""
        dataset, listing = self.dataset, self.listing
        repeats = dataset.num_repeats or self.named_repeats or 1
        trigger = dataset.trigger_word or trigger_word or ""
        rules = CaptionRules(dataset.caption_dropout_rate, dataset.shuffle_tokens, dataset.keep_tokens, trigger)
        add_trigger = not dataset.is_reg  # they show what the trigger word is not to mean
        default = dataset.default_caption or ""
        weight = dataset.loss_multiplier * (reg_weight if dataset.is_reg else 1.0)
        controls = {stem: tuple(picture.path for picture in found) for stem, found in self.controls.items()}
        masks = {
            stem: Mask(mask.path, dataset.alpha_mask, dataset.mask_min_value, dataset.invert_mask)
            for stem, mask in self.masks.items()
        }
        names = [name for (name,) in listing.images.values()]
        columns = (
            map(listing.prefix.__add__, names),
            [inject_trigger(caption or default, trigger, add_trigger).strip() for caption in self.captions],
            repeat(repeats),
            [listing.facts[name].size for name in names],
            repeat(listing.folder),
            map(controls.get, listing.images, repeat(())),
            repeat(rules),
            map(masks.get, listing.images),
            repeat(weight),
            repeat(dataset.background),
            repeat(NO_FLIP),
            repeat(self.index),
        )
        samples = tuple(map(Sample._make, zip(*columns, strict=False)))  # one by one they take half as long again
        flips = [Flip(x, y) for y in sorted({False, dataset.flip_y}) for x in sorted({False, dataset.flip_x})]
        if flips != [NO_FLIP]:
            samples = tuple(sample._replace(flip=flip) for sample in samples for flip in flips)
        missing = self.captions.count("")
        return FolderInfo(self.index, listing.folder, repeats, samples, missing, self._note(), dataset.is_reg)

    def _note(self) -> str:
        given = self.dataset.num_repeats
        if not given or self.named_repeats in (None, given):
            return ""
        unused = f"the {self.named_repeats} in the folder's name is not used"
        return f"{self.listing.folder}: num_repeats: {given} is given; {unused}"


def _same_aspect(mask: Size, image: Size) -> bool:
    """Whether the aspect ratios differ by no more than rounding to pixels explains, 2 %."""
    return abs(mask.width * image.height / (mask.height * image.width) - 1) <= 0.02
