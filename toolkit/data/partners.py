"""Control images and masks: which files belong to an image by their names, and which belong to none.

Files that nobody uses are listed with the folder they are in: they were put there to be used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from toolkit.data.directory import DirectoryListing, ImageFile, split_suffix
from toolkit.errors import Diagnostic

CAPTION_SUFFIXES = frozenset({".txt", ".caption", ".cap", ".json"})
"""Suffixes of files that hold the caption of the image beside them."""


PAIRS = (
    ("end", "start"),
    ("after", "before"),
    ("target", "control"),
    ("target", "source"),
    ("output", "input"),
    ("edited", "original"),
)
"""How other programs name image and control image of a pair in one folder: `a_end` and `a_start`, of which `a_start2`
is a second control image. The first are those of fal and Pruna."""

IMAGES = frozenset({*(image for image, _ in PAIRS), "image"})
CONTROLS = frozenset({*(control for _, control in PAIRS), "reference", "conditioning"})
"""Names of the folders of a pair, some with an `s`."""


class PairNames(NamedTuple):
    """The suffixes by which pairs in one folder are recognised."""

    image: str
    controls: tuple[str, ...]
    """In slot order."""

    optional: bool
    """Whether some images lack one of them."""


def pair_names(stems: Collection[str]) -> PairNames | None:
    """The suffixes of a folder of which at least half of the images are pairs by their names; else None."""
    for image, control in PAIRS:
        size = len(image) + 1
        named = (stem[-size:] for stem in stems if len(stem) > size and stem[1 - size :].lower() == image)
        ends = Counter(end for end in named if end[0] in "-_ .")
        if not ends:
            continue
        end = max(ends, key=ends.__getitem__)  # as most of them write it
        roots = {stem.removesuffix(end) for stem in stems if stem.endswith(end)}
        pattern = re.compile(rf"(.+)([-_ .](?i:{control})[0-9]*)")
        matches = [match for match in map(pattern.fullmatch, stems) if match and match[1] in roots]
        counts = Counter(match[2] for match in matches)
        if matches and 2 * (len(matches) + len({match[1] for match in matches})) >= len(stems):
            return PairNames(end, tuple(sorted(counts, key=_number)), min(counts.values()) < len(roots))
    return None


def in_yaml(suffix: str) -> str:
    """A suffix as YAML reads it as text."""
    return f'"{suffix}"' if suffix[0] in " -" else suffix


def pair_folders(folders: Mapping[str, Collection[str]]) -> tuple[str, str] | None:
    """The folders of images and control images among several, by their names and those of at least half of the images;
    else None. folders: each with the stems of its images."""

    def named(names: Collection[str]) -> list[str]:
        words = {folder: re.sub(r"^[0-9]+_", "", folder.lower()) for folder in folders}
        return [folder for folder, word in words.items() if word in names or word.removesuffix("s") in names]

    for image in named(IMAGES):
        for control in named(CONTROLS):
            both = len({*folders[image]} & {*folders[control]})
            if both and 2 * both >= len(folders[image]):
                return image, control
    return None


def _number(suffix: str) -> int:
    """At its end; -1 for none."""
    digits = suffix[len(suffix.rstrip("0123456789")) :]
    return int(digits or -1)


class Slot(NamedTuple):
    """Where the images of one folder have one of their control images, or their mask."""

    key: str
    """`control` or `mask`: prefix of the keys in the config."""

    end: str
    """End of the names, behind the stem of the image."""

    listings: Sequence[DirectoryListing]
    """Looked through in this order."""

    optional: bool
    """Whether an image may have none."""

    image_end: str = ""
    """End of the image's stem, instead of which `end` stands."""

    def wanted(self, stem: str) -> str:
        """The stem that is looked for, of an image's."""
        return stem.removesuffix(self.image_end) + self.end

    @property
    def what(self) -> str:
        """As messages name such a file."""
        return "control image" if self.key == "control" else self.key


LookedFor = Mapping[str, Collection[str]]
"""Folder, as the prefix of its listing -> the stems that are looked for in it."""


def looked_for(slots: Iterable[tuple[Slot, Iterable[str]]]) -> LookedFor:
    """What is looked for where. slots: each with the stems of its images."""
    found: dict[str, set[str]] = {}
    for slot, stems in slots:
        names = set(map(slot.wanted, stems))
        for listing in slot.listings:
            found.setdefault(listing.prefix, set()).update(names)
    return found


def partners_of(
    stem: str, image: ImageFile, slot: Slot, wanted: LookedFor, mistakes: list[Diagnostic]
) -> list[ImageFile]:
    """The mask, or the control images of an image: the file of its stem, then `<stem>_0`, `<stem>_1` and so on that are
    not of another image's name. From the first folder that has any."""
    stem = slot.wanted(stem)
    for listing in slot.listings:
        numbered = listing.numbered.get(stem, ()) if slot.key == "control" else ()
        stems = [stem] if stem in listing.images else []
        stems += [each for each in numbered if each not in wanted[listing.prefix]]
        for each in stems:
            if len(names := listing.images[each]) > 1:
                reason = f"{slot.what}s share the stem {each!r}: {', '.join(names)}. Rename one"
                mistakes.append(Diagnostic((listing.path(names[0]),), reason))
                return []
        if stems:
            return [ImageFile(listing, listing.images[each][0]) for each in stems]
    if slot.listings and not slot.optional:
        searched = " or ".join(repr(listing.folder) for listing in slot.listings)
        reason = f"has no {slot.what} {stem!r} in {searched}. Add it, or set {slot.key}_optional"
        mistakes.append(Diagnostic((image.path,), reason))
    return []


def unpaired(listing: DirectoryListing, used: Collection[str]) -> list[str]:
    """Names of the images of a folder that are not among those that are used."""
    return [name for name in chain.from_iterable(listing.images.values()) if name not in used]


def captions_beside(listing: DirectoryListing) -> list[str]:
    """Names of the files of a folder that are captions of its images."""
    stems = {*listing.images, *chain.from_iterable(listing.images.values())}
    parts = ((name, *split_suffix(written)) for written, name in listing.files.items())
    return [name for name, stem, suffix in parts if suffix in CAPTION_SUFFIXES and stem in stems]


def shared(uses: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Control image or mask -> its images, of those that have several. uses: pairs of an image and such a file."""
    found: dict[str, dict[str, None]] = {}
    for image, partner in uses:
        found.setdefault(partner, {})[image] = None
    return {partner: [*images] for partner, images in found.items() if len(images) > 1}
