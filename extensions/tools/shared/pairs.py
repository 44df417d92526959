"""Pairs of images in folders and tables as people have them: the keys of a dataset, and
what has no partner."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.directory import join, list_folder, split_suffix
from toolkit.data.scan.folder import FoundImage, find_images
from toolkit.data.scan.found import count_of, shorten
from toolkit.data.scan.partners import in_yaml, pair_folders, pair_names, with_affix
from toolkit.data.scan.tables import TEXT_TABLES


@dataclass(frozen=True)
class FoundPairs:
    """Images with control images, by the names of files or by a table."""

    section: DatasetConfig
    """The dataset that has them."""

    images: tuple[FoundImage, ...]
    """Those that have a control image."""

    alone: tuple[str, ...]
    """Paths of images without a control image, and of control images without an
    image."""

    @property
    def place(self) -> str:
        """The folder of the images, or the table."""
        return self.section.place

    @property
    def without_caption(self) -> int:
        """How many images have no instruction of their own."""
        return sum(not image.caption for image in self.images)

    def most(self) -> int:
        """The largest number of control images that an image has."""
        return max((len(image.references) for image in self.images), default=0)

    def lines(self) -> list[str]:
        """The lines of a dataset in a job that make its images pairs, beside the one
        that names them."""
        section = self.section
        paths = section.control_path
        suffixes = map(in_yaml, section.control_suffix)
        if paths:
            given = json.dumps(
                paths[0] if len(paths) == 1 else paths, ensure_ascii=False
            )
        else:
            given = ""
        lines = [f"control_path: {given}"] if paths else []
        lines += (
            [f"image_suffix: {in_yaml(section.image_suffix)}"]
            if section.image_suffix
            else []
        )
        lines += (
            [f"control_suffix: [{', '.join(suffixes)}]"]
            if section.control_suffix
            else []
        )
        return [
            *lines,
            *(["control_optional: true"] if section.control_optional else []),
        ]

    def describe(self) -> str:
        """What was found: `12 pairs; before/a.png has no partner`."""
        said = f"{count_of(len(self.images), 'pair')} in {self.place}"
        if self.section.image_suffix:
            named = []
            for affix in (self.section.image_suffix, *self.section.control_suffix):
                named.append(with_affix("X", affix))
            said = (
                f"{said} (the control images of {named[0]} are {', '.join(named[1:])})"
            )
        if not self.alone:
            return said
        names = shorten(path.removeprefix(f".{os.sep}") for path in self.alone)
        if len(self.alone) == 1:
            return f"{said}; {names} has no partner: give it one of the same name, or move it away"
        return f"{said}; {names} have no partner: give each one of the same name, or move them away"


def is_table(path: str) -> bool:
    """Whether a path is that of a text table of captions, such as CSV and JSONL."""
    return split_suffix(path)[1] in TEXT_TABLES and os.path.isfile(
        os.path.expanduser(path)
    )


def found_pairs(
    folder: str, control_path: Sequence[str] = (), control_suffix: Sequence[str] = ()
) -> FoundPairs | None:
    """The pairs of a folder or table; None: its images are single ones. Only names and
    captions are read.

    folder: of the images, or one whose subfolders are `before` and `after`, or whose
    names are pairs; or a table with columns of control images. control_path: folders of
    the control images, in slot order. control_suffix: what their names have at their
    end, in the folder of the images.
    """
    given = {"control_path": (*control_path,), "control_suffix": (*control_suffix,)}
    layouts = (
        [{"folder_path": folder} | given]
        if control_path or control_suffix
        else _layouts(folder)
    )
    for layout in layouts:
        alone = layout.pop("alone", ())
        section = DatasetConfig(**layout)
        images, _, _ = find_images(section)
        paired = tuple(image for image in images if image.references)
        if paired:
            used = {*chain.from_iterable(image.references for image in paired)}
            left = (
                path
                for control in section.control_path
                for path in _images_in(control)
                if path not in used
            )
            bare = (image.path for image in images if not image.references)
            return FoundPairs(section, paired, (*bare, *alone, *left))
    return None


def _layouts(folder: str) -> Iterator[dict[str, Any]]:
    """The keys of datasets that a folder may be meant as, and files that belong to none
    of its pairs."""
    if is_table(folder):
        yield {"captions_file": folder}
    with suppress(OSError):
        top = list_folder(folder, names_only=True)
        inside = () if top.images else top.subfolders
        below = {}
        for name in inside:
            below[name] = list_folder(join(folder, name), names_only=True)
        listings = (top, *below.values())
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
        pair = pair_folders({name: listing.images for name, listing in below.items()})
        if pair:
            yield {
                "folder_path": join(folder, pair[0]),
                "control_path": (join(folder, pair[1]),),
            }
        if any(
            is_table(listing.path(name))
            for listing in listings
            for name in listing.files.values()
        ):
            yield {"folder_path": folder}


def _images_in(folder: str) -> list[str]:
    with suppress(OSError):
        listing = list_folder(folder, names_only=True)
        return [
            listing.path(name) for names in listing.images.values() for name in names
        ]
    return []
