"""How far samples are shifted against the images that they edit, and how much they
change outside a mask. Imports no torch.

Shape suffixes: H rows, W columns, C colours.

`sampling.Sampler` measures the drift of each sample, and `callbacks.sample` logs it.
Tools compare the files of a run by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy
from PIL import Image, ImageOps

from toolkit.contracts.data import Mask
from toolkit.data.pixels.alignment import Alignment, covering, measure, same_shape
from toolkit.data.pixels.images import open_image, open_mask, over_white

PREFIX = "drift/"

BLACK = 16
"""In a mask, 0 to 255: pixels darker than this are outside."""


class Drift(NamedTuple):
    """How a sample lies on its reference.

    >>> shifted = Alignment(0.0, 0.0, (3.0, 4.0), peak=0.9, error=0.1, size=(512, 512))
    >>> Drift(shifted).numbers()["shift_px"]
    5.0
    """

    found: Alignment
    """Alignment of the sample on the reference: a positive shift is one to the right
    and down, a positive zoom is larger."""

    outside_mask: float | None = None
    """Mean absolute change of a colour value outside the mask, 0 to 255; None without a
    mask."""

    def numbers(self) -> dict[str, float]:
        """By name: `px`, by which the corner that is farthest off is off; `shift_px`;
        `zoom_percent`; `rotation_degrees`; all NaN where the edit is not measurable.
        `outside_mask` where there is a mask."""
        alignment = self.found
        drift = {
            "px": alignment.drift,
            "shift_px": math.hypot(*alignment.shift),
            "zoom_percent": 100 * alignment.zoom,
            "rotation_degrees": alignment.rotation,
        }
        if not alignment.is_measurable:
            drift = dict.fromkeys(drift, math.nan)
        if self.outside_mask is None:
            return drift
        return drift | {"outside_mask": self.outside_mask}

    def __str__(self) -> str:
        alignment = self.found
        text = (
            f"{alignment.drift:.1f} pixels off ({alignment})"
            if alignment.is_measurable
            else "not measurable"
        )
        if self.outside_mask is None:
            return text
        return f"{text}; changed outside the mask by {self.outside_mask:.1f}"


def drift_of(
    sample: Image.Image, references: Sequence[Path], mask: Mask | None = None
) -> Drift | None:
    """The drift of a sample from the first reference that has its shape; None where
    there is none.

    mask: of that reference, stretched over it; its white parts may change. Raises
    ImageError for a file that cannot be used.
    """
    for path in references:
        reference = open_image(path, at_least=max(sample.size))
        if same_shape(sample.size, reference.size):
            break
    else:
        return None
    sample = over_white(sample)
    before = covering(reference, sample.size)
    alignment = measure(before, sample)
    if mask is None:
        return Drift(alignment)
    white = open_mask(mask)
    white = ImageOps.invert(white) if mask.inverted else white
    return Drift(
        alignment,
        _change(sample, before, covering(white.resize(reference.size), sample.size)),
    )


def _change(
    sample: Image.Image, before: Image.Image, mask: Image.Image
) -> float | None:
    """None where nothing lies outside the mask."""
    outside_HW = numpy.asarray(mask) < BLACK
    if not outside_HW.any():
        return None
    change_HWC = numpy.abs(
        numpy.asarray(sample, dtype=numpy.int16) - numpy.asarray(before)
    )
    return float(change_HWC[outside_HW].mean())


def drift_metrics(
    drifts: Mapping[int, Drift], prefix: str = PREFIX
) -> dict[str, float]:
    """The numbers of each sample, `drift/px_0` of the first one, and before them
    `drift/px`, the mean of their magnitudes, and so on; `drift/measurable` is the share
    of samples that are. drifts: by the index of the sample.

    >>> shifted = Alignment(0.0, 0.0, (3.0, 4.0), peak=0.9, error=0.1, size=(512, 512))
    >>> drift_metrics({0: Drift(shifted)})["drift/shift_px_0"]
    5.0
    """
    if not drifts:
        return {}
    named: dict[str, dict[int, float]] = {}
    for index, drift in drifts.items():
        for name, value in drift.numbers().items():
            named.setdefault(name, {})[index] = value
    metrics = {
        "measurable": fmean(drift.found.is_measurable for drift in drifts.values())
    }
    for name, by_index in named.items():
        known = [abs(value) for value in by_index.values() if math.isfinite(value)]
        metrics[name] = fmean(known) if known else math.nan
        metrics |= {f"{name}_{index}": value for index, value in by_index.items()}
    return {f"{prefix}{name}": value for name, value in metrics.items()}
