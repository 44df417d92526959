"""Finds the control images (in slot order) and the mask of an image by its stem."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

from toolkit.config.dataset import DatasetConfig
from toolkit.data.directory import DirectoryListing, ImageFile, join
from toolkit.errors import InputError

_NAMES = {"control": "reference", "mask": "mask"}
"""Prefix of a folder's key -> name of its images in messages."""


class ControlImageFinder:
    """Finds images and appends errors to `mistakes`. Each folder is read once.

    For a target in a subfolder of the dataset, the subfolder of the same name in each control folder is searched first,
    then the control folder itself.
    """

    def __init__(self, mistakes: list[InputError], list_folder: Callable[[str], DirectoryListing]) -> None:
        self._mistakes = mistakes
        self._list_folder = list_folder
        self._listing = cache(self._read)

    def references(
        self, image: ImageFile, stem: str, dataset: DatasetConfig, subfolder: str | None
    ) -> tuple[ImageFile, ...]:
        """The control images of one image.

        With `control_optional` a missing slot is skipped and later ones move up: slot 2 alone becomes the only control
        image.
        """
        slots = [
            self._find(image, stem, folder, subfolder, "control", dataset.control_optional)
            for folder in dataset.control_path
        ]
        return tuple(picture for picture in slots if picture)

    def mask(self, image: ImageFile, stem: str, dataset: DatasetConfig, subfolder: str | None) -> ImageFile | None:
        """The mask of one image; None when it is absent and `mask_optional`."""
        assert dataset.mask_path is not None  # only called for datasets with a mask folder
        return self._find(image, stem, dataset.mask_path, subfolder, "mask", dataset.mask_optional)

    def _find(
        self, image: ImageFile, stem: str, folder: str, subfolder: str | None, key: str, optional: bool
    ) -> ImageFile | None:
        """The image of this stem, or None."""
        places = [join(folder, subfolder), folder] if subfolder else [folder]
        listings = [listing for place in places if (listing := self._listing(place, place == folder, key))]
        found = next((listing for listing in listings if stem in listing.images), None)
        if found:
            first, *more = found.images[stem]
            if not more:
                return ImageFile(found, first)
            names = ", ".join(found.images[stem])
            self._mistake(found.path(first), f"{_NAMES[key]}s share the stem {stem!r}: {names}. Rename one")
        elif listings and not optional:
            searched = " or ".join(repr(listing.folder) for listing in listings)
            self._mistake(image.path, f"has no {_NAMES[key]} {stem!r} in {searched}. Add it, or set {key}_optional")
        return None

    def _read(self, folder: str, required: bool, key: str) -> DirectoryListing | None:
        if not required and not os.path.isdir(os.path.expanduser(folder)):
            return None
        try:
            return self._list_folder(folder)
        except OSError as error:
            self._mistake(folder, f"{key}_path cannot be read as a folder: {error.strerror or error}")
            return None

    def _mistake(self, place: str, message: str) -> None:
        self._mistakes.append(InputError(place, message))
