"""Measurements of masks: how much of an image counts, and which masks are probably
read otherwise than they were intended.

A mask weighs the loss by its brightness, and white (255) counts fully. Programs for
segmentation save other values: 0 and 1, or the number of a class with a colour for it
in a palette. Such a mask is read without an error, and almost nothing is learned with
it. `folder_check` measures the masks of each folder and warns of those with a fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from PIL import ImageStat

from toolkit.contracts.data import Mask
from toolkit.data.pixels.images import ImageError, load_alpha, open_image
from toolkit.system.read_ahead import thread_map

LEAST_SHARE, MOST_SHARE = 0.02, 0.98
"""Shares of the area that counts. Below the first and above the second a mask is
probably a mistake."""

LEAST_BRIGHT = 128
"""Least value, of 255, of the brightest pixel of a mask that is intended as one."""

LEAST_COLOUR = 32
"""Least difference between red, green and blue of a colour that is not taken for a
grey."""

MOST_CLASSES = 256
"""Most colours of a map of classes: those of a palette."""

FEW_GREYS = range(3, 65)
"""Numbers of greys in a map of classes. A soft edge has more, a plain mask fewer."""

MOST_MEASURED = 500
"""Masks of a folder that are measured, since each has to be decoded. Of more masks a
selection at equal distances is measured."""


class MaskLook(NamedTuple):
    """Measurements of the pixels of a mask.

    >>> look = MaskLook(share=0.25, brightest=255, is_coloured=False)
    >>> mask_fault(Mask("a.png"), look) is None
    True
    """

    share: float
    """Mean weight of its pixels, 0 to 1: brightness, or its opposite with
    `invert_mask`. It is measured over the whole mask, before its image is cropped, and
    without `mask_min_value`."""

    brightest: int
    """The largest value of the file, 0 to 255, which `invert_mask` does not change."""

    is_coloured: bool
    """Whether it has a few colours that are not grey, as maps of classes have."""

    has_few_greys: bool = False
    """Whether it has three greys or more, but not many, and no white, as maps of
    classes without a palette have."""


class MaskFault(NamedTuple):
    """Something in a mask that is probably not intended.

    >>> look = MaskLook(share=0.0, brightest=0, is_coloured=False)
    >>> mask_fault(Mask("a.png"), look).kind
    'black throughout'
    """

    kind: str
    """The fault in words that follow "the mask is" or "masks are"."""

    detail: str
    """The value of this mask."""

    remedy: str


def look_at_mask(mask: Mask) -> MaskLook:
    """Decodes a mask. Raises ImageError as `open_image`."""
    is_coloured = has_few_greys = False
    if mask.alpha:
        grey = load_alpha(mask.file)
    else:
        colour = open_image(mask.file, background="black")
        classes = cast(
            "list[tuple[int, tuple[int, int, int]]]",
            colour.getcolors(MOST_CLASSES) or [],
        )
        is_coloured = any(max(rgb) - min(rgb) >= LEAST_COLOUR for _, rgb in classes)
        grey = colour.convert("L")
        levels = [level for _, level in grey.getcolors(len(FEW_GREYS) + 2) or []]
        has_few_greys = len(levels) in FEW_GREYS and 255 not in levels
    share = ImageStat.Stat(grey).mean[0] / 255
    if mask.inverted:
        share = 1 - share
    _, brightest = cast("tuple[int, int]", grey.getextrema())  # one pair: one band
    return MaskLook(share, brightest, is_coloured, has_few_greys)


def look_at_masks(masks: Sequence[Mask]) -> list[tuple[Mask, MaskLook]]:
    """The masks that are measured, with their measurements. A mask that cannot be
    decoded is left out: the scan of its file, or the encoder of the images, reports
    it."""
    step = max(1, len(masks) / MOST_MEASURED)
    chosen = [
        masks[int(place * step)] for place in range(min(len(masks), MOST_MEASURED))
    ]

    def look(mask: Mask) -> MaskLook | None:
        try:
            return look_at_mask(mask)
        except ImageError:
            return None

    looks = zip(chosen, thread_map(look, chosen, at_once=4), strict=True)
    return [(mask, mask_look) for mask, mask_look in looks if mask_look]


def mask_fault(mask: Mask, look: MaskLook) -> MaskFault | None:
    """The fault of a mask; None where it has none, and where `mask_min_value: 1` makes it
    void.

    >>> mask_fault(Mask("a.png"), MaskLook(share=0.001, brightest=1, is_coloured=False)).detail
    'brightest value 1 of 255'
    """
    if mask.min_value == 1:
        return None
    if look.brightest == 0 and not mask.alpha:
        return MaskFault(
            "black throughout",
            "brightest value 0",
            "Save white (255, of 16 bits 65535) where the loss counts, or leave the image out",
        )
    if look.brightest < LEAST_BRIGHT and mask.alpha:
        return MaskFault(
            "hardly opaque anywhere, and only what is opaque (255) counts fully",
            f"highest opacity {look.brightest} of 255",
            "Export the image with full opacity where the loss counts",
        )
    if look.brightest < LEAST_BRIGHT:
        return MaskFault(
            "dark throughout, and only white (255) counts fully",
            f"brightest value {look.brightest} of 255",
            "Save white where the loss counts: values of 0 and 1 times 255, of a palette the index and not its colour",
        )
    if look.is_coloured or look.has_few_greys:
        what = "colours" if look.is_coloured else "a few greys without white"
        return MaskFault(
            f"in {what}, each of which counts by its brightness",
            f"{look.share:.1%} of the area counts",
            "If they are classes, save white for those that are to be learned and black for the others",
        )
    if look.share < LEAST_SHARE:
        rest = f"counts {mask.min_value:g}" if mask.min_value else "teaches nothing"
        return MaskFault(
            f"such that almost all of the image {rest}",
            f"{look.share:.1%} of the area counts",
            _exchange(mask),
        )
    if look.share > MOST_SHARE:
        return MaskFault(
            "without effect, as almost all of the image counts",
            f"{look.share:.1%} of the area counts",
            f"{_exchange(mask)}; where the whole image is meant it needs no mask (mask_optional)",
        )
    return None


def _exchange(mask: Mask) -> str:
    """The remedy for a mask that may have black and white exchanged."""
    what, white = "white", "black"
    if mask.alpha:
        what, white = "the opaque area", "transparent"
    if mask.inverted:
        return f"Look whether {white} is what is to be learned, as 'invert_mask: true' says"
    return f"Look whether {what} is what is to be learned: 'invert_mask: true' exchanges the two"
