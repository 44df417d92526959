"""The third stage of a scan: each image gets its caption, control images, layers and
mask, by names or by the table.

`folder` calls `match_files` with the folders of all entries at once: a numbered control
image belongs to an image of its own name first, whichever entry that is of. Caption
files are read here; no image is opened.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from toolkit.data.scan.captions import LIST, caption_of_name, find_captions
from toolkit.data.scan.directory import DirectoryListing, ImageFile, join
from toolkit.data.scan.folder_tables import named_files
from toolkit.data.scan.found import ScanFindings, shorten
from toolkit.data.scan.partners import LookedFor, Slot, looked_for, partners_of, root_of
from toolkit.data.scan.records import ImageFolder, MatchedFolder, MatchedImage
from toolkit.data.scan.tables import TableRow


def match_files(
    folders: Sequence[ImageFolder], findings: ScanFindings
) -> list[MatchedFolder]:
    """The folders with the caption and the partners of each image. Missing and ambiguous
    files are mistakes."""
    with_slots = [(folder, _slots(folder, findings)) for folder in folders]
    uses = []
    for folder, slots in with_slots:
        for slot in slots:
            uses.append((slot, folder.listing.images))
    wanted = looked_for(uses)
    return [_matched(folder, slots, wanted, findings) for folder, slots in with_slots]


def _slots(folder: ImageFolder, findings: ScanFindings) -> list[Slot]:
    """Where the control images, layers and masks of a folder's images are looked for,
    in slot order."""
    dataset = folder.dataset
    beside = [folder.whole]
    slots = []
    for path in dataset.control_path:
        listings = _looked_through(path, "control_path", folder, findings)
        slots.append(Slot("control", "", listings, dataset.control_optional))
    for suffix in dataset.control_suffix:
        slots.append(
            Slot(
                "control",
                suffix,
                beside,
                dataset.control_optional,
                dataset.image_suffix,
            )
        )
    if dataset.layers_path:
        listings = _looked_through(dataset.layers_path, "layers_path", folder, findings)
        slots.append(Slot("layers", "", listings, False))
    elif dataset.layers_suffix:
        slots.append(Slot("layers", dataset.layers_suffix, beside, False))
    if dataset.alpha_mask:
        return slots
    if dataset.mask_path:
        beside = _looked_through(dataset.mask_path, "mask_path", folder, findings)
    if dataset.mask_path or dataset.mask_suffix:
        image_affix = dataset.image_suffix if dataset.mask_suffix else ""
        slots.append(
            Slot(
                "mask", dataset.mask_suffix, beside, dataset.mask_optional, image_affix
            )
        )
    return slots


def _looked_through(
    path: str, key: str, folder: ImageFolder, findings: ScanFindings
) -> list[DirectoryListing]:
    """A folder of control images, layers or masks: first its subfolder with the name of
    the images' subfolder, then the folder itself."""
    places = [path]
    if folder.subfolder:
        inside = join(path, folder.subfolder)
        if os.path.isdir(os.path.expanduser(inside)):
            places.insert(0, inside)
    listings = [findings.listing(place, key) for place in places]
    return [listing for listing in listings if listing]


def _matched(
    folder: ImageFolder,
    slots: Sequence[Slot],
    wanted: LookedFor,
    findings: ScanFindings,
) -> MatchedFolder:
    """A folder with the caption and the partners of each image. wanted: the result of
    `looked_for` for all folders.

    With `control_optional` a missing slot is skipped and later ones move up: slot 2
    alone becomes the only control image.
    """
    folder = _with_chosen_images(folder)
    _refuse_shared_stems(folder, findings)
    images = _images(folder, findings)
    if folder.dataset.captions == "one" and findings.read_captions:
        _refuse_lists(images, findings)
    for slot in slots:
        images = [_with_partners(image, slot, wanted, findings) for image in images]
    if folder.dataset.alpha_mask:
        for index, image in enumerate(images):
            images[index] = image._replace(mask=image.file, has_mask_in_table=False)
    return MatchedFolder(
        folder, tuple(slots), images=tuple(images), all_images=tuple(images)
    )


def _with_chosen_images(folder: ImageFolder) -> ImageFolder:
    """The folder without images that its table does not name as the better one, if it
    is a table of preferences."""
    if not any(row.worse for row in folder.rows.values()):
        return folder
    named = zip(folder.listing.images.items(), folder.table_names(), strict=True)
    images = dict(image for image, name in named if name in folder.rows)
    return replace(folder, listing=replace(folder.listing, images=images))


def _refuse_shared_stems(folder: ImageFolder, findings: ScanFindings) -> None:
    """Images whose names differ only in the suffix are a mistake: a caption would
    belong to both."""
    for stem, files in folder.listing.images.items():
        if len(files) > 1:
            reason = f"images share the stem {stem!r}: {shorten(files)}. Rename one"
            findings.mistake(join(folder.listing.folder, files[0]), reason)


def _images(folder: ImageFolder, findings: ScanFindings) -> list[MatchedImage]:
    """The images of a folder with their captions and the other values of their
    rows."""
    if folder.table is None:
        return _with_captions(folder, findings)
    return _with_rows(folder, findings)


def _refuse_lists(images: Sequence[MatchedImage], findings: ScanFindings) -> None:
    """Several captions of an image are a mistake where the dataset has one."""
    for image in images:
        if LIST in image.caption:
            count = image.caption.count(LIST) + 1
            reason = f"has a list of {count} captions. Give 'captions: lines', or one of them as text"
            findings.mistake(image.file.path, reason)


# ---------------------------------------------------------------- captions


def _with_captions(folder: ImageFolder, findings: ScanFindings) -> list[MatchedImage]:
    """The images of a folder without a table, with their captions: from files beside
    them, or from their names."""
    listing = folder.listing
    dataset = folder.dataset
    captions = find_captions(listing, folder.caption_files, findings.mistakes)
    are_names = dataset.captions == "names"
    images = []
    for (stem, names), caption in zip(listing.images.items(), captions, strict=True):
        if are_names:
            caption = caption_of_name(root_of(stem, dataset.image_suffix) or stem)
        elif not caption and dataset.caption_from_name:
            caption = stem.replace("_", " ")
        images.append(MatchedImage(stem, ImageFile(listing, names[0]), names, caption))
    return images


def _with_rows(folder: ImageFolder, findings: ScanFindings) -> list[MatchedImage]:
    """The images of a folder with a table, with the values of their rows."""
    listing = folder.listing
    no_row = TableRow("")
    images = []
    for (stem, names), name in zip(
        listing.images.items(), folder.table_names(), strict=True
    ):
        row = folder.rows.get(name, no_row)
        controls = named_files(folder, row.references, "as a control image", findings)
        worse = named_files(folder, row.worse, "as a worse image", findings)
        masks = named_files(
            folder, [row.mask] if row.mask else [], "as a mask", findings
        )
        image = MatchedImage(
            stem,
            ImageFile(listing, names[0]),
            names,
            row.caption,
            controls=tuple(controls),
            worse=tuple(worse),
            mask=masks[0] if masks else None,
            weight=row.weight,
            has_controls_in_table=bool(row.references),
            has_mask_in_table=bool(masks),
        )
        images.append(image)
    return images


# ---------------------------------------------------------------- control images,
# layers and masks by name


def _with_partners(
    image: MatchedImage, slot: Slot, wanted: LookedFor, findings: ScanFindings
) -> MatchedImage:
    """The image with the files of one slot, where its table does not name them."""
    if slot.key == "control" and image.has_controls_in_table:
        return image
    if slot.key == "mask" and image.has_mask_in_table:
        return image
    files = partners_of(image.stem, image.file, slot, wanted, findings.mistakes)
    if slot.key == "control":
        return image._replace(controls=(*image.controls, *files))
    if slot.key == "layers":
        return image._replace(layers=tuple(files))
    return image._replace(mask=files[0] if files else None)
