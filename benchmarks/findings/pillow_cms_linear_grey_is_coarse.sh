#!/usr/bin/env bash
# Pillow's ImageCms converts linear grey up to 10 levels wrong in the dark, unless it is told not to optimize.
#
# Versions: pillow 13.0.0, numpy 2.4.6.
#
# `profileToProfile` hands 8-bit grey to Little CMS 2.19, which replaces the curves by a coarse table, as it does not for
# RGB. With a gamma of 2.2 that is one level; with linear light, whose first values are far apart in sRGB, the value 2 is
# 12 instead of 22. `flags=ImageCms.Flags.NOOPTIMIZE` gives the right values; HIGHRESPRECALC does not.
#
# Output seen:
#   grey, gamma 1.0  default 9.7 levels off  HIGHRESPRECALC 6.7  NOOPTIMIZE 0.5
#   grey, gamma 2.2  default 1.0 levels off  HIGHRESPRECALC 0.5  NOOPTIMIZE 0.5
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet pillow==13.0.0 numpy==2.4.6
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import io
import struct

import numpy
from PIL import Image, ImageCms

WHITE = struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))


def grey_profile(gamma):
    """An ICC profile of grey with this exponent."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"Grey\0" + bytes(79),
        b"wtpt": b"XYZ " + bytes(4) + WHITE,
        b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2),
    }
    at, table, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s", at + len(data), b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + WHITE
    whole = head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + data
    return ImageCms.ImageCmsProfile(io.BytesIO(whole))


values = numpy.arange(256, dtype=numpy.uint8)[None]
flags = ImageCms.Flags
expected = {1.0: (9.7, 6.7, 0.5), 2.2: (1.0, 0.5, 0.5)}
for gamma, wanted in expected.items():
    light = (values / 255) ** gamma
    right = numpy.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    found = []
    for flag in (flags.NONE, flags.HIGHRESPRECALC, flags.NOOPTIMIZE):
        image = ImageCms.profileToProfile(
            Image.fromarray(values), grey_profile(gamma), ImageCms.createProfile("sRGB"), outputMode="RGB", flags=flag
        )
        found.append(round(float(abs(numpy.asarray(image)[..., 0] - right).max()), 1))
    print(f"grey, gamma {gamma}  default {found[0]} levels off  HIGHRESPRECALC {found[1]}  NOOPTIMIZE {found[2]}")
    assert tuple(found) == wanted, f"it was {found}"
PYTHON
