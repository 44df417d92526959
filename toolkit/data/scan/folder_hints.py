"""Warnings for folders whose names suggest another use than the job's: pairs, layers,
splits.

`folder` calls each function when the tables of an entry's folders are known. Every
warning gives the keys with which the job would train what the names suggest. Nothing is
left out or changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.directory import join
from toolkit.data.scan.found import ScanFindings, held_out_folders, shorten, split_of
from toolkit.data.scan.partners import (
    LAYER,
    in_yaml,
    pair_folders,
    pair_names,
)
from toolkit.data.scan.records import ImageFolder


def note_pair_names(folder: ImageFolder, findings: ScanFindings) -> None:
    """Notes images of one folder that look like pairs, each of which is trained by
    itself."""
    dataset = folder.dataset
    listing = folder.listing
    if (
        dataset.image_suffix
        or dataset.control_suffix
        or any(row.references for row in folder.rows.values())
    ):
        return
    pairs = pair_names(listing.images)
    if pairs is None:
        return
    alone = [name for stem in pairs.alone for name in listing.images[stem]]
    have = "has" if len(alone) == 1 else "have"
    but = f" ({len(alone):,} {have} no partner: {shorten(alone)})" if alone else ""
    controls = ", ".join(map(in_yaml, pairs.controls))
    given = f"image_suffix: {in_yaml(pairs.image)}, control_suffix: [{controls}]"
    optional = ", control_optional: true" if pairs.optional else ""
    looks = f"its images look like pairs{but}, and each is trained by itself. For pairs give '{given}{optional}'"
    findings.warn(listing.folder, looks)
    findings.unpaired.append((listing.folder, looks))


def note_layer_names(folder: ImageFolder, findings: ScanFindings) -> None:
    """Notes images that are named like layers of others, and trained as images."""
    dataset = folder.dataset
    listing = folder.listing
    if dataset.layers_suffix:
        return
    stems = chain.from_iterable(listing.layers(LAYER).values())
    names = [name for stem in stems for name in listing.images[stem]]
    if names:
        findings.warn(
            listing.folder,
            f"some images are each by its name a layer of another, and trained as an image: {shorten(names)}. "
            f"For a model of layers give 'layers_suffix: {LAYER}'",
        )


def note_splits(
    dataset: DatasetConfig, folders: Sequence[ImageFolder], findings: ScanFindings
) -> None:
    """Notes subfolders that are trained although they are for validation or test by
    their names."""
    path = dataset.folder_path
    inside = {
        folder.subfolder: folder for folder in folders if path and folder.subfolder
    }
    held_out = held_out_folders(inside)
    if not held_out:
        return
    train = next(name for name in inside if split_of(name) == "train")
    alone = f"'folder_path: {join(path, train)}'"
    table = inside[train].table
    if table and not inside[train].caption_files:  # it is above the folder
        alone = f"{alone} and 'captions_file: {table.path}'"
    remedy = f"For {train!r} alone give {alone}"
    what = "is trained on, and its name keeps it from the training"
    for name in held_out:
        findings.held_out.append((join(path, name), f"{what}. {remedy}"))
    shown = f"its subfolder {held_out[0]!r} {what}"
    if len(held_out) > 1:
        what = "are trained on, and their names keep them from the training"
        shown = f"its subfolders {' and '.join(map(repr, held_out))} {what}"
    measures = join(
        path, max(held_out, key=lambda name: split_of(name) == "validation")
    )
    findings.warn(
        path,
        f"{shown}. {remedy} (the validation takes 'validation: {{folder_path: {measures}}}')",
    )


def note_pair_folders(
    dataset: DatasetConfig, folders: Sequence[ImageFolder], findings: ScanFindings
) -> None:
    """Notes two subfolders that are both trained as images, and look like the images and
    the control images of pairs."""
    if not dataset.folder_path or dataset.control_path:
        return
    if any(row.references for folder in folders for row in folder.rows.values()):
        return
    pair = pair_folders(
        {str(folder.subfolder): folder.listing.images for folder in folders}
    )
    if pair:
        images, controls = (join(dataset.folder_path, name) for name in pair)
        looks = (
            f"its subfolders {pair[0]!r} and {pair[1]!r} look like pairs, and each image is trained by itself. "
            f"For pairs give 'folder_path: {images}' and 'control_path: {controls}'"
        )
        findings.warn(dataset.folder_path, looks)
        findings.unpaired.append((dataset.folder_path, looks))
