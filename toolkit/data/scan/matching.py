"""The third stage of a scan: each image gets its caption, control images, layers and
mask, by names or by the table.

`folder` calls `match_files` with the folders of all entries at once: a numbered control
image belongs to an image of its own name first, whichever entry that is of. Caption
files are read here; no image is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from toolkit.data.scan.captions import LIST, caption_of_name, find_captions, half_in
from toolkit.data.scan.directory import DirectoryListing, ImageFile, join
from toolkit.data.scan.folder_tables import named_files
from toolkit.data.scan.found import ScanFindings, shorten
from toolkit.data.scan.partners import LookedFor, Slot, looked_for, partners_of, root_of
from toolkit.data.scan.records import ImageFolder, MatchedImage
from toolkit.data.scan.tables import TableRow


def match_files(
    folders: Sequence[ImageFolder], findings: ScanFindings
) -> list[ImageFolder]:
    """The folders with the caption and the partners of each image. Missing and ambiguous
    files are mistakes."""
    folders = [
        replace(folder, slots=tuple(_slots(folder, findings))) for folder in folders
    ]
    wanted = looked_for(
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
    if dataset.layers_path:
        places = _looked_through(dataset.layers_path, "layers_path", folder, findings)
        yield Slot("layers", "", places, optional=False)
    elif dataset.layers_suffix:
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
    """A folder of control images, layers or masks: first its subfolder with the name of
    the images' subfolder, then the folder itself."""
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
    `looked_for` for all folders.

    With `control_optional` a missing slot is skipped and later ones move up: slot 2
    alone becomes the only control image.
    """
    rows = folder.rows
    if any(row.worse for row in rows.values()):
        # a table of preferences: only images that it names as the better one
        named = zip(folder.listing.images.items(), folder.table_names(), strict=True)
        images = dict(image for image, name in named if name in rows)
        folder = replace(folder, listing=replace(folder.listing, images=images))
    listing = folder.listing
    dataset = folder.dataset
    for stem, files in listing.images.items():
        if len(files) > 1:  # a caption would belong to both
            reason = f"images share the stem {stem!r}: {shorten(files)}. Rename one"
            findings.mistake(join(listing.folder, files[0]), reason)
    matched = [*(_with_rows if folder.table else _with_captions)(folder, findings)]
    if dataset.captions == "one" and findings.read_captions:
        for image in matched:
            if LIST in image.caption:
                count = image.caption.count(LIST) + 1
                reason = f"has a list of {count} captions. Give 'captions: lines', or one of them as text"
                findings.mistake(image.file.path, reason)
    for image in matched:  # of a name of bytes that are no text
        half = half_in(image.caption)
        if half:
            findings.mistake(image.file.path, half)
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
    captions = find_captions(listing, folder.caption_files, findings.mistakes)
    are_names = dataset.captions == "names"
    for (stem, names), caption in zip(listing.images.items(), captions, strict=True):
        if are_names:
            caption = caption_of_name(root_of(stem, dataset.image_suffix) or stem)
        elif not caption and dataset.caption_from_name:
            caption = stem.replace("_", " ")
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
        worse = named_files(folder, row.worse, "as a worse image", findings)
        masks = row.mask and named_files(folder, [row.mask], "as a mask", findings)
        yield MatchedImage(
            stem,
            ImageFile(listing, names[0]),
            names,
            row.caption,
            controls=tuple(controls),
            worse=tuple(worse),
            mask=masks[0] if masks else None,
            weight=row.weight,
            has_controls_in_table=bool(row.references),
        )


def _with_partners(
    image: MatchedImage, slot: Slot, wanted: LookedFor, findings: ScanFindings
) -> MatchedImage:
    """The image with the files of one slot, where its table does not name them."""
    in_table = {"control": image.has_controls_in_table, "mask": bool(image.mask)}
    if in_table.get(slot.key):
        return image
    files = partners_of(image.stem, image.file, slot, wanted, findings.mistakes)
    if slot.key == "control":
        return image._replace(controls=(*image.controls, *files))
    if slot.key == "layers":
        return image._replace(layers=tuple(files))
    return image._replace(mask=next(iter(files), None))
