"""Finds pairs of images (before and after an edit) in folders and tables as users have
them.

The result is a dataset section that makes the images pairs, the images with a control
image, and the files without a partner. Only names and captions are read: no image is
opened, and nothing is written.

`new` and the view for new jobs (`ui/views/new`) call `found_pairs`; `examples` writes
the keys into the job.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.directory import (
    DirectoryListing,
    join,
    list_folder,
    split_suffix,
)
from toolkit.data.scan.folder import FoundImage, find_images
from toolkit.data.scan.found import count_of, shorten
from toolkit.data.scan.partners import in_yaml, pair_folders, pair_names, with_affix
from toolkit.data.scan.tables import TEXT_TABLES


@dataclass(frozen=True)
class FoundPairs:
    """Images with control images, paired by the names of files or by a table.

    Example::

        pairs = found_pairs("datasets/seasons")
        if pairs:
            print(pairs.describe())  # such as `12 pairs in datasets/seasons/after`
    """

    section: DatasetConfig
    """The dataset that contains them."""

    images: tuple[FoundImage, ...]
    """Images that have a control image."""

    alone: tuple[str, ...]
    """Paths of images without a control image, and of control images without an
    image."""

    @property
    def place(self) -> str:
        """The folder of the images, or the table."""
        return self.section.place

    @property
    def without_caption(self) -> int:
        """How many images have no instruction as their caption."""
        return sum(not image.caption for image in self.images)

    def most(self) -> int:
        """The largest number of control images that an image has."""
        return max((len(image.references) for image in self.images), default=0)

    def lines(self) -> list[str]:
        """The lines of a dataset in a job that make its images pairs, without the line
        that names the folder."""
        section = self.section
        lines = []
        paths = section.control_path
        if paths:
            value = paths[0] if len(paths) == 1 else paths
            lines.append(f"control_path: {json.dumps(value, ensure_ascii=False)}")
        if section.image_suffix:
            lines.append(f"image_suffix: {in_yaml(section.image_suffix)}")
        if section.control_suffix:
            suffixes = ", ".join(map(in_yaml, section.control_suffix))
            lines.append(f"control_suffix: [{suffixes}]")
        if section.control_optional:
            lines.append("control_optional: true")
        return lines

    def describe(self) -> str:
        """The result in words: `12 pairs in after; before/a.png has no partner`."""
        summary = f"{count_of(len(self.images), 'pair')} in {self.place}"
        if self.section.image_suffix:
            affixes = (self.section.image_suffix, *self.section.control_suffix)
            named = [with_affix("X", affix) for affix in affixes]
            summary = f"{summary} (the control images of {named[0]} are {', '.join(named[1:])})"
        if not self.alone:
            return summary
        names = shorten(path.removeprefix(f".{os.sep}") for path in self.alone)
        remedy = "have no partner: give each one of the same name, or move them away"
        if len(self.alone) == 1:
            remedy = "has no partner: give it one of the same name, or move it away"
        return f"{summary}; {names} {remedy}"


def listed(folder: str) -> list[DirectoryListing]:
    """The names in a folder, then those in each of its subfolders, as far as they can be
    read."""
    listings: list[DirectoryListing] = []
    with suppress(OSError):
        listings.append(list_folder(folder, names_only=True))
        for name in listings[0].subfolders:
            listings.append(list_folder(join(folder, name), names_only=True))
    return listings


def is_table(path: str) -> bool:
    """Whether a path names an existing text table of captions, such as CSV or JSONL.
    The suffix decides, and the file is not opened. `~` is expanded."""
    if split_suffix(path)[1] not in TEXT_TABLES:
        return False
    return os.path.isfile(os.path.expanduser(path))


def found_pairs(
    folder: str, control_path: Sequence[str] = (), control_suffix: Sequence[str] = ()
) -> FoundPairs | None:
    """The pairs of a folder or table; None: its images are single ones. Only names and
    captions are read.

    folder: of the images, or one whose subfolders are `before` and `after`, or whose
    names are pairs; or a table with columns of control images. control_path: folders of
    the control images, in slot order. control_suffix: ends of the names of control
    images, in the folder of the images.
    """
    layouts: Iterable[dict[str, Any]]
    if control_path or control_suffix:
        given = {"control_path": control_path, "control_suffix": control_suffix}
        layouts = [{"folder_path": folder} | given]
    else:
        layouts = _layouts(folder)
    for layout in layouts:
        alone = layout.pop("alone", ())
        section = DatasetConfig(**layout)
        images, _, _ = find_images(section)
        paired = tuple(image for image in images if image.references)
        if paired:
            used = {*chain.from_iterable(image.references for image in paired)}
            bare = [image.path for image in images if not image.references]
            left = [
                path
                for control in section.control_path
                for path in _images_in(control)
                if path not in used
            ]
            return FoundPairs(section, paired, (*bare, *alone, *left))
    return None


def _layouts(folder: str) -> Iterator[dict[str, Any]]:
    """The keys of datasets that a folder may be meant as, and files that belong to none
    of its pairs."""
    if is_table(folder):
        yield {"captions_file": folder}
    listings = listed(folder)
    if any(listing.images for listing in listings[:1]):
        listings = listings[:1]
    for listing in listings:
        names = pair_names(listing.images)
        if names:
            yield {
                "folder_path": folder,
                "image_suffix": names.image,
                "control_suffix": names.controls,
                "control_optional": names.optional,
                "alone": [
                    listing.path(name)
                    for stem in names.alone
                    for name in listing.images[stem]
                ],
            }
    below = {os.path.basename(each.folder): each.images for each in listings[1:]}
    pair = pair_folders(below)
    if pair:
        yield {
            "folder_path": join(folder, pair[0]),
            "control_path": (join(folder, pair[1]),),
        }
    if any(map(_has_table, listings)):
        yield {"folder_path": folder}


def _has_table(listing: DirectoryListing) -> bool:
    return any(is_table(listing.path(name)) for name in listing.files.values())


def _images_in(folder: str) -> list[str]:
    with suppress(OSError):
        listing = list_folder(folder, names_only=True)
        return [*map(listing.path, chain.from_iterable(listing.images.values()))]
    return []
