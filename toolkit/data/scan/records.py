"""The record that the stages of a scan pass on: a folder of images.

`image_folders` finds it, `folder_tables` gives it its table, `matching` its images with
their partners, and `folder_check` leaves out those that cannot be used. A stage makes a
new record and changes none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.contracts.data import MIDDLE, Focus, Mask
from toolkit.data.scan.captions import caption_files
from toolkit.data.scan.directory import (
    DirectoryListing,
    ImageFile,
    real_path,
    split_suffix,
)
from toolkit.data.scan.found import repeats_of
from toolkit.data.scan.masks import MaskLook
from toolkit.data.scan.partners import root_of, with_affix
from toolkit.data.scan.tables import TableRow, image_name


class Slot(NamedTuple):
    """Where one kind of partner of the images of a folder is: a control image, a layer
    or a mask.

    >>> slot = Slot("control", "_start", [], optional=False, image_affix="_end")
    >>> slot.wanted("cat_end")
    'cat_start'
    """

    key: str
    """`control`, `mask` or `layers`: prefix of the keys in the config."""

    affix: str
    """Affix of the names, as `root_of` takes it."""

    listings: Sequence[DirectoryListing]
    """Looked through in this order."""

    optional: bool
    """Whether an image may have none."""

    image_affix: str = ""
    """Affix of the image's stem, which `affix` replaces."""

    def wanted(self, stem: str) -> str:
        """The stem that the partner of an image must have. stem: the stem of the image,
        whose own affix is removed first."""
        root = root_of(stem, self.image_affix)
        return with_affix(stem if root is None else root, self.affix)

    @property
    def what(self) -> str:
        """The name of this kind of file in messages, such as "control image"."""
        return {"control": "control image", "layers": "layer"}.get(self.key, self.key)


class MatchedImage(NamedTuple):
    """An image and its partners by the names of files and by its table. A tuple, since
    there are many.

    >>> listing = DirectoryListing("photos", "photos/", looked_at=0)
    >>> image = MatchedImage("a", ImageFile(listing, "a.jpg"), ("a.jpg",), "a cat")
    >>> image.controls, image.weight
    ((), 1.0)
    """

    stem: str
    file: ImageFile
    names: tuple[str, ...]
    """The files of this stem. More than one is a mistake; the first is `file`."""

    caption: str
    """As its file or row has it; several with LIST between them; '' for none."""

    controls: tuple[ImageFile, ...] = ()
    """Control images in slot order."""

    layers: tuple[ImageFile, ...] = ()
    """From back to front."""

    mask: ImageFile | None = None
    """The image itself where its own opacity is the mask."""

    weight: float = 1.0
    """Factor on the loss that the table gives."""

    focus: Focus = MIDDLE
    """Which part is kept where it is cut."""

    has_controls_in_table: bool = False
    """Whether the table names its control images, so that none are looked for by
    name."""

    @property
    def partners(self) -> tuple[ImageFile, ...]:
        """The files that are trained with it by their names: control images, layers and
        mask."""
        return (*self.controls, *self.layers, *((self.mask,) if self.mask else ()))


@dataclass(frozen=True)
class FolderTable:
    """The table that the captions of a folder come from; false for none.

    >>> FolderTable("photos/metadata.csv", {"a.jpg": TableRow("a cat")}).rows["a.jpg"].caption
    'a cat'
    """

    path: str = ""
    rows: Mapping[str, TableRow] = field(default_factory=dict)
    """By `image_name`. Empty: the table could not be read, which is a mistake."""

    def __bool__(self) -> bool:
        return bool(self.path)


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """One folder of images.

    >>> listing = DirectoryListing("photos/10_anna", "photos/10_anna/", looked_at=0)
    >>> dataset = DatasetConfig(folder_path="photos")
    >>> folder = ImageFolder(dataset, listing, listing, subfolder="10_anna")
    >>> folder.repeats, folder.inside("a.jpg")
    (10, '10_anna/a.jpg')
    """

    dataset: DatasetConfig
    listing: DirectoryListing
    """Its images alone: without control images, layers and masks that are named by a
    suffix."""

    whole: DirectoryListing
    """All files of the folder."""

    subfolder: str | None = None
    """Its name within the folder of the dataset; None: it is that folder."""

    table: FolderTable = FolderTable()
    """None: captions are in files beside the images, or in their names."""

    index: int = 0
    """Index of its entry in `datasets`."""

    slots: tuple[Slot, ...] = ()
    """Where control images, layers and masks are looked for, once they are matched."""

    images: tuple[MatchedImage, ...] = ()
    """The images of `listing` once they are matched, in its order, without those that
    are left out."""

    mask_looks: tuple[MaskLook, ...] = ()
    """Measurements of its masks, of those that were measured."""

    @property
    def rows(self) -> Mapping[str, TableRow]:
        """Image name -> row of the folder's table. Empty without a table."""
        return self.table.rows

    @property
    def repeats(self) -> int:
        """Uses of each image per epoch: `num_repeats`, else the number in the name of
        the folder, else 1."""
        return self.dataset.num_repeats or repeats_of(self.listing.folder) or 1

    @cached_property
    def caption_files(self) -> Sequence[Sequence[str]]:
        """The files of the folder that are read for captions: for each suffix the files
        of the images, or the one table."""
        if self.dataset.captions == "names":
            return []
        if not self.table:
            return caption_files(
                self.listing, self.dataset.caption_ext, self.dataset.image_suffix
            )
        place, name = os.path.split(self.table.path)
        is_inside = real_path(place or ".") == real_path(self.listing.folder)
        return [[name]] if is_inside else []

    @property
    def has_caption_files(self) -> bool:
        """Whether any image of the folder has a caption file."""
        return any(map(any, self.caption_files))

    def inside(self, name: str) -> str:
        """The path of a file relative to the folder of the dataset. name: relative to
        this folder."""
        return image_name(f"{self.subfolder}/{name}" if self.subfolder else name)

    def image_names(self) -> list[str]:
        """The paths of the images relative to the folder of the dataset. Of images with
        the same stem only the first counts."""
        return [self.inside(names[0]) for names in self.listing.images.values()]

    def table_names(self) -> list[str]:
        """The names of the images in a table of captions: with their suffix, or without
        it where the table has them so."""
        rows = self.rows
        return [
            stem if name not in rows and stem in rows else name
            for name, stem in (
                (name, split_suffix(name)[0]) for name in self.image_names()
            )
        ]

    def partners(self) -> Iterator[tuple[MatchedImage, ImageFile]]:
        """Each image with each of its partners: an image of three layers gives three
        pairs."""
        for image in self.images:
            for partner in image.partners:
                yield image, partner

    def trained_mask(self, image: MatchedImage) -> Mask | None:
        """The mask of an image, with the keys of the dataset that say how it is read."""
        dataset = self.dataset
        read_as = (dataset.alpha_mask, dataset.mask_min_value, dataset.invert_mask)
        return Mask(image.mask.path, *read_as) if image.mask else None
