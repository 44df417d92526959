"""From the colours of a file to 8-bit sRGB, in numpy: values become light, light gets
the primaries of sRGB, and its curve.

`images` calls `to_srgb` for files without an ICC profile, and for those of 16 bits;
other profiles are converted by Pillow's ImageCms. `colours` says which colours a file
has.

Shape suffixes: H/W height and width in pixels, P red, green, blue (or one channel of
grey), X CIE XYZ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy
from numpy import ndarray

from toolkit.data.pixels.colours import (
    BT709,
    Colours,
    MatrixProfile,
    Primaries,
    ProfileCurve,
    Transfer,
    matrix_profile,
)

SDR_WHITE = 203.0
"""White of a page in HDR, cd/m2. Source: ITU-R BT.2408-7, table 1 (HDR reference
white)."""

HLG_PEAK = 1000.0
"""Nominal peak of a display of HLG, cd/m2, for which the system gamma is 1.2. Source:
ITU-R BT.2100-3, table 5."""

HLG_GAMMA = 1.2

_PQ_PEAK = 10_000.0
_ROWS_OF_PIXELS = 1 << 20
"""Pixels that are converted at a time: about 50 MB."""


def to_srgb(values_HWP: ndarray, colours: Colours) -> ndarray:
    """8-bit sRGB [H, W, 3] of an image of uint8 or uint16 values with one channel or
    three; the largest value of the type is 1. Colours outside of sRGB, and light above
    white, are clipped in each channel. A profile is one of `matrix_profile`."""
    height, width, _ = values_HWP.shape
    most = int(numpy.iinfo(values_HWP.dtype).max)
    profile = matrix_profile(colours.profile) if colours.profile else None
    if profile is None:
        lights = [_light_table(colours.transfer, most)] * 3
        matrix_PP = matrix_to_srgb(colours.primaries)
    else:
        lights = [_profile_table(curve, most) for curve in profile.curves]
        matrix_PP = _matrix_of_profile(profile)
    encode = _srgb_table()
    result_HWP = numpy.empty((height, width, 3), numpy.uint8)
    rows = max(1, _ROWS_OF_PIXELS // max(1, width))
    for top in range(0, height, rows):
        part_HWP = values_HWP[top : top + rows]
        bands = [part_HWP[..., min(band, part_HWP.shape[2] - 1)] for band in range(3)]
        light_HWP = numpy.stack(
            [light[band] for light, band in zip(lights, bands, strict=True)], axis=2
        )
        if colours.transfer.curve == "hlg":
            light_HWP = _ootf(light_HWP, colours.primaries)
        srgb_HWP = (light_HWP @ matrix_PP.T).clip(0.0, 1.0)
        result_HWP[top : top + rows] = encode[
            numpy.rint(srgb_HWP * (len(encode) - 1)).astype(numpy.uint16)
        ]
    return result_HWP


# ---------------------------------------------------------------- curves


def _srgb(value: ndarray) -> ndarray:
    """Source: IEC 61966-2-1."""
    return numpy.where(
        value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4
    )


def _bt709(value: ndarray) -> ndarray:
    """Inverse of the curve of cameras in ITU-R BT.709-6, 1.2, as libavif 1.4 and ICC's
    profiles of BT.709 have it. (A television shows it darker, with an exponent of 2.4:
    ITU-R BT.1886.)"""
    alpha = 1.09929682680944
    beta = 0.018053968510807
    return numpy.where(
        value < 4.5 * beta, value / 4.5, ((value + alpha - 1) / alpha) ** (1 / 0.45)
    )


def _pq(value: ndarray) -> ndarray:
    """Light as a multiple of `SDR_WHITE`. Source: ITU-R BT.2100-3, table 4 (SMPTE ST
    2084)."""
    m1 = 2610 / 16384
    m2 = 2523 / 4096 * 128
    c1 = 3424 / 4096
    c2 = 2413 / 4096 * 32
    c3 = 2392 / 4096 * 32
    power = value ** (1 / m2)
    return (numpy.maximum(power - c1, 0.0) / (c2 - c3 * power)) ** (1 / m1) * (
        _PQ_PEAK / SDR_WHITE
    )


def _hlg(value: ndarray) -> ndarray:
    """Light of the scene, in [0, 1]. Source: ITU-R BT.2100-3, table 5 (inverse
    OETF)."""
    a = 0.17883277
    b = 1 - 4 * a
    c = 0.5 - a * numpy.log(4 * a)
    return numpy.where(
        value <= 0.5, value**2 / 3, (numpy.exp((value - c) / a) + b) / 12
    )


CURVES: dict[str, Callable[[ndarray], ndarray]] = {
    "srgb": _srgb,
    "bt709": _bt709,
    "linear": lambda value: value,
    "pq": _pq,
    "hlg": _hlg,
}
"""From values in [0, 1] to light, where white is 1."""


@lru_cache(maxsize=8)
def _light_table(transfer: Transfer, most: int) -> ndarray:
    """The light of each value from 0 to `most`."""
    value = numpy.arange(most + 1, dtype=numpy.float64) / most
    is_power = transfer.curve == "power"
    light = value**transfer.gamma if is_power else CURVES[transfer.curve](value)
    return light.astype(numpy.float32)


@lru_cache(maxsize=8)
def _profile_table(curve: ProfileCurve, most: int) -> ndarray:
    """The light of each value from 0 to `most` by a curve of an ICC profile."""
    value = numpy.arange(most + 1, dtype=numpy.float64) / most
    if curve.table:
        return numpy.interp(
            value * (len(curve.table) - 1), numpy.arange(len(curve.table)), curve.table
        ).astype("f4")
    g, a, b, c, d, e, f = curve.numbers
    above = (a * value + b).clip(0.0) ** g + e
    return numpy.where(value >= d, above, c * value + f).astype(numpy.float32)


def _matrix_of_profile(profile: MatrixProfile) -> ndarray:
    """Matrix [P, P] from the light of a profile to that of sRGB, both with the white of
    the connection space."""
    if not profile.columns:  # grey
        return numpy.eye(3, dtype=numpy.float32)
    to_d50_XX = _adapted(_xyz(BT709.white) / BT709.white[1], _PCS_WHITE)
    columns_XP = numpy.array(profile.columns).T
    return numpy.linalg.solve(to_d50_XX @ _to_xyz(BT709), columns_XP).astype(
        numpy.float32
    )


@lru_cache(maxsize=1)
def _srgb_table() -> ndarray:
    """The 8-bit values of light in 65536 steps, of which the darkest is a twentieth of
    a value."""
    light = numpy.arange(65536) / 65535
    value = numpy.where(
        light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055
    )
    table: ndarray = numpy.rint(value * 255).astype(numpy.uint8)
    return table


def _ootf(scene_HWP: ndarray, primaries: Primaries) -> ndarray:
    """What a display of HLG shows of the light of a scene, as a multiple of
    `SDR_WHITE`: brighter and more contrasty. Source: ITU-R BT.2100-3, table 5
    (OOTF)."""
    weights_P = _to_xyz(primaries)[1]
    luminance_HW = (scene_HWP @ weights_P.astype(numpy.float32)).clip(0.0)
    shown_HWP: ndarray = (
        scene_HWP
        * (luminance_HW ** (HLG_GAMMA - 1) * (HLG_PEAK / SDR_WHITE))[..., None]
    )
    return shown_HWP


# ---------------------------------------------------------------- primaries

_BRADFORD = numpy.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
"""From XYZ to the cones in which one white is exchanged for another. Source:
ICC.1:2022, annex E."""


_PCS_WHITE = numpy.array([0.9642, 1.0, 0.8249])
"""XYZ of D50. Source: ICC.1:2022, 7.2.16."""


def _xyz(point: tuple[float, float]) -> ndarray:
    """XYZ of a chromaticity whose X + Y + Z is 1."""
    return numpy.array([point[0], point[1], 1 - point[0] - point[1]])


def _adapted(white_X: ndarray, wanted_X: ndarray) -> ndarray:
    """Matrix [X, X] that exchanges one white for another; a white has Y = 1."""
    cones = (_BRADFORD @ wanted_X) / (_BRADFORD @ white_X)
    return numpy.linalg.solve(_BRADFORD, numpy.diag(cones) @ _BRADFORD)


def _to_xyz(primaries: Primaries) -> ndarray:
    """Matrix [X, P] from light to XYZ, so that white has a luminance of 1. Source:
    SMPTE RP 177."""
    columns_XP = numpy.stack(
        [_xyz(primaries.red), _xyz(primaries.green), _xyz(primaries.blue)], axis=1
    )
    white_X = _xyz(primaries.white) / primaries.white[1]
    return columns_XP * numpy.linalg.solve(columns_XP, white_X)


@lru_cache(maxsize=32)
def matrix_to_srgb(primaries: Primaries) -> ndarray:
    """Matrix [P, P] from light of these primaries to that of sRGB; white stays
    white."""
    adapt_XX = _adapted(
        _xyz(primaries.white) / primaries.white[1], _xyz(BT709.white) / BT709.white[1]
    )
    return (numpy.linalg.solve(_to_xyz(BT709), adapt_XX @ _to_xyz(primaries))).astype(
        numpy.float32
    )
