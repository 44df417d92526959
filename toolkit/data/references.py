"""Finds the reference images of a target: files of the same stem in the control folders, in slot order."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from toolkit.data.listing import Listing, join, list_folder
from toolkit.errors import Mistake


class ReferenceFinder:
    """Looks references up and appends what is wrong to `mistakes`. Each folder is read once."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self._mistakes = mistakes
        self._listing = cache(self._read)

    def find(self, image: Path, stem: str, dataset: Any, subfolder: str | None) -> tuple[Path, ...]:
        """The references of one image.

        A target from a subfolder of the dataset looks in the subfolder of the same name of each
        control folder first, then in the control folder itself. With `control_optional` an absent
        slot is left out and the following ones close up: slot 2 alone becomes the only reference.
        """
        found = []
        for control in dataset.control_path:
            places = [join(control, subfolder), control] if subfolder else [control]
            listings = [listing for place in places if (listing := self._listing(place, place == control))]
            files = next((listing.images[stem] for listing in listings if stem in listing.images), ())
            if len(files) > 1:
                names = ", ".join(path.name for path in files)
                self._mistake(files[0], f"references share the stem {stem!r}: {names}. Rename one")
            elif files:
                found.append(files[0])
            elif listings and not dataset.control_optional:
                searched = " or ".join(repr(listing.folder) for listing in listings)
                self._mistake(image, f"has no reference {stem!r} in {searched}. Add it, or set control_optional")
        return tuple(found)

    def _read(self, folder: str, required: bool) -> Listing | None:
        if not required and not os.path.isdir(os.path.expanduser(folder)):
            return None
        try:
            return list_folder(folder)
        except OSError as error:
            self._mistake(folder, f"control_path cannot be read as a folder: {error.strerror or error}")
            return None

    def _mistake(self, place: Path | str, message: str) -> None:
        self._mistakes.append(Mistake(str(place), message))
