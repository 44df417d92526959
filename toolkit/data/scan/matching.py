"""The third stage of a scan: each image gets its caption, control images, layers and
mask, by names or by the table.

`folder` calls `match_files` with the folders of all entries at once: a numbered control
image belongs to an image of its own name first, whichever entry that is of. Caption
files are read here; no image is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from toolkit.data.scan.captions import LIST, caption_of_name, find_captions, half_in
from toolkit.data.scan.crops import CropError, crop_file, read_crop
from toolkit.data.scan.directory import DirectoryListing, ImageFile, join
from toolkit.data.scan.folder_tables import named_files
from toolkit.data.scan.found import ScanFindings, shorten
from toolkit.data.scan.partners import root_of
from toolkit.data.scan.records import ImageFolder, MatchedImage, Slot
from toolkit.data.scan.tables import TableRow


def match_files(
    folders: Sequence[ImageFolder], findings: ScanFindings
) -> list[ImageFolder]:
    """The folders with the caption and the partners of each image. Missing and ambiguous
    files are mistakes."""
    folders = [
        replace(folder, slots=tuple(_slots(folder, findings))) for folder in folders
    ]
    wanted = _looked_for(
        (slot, folder.listing.images) for folder in folders for slot in folder.slots
    )
    return [_matched(folder, wanted, findings) for folder in folders]


def _slots(folder: ImageFolder, findings: ScanFindings) -> Iterator[Slot]:
    """Where the control images, layers and masks of a folder's images are looked for,
    in slot order."""
    dataset = folder.dataset
    beside = [folder.whole]
    optional = dataset.control_optional
    for path in dataset.control_path:
        places = _looked_through(path, "control_path", folder, findings)
        yield Slot("control", "", places, optional)
    for suffix in dataset.control_suffix:
        yield Slot("control", suffix, beside, optional, dataset.image_suffix)
    if dataset.layers_suffix:
        yield Slot("layers", dataset.layers_suffix, beside, optional=False)
    if dataset.alpha_mask or not (dataset.mask_path or dataset.mask_suffix):
        return
    if dataset.mask_path:
        beside = _looked_through(dataset.mask_path, "mask_path", folder, findings)
    suffix = dataset.mask_suffix
    image_affix = dataset.image_suffix if suffix else ""
    yield Slot("mask", suffix, beside, dataset.mask_optional, image_affix)


def _looked_through(
    path: str, key: str, folder: ImageFolder, findings: ScanFindings
) -> list[DirectoryListing]:
    """A folder of control images or masks: first its subfolder with the name of the
    images' subfolder, then the folder itself."""
    places = [path]
    inside = join(path, folder.subfolder) if folder.subfolder else ""
    if inside and os.path.isdir(os.path.expanduser(inside)):
        places.insert(0, inside)
    listings = [findings.listing(place, key) for place in places]
    return [listing for listing in listings if listing]


def _matched(
    folder: ImageFolder, wanted: LookedFor, findings: ScanFindings
) -> ImageFolder:
    """A folder with the caption and the partners of each image. wanted: the result of
    `_looked_for` for all folders.

    With `control_optional` a missing slot is skipped and later ones move up: slot 2
    alone becomes the only control image.
    """
    listing = folder.listing
    dataset = folder.dataset
    for stem, files in listing.images.items():
        if len(files) > 1:  # a caption would belong to both
            findings.mistake(
                join(listing.folder, files[0]),
                f"images share the stem {stem!r}: {shorten(files)}. Rename one",
            )
    matched = [*(_with_rows if folder.table else _with_captions)(folder, findings)]
    if dataset.captions == "one" and findings.read_captions:
        for image in matched:
            if LIST in image.caption:
                count = image.caption.count(LIST) + 1
                findings.mistake(
                    image.file.path,
                    f"has a list of {count} captions. Give 'captions: lines', or one of them as text",
                )
    for image in matched:  # of a name of bytes that are no text
        half = half_in(image.caption)
        if half:
            findings.mistake(image.file.path, half)
    matched = [_with_focus(image, folder, findings) for image in matched]
    for slot in folder.slots:
        matched = [_with_partners(image, slot, wanted, findings) for image in matched]
    if dataset.alpha_mask:
        matched = [image._replace(mask=image.file) for image in matched]
    return replace(folder, images=tuple(matched))


def _with_captions(
    folder: ImageFolder, findings: ScanFindings
) -> Iterator[MatchedImage]:
    """The images of a folder without a table, with their captions: from files beside
    them, or from their names."""
    listing = folder.listing
    dataset = folder.dataset
    captions = find_captions(
        listing, folder.caption_files, findings.mistakes, dataset.columns.prompt
    )
    are_names = dataset.captions == "names"
    for (stem, names), caption in zip(listing.images.items(), captions, strict=True):
        if are_names:
            caption = caption_of_name(root_of(stem, dataset.image_suffix) or stem)
        yield MatchedImage(stem, ImageFile(listing, names[0]), names, caption)


def _with_rows(folder: ImageFolder, findings: ScanFindings) -> Iterator[MatchedImage]:
    """The images of a folder with a table, with the values of their rows."""
    listing = folder.listing
    rows = folder.rows
    no_row = TableRow("")
    for (stem, names), name in zip(
        listing.images.items(), folder.table_names(), strict=True
    ):
        row = rows.get(name, no_row)
        controls = named_files(folder, row.references, "as a control image", findings)
        masks = row.mask and named_files(folder, [row.mask], "as a mask", findings)
        yield MatchedImage(
            stem,
            ImageFile(listing, names[0]),
            names,
            row.caption,
            controls=tuple(controls),
            mask=masks[0] if masks else None,
            weight=row.weight,
            has_controls_in_table=bool(row.references),
        )


def _with_focus(
    image: MatchedImage, folder: ImageFolder, findings: ScanFindings
) -> MatchedImage:
    """The image with the part of it that a file beside it asks for."""
    path = crop_file(folder.whole, image.stem)
    try:
        return image._replace(focus=read_crop(path)) if path else image
    except CropError as error:
        findings.mistake(path, str(error))
        return image


def _with_partners(
    image: MatchedImage, slot: Slot, wanted: LookedFor, findings: ScanFindings
) -> MatchedImage:
    """The image with the files of one slot, where its table does not name them."""
    in_table = {"control": image.has_controls_in_table, "mask": bool(image.mask)}
    if in_table.get(slot.key):
        return image
    if slot.key == "layers":
        return image._replace(layers=tuple(_layers_of(image, slot, findings)))
    files = _partners_of(image, slot, wanted, findings)
    if slot.key == "control":
        return image._replace(controls=(*image.controls, *files))
    return image._replace(mask=next(iter(files), None))


# ---------------------------------------------------------------- files by their names


LookedFor = Mapping[str, Collection[str]]
"""Folder (the prefix of its listing) -> the stems that are looked for in it."""


def _looked_for(slots: Iterable[tuple[Slot, Iterable[str]]]) -> LookedFor:
    """The stems that are looked for in each folder. slots: each with the stems of its
    images."""
    wanted: dict[str, set[str]] = {}
    for slot, stems in slots:
        names = set(map(slot.wanted, stems))
        for listing in slot.listings:
            wanted.setdefault(listing.prefix, set()).update(names)
    return wanted


def _partners_of(
    image: MatchedImage, slot: Slot, wanted: LookedFor, findings: ScanFindings
) -> list[ImageFile]:
    """The mask, or the control images of an image: the file of its stem, then
    `<stem>_0`, `<stem>_1` and so on, unless another image has that name. All are from
    the first folder that has any."""
    stem = slot.wanted(image.stem)
    for listing in slot.listings:
        numbered = listing.numbered.get(stem, ()) if slot.key == "control" else ()
        stems = [stem] if stem in listing.images else []
        stems += [each for each in numbered if each not in wanted[listing.prefix]]
        for candidate in stems:
            names = listing.images[candidate]
            if len(names) > 1:
                findings.mistake(
                    listing.path(names[0]),
                    f"{slot.what}s share the stem {candidate!r}: {', '.join(names)}. Rename one",
                )
                return []
        if stems:
            return [ImageFile(listing, listing.images[each][0]) for each in stems]
    if slot.listings and not slot.optional:
        searched = " or ".join(repr(listing.folder) for listing in slot.listings)
        findings.mistake(
            image.file.path,
            f"has no {slot.what} {stem!r} in {searched}. Add it, or set {slot.key}_optional",
        )
    return []


def _layers_of(
    image: MatchedImage, slot: Slot, findings: ScanFindings
) -> list[ImageFile]:
    """The layers of an image from back to front, numbered from 0 or 1."""
    [listing] = slot.listings
    numbered = listing.numbered_behind(slot.affix).get(image.stem, ())
    if not numbered:
        findings.mistake(image.file.path, _why_no_layers(image, listing, slot.affix))
        return []
    numbers = [number for number, _ in numbered]
    first = min(numbers[0], 1)
    names = [name for _, layer in numbered for name in listing.images[layer]]
    if numbers != [*range(first, first + len(names))]:  # one file for each number
        findings.mistake(
            image.file.path,
            f"its layers are not numbered one after the other: {', '.join(names)}. Rename them",
        )
        return []
    return [ImageFile(listing, name) for name in names]


def _why_no_layers(image: MatchedImage, listing: DirectoryListing, suffix: str) -> str:
    """The mistake of an image without layers, which may be a layer itself."""
    match = re.fullmatch(rf"(.+){re.escape(suffix)}[0-9]+", image.stem)
    if match:
        return f"is a layer, and there is no image {match[1]!r}. Add that image, or remove the layer"
    return (
        f"has no layer {image.stem + suffix + '0'!r} in {listing.folder!r}. "
        "Add its layers, or remove it"
    )
