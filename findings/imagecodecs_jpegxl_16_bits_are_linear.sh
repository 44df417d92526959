#!/usr/bin/env bash
# imagecodecs writes 16-bit JPEG XL as linear light: every other program shows it brighter.
#
# Versions: imagecodecs 2026.3.6, pillow 13.0.0, pillow-jxl-plugin 1.3.8, numpy 2.4.6.
#
# `jpegxl_encode` has no argument for the colours. It marks uint8 as sRGB, and uint16, with any number of bits, as linear
# light. `jpegxl_decode` gives the values back and looks at no colours, so a round trip is exact and hides it. A middle
# grey of 16 bits that was meant as sRGB is 188 of 255 in a program that applies the header, instead of 128.
#
# Output seen:
#   uint8   header sRGB                 decoded   128  shown 128
#   uint16  header RGB_D65_SRG_Rel_Lin  decoded 32896  shown 188
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT
cd "${work}"
python3 -m venv venv
venv/bin/pip install --quiet imagecodecs==2026.3.6 pillow==13.0.0 pillow-jxl-plugin==1.3.8 numpy==2.4.6
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import io

import imagecodecs
import numpy
import pillow_jxl  # noqa: F401 - registers itself
from PIL import Image, ImageCms

for dtype, grey, expected in (("uint8", 128, ("sRGB", 128)), ("uint16", 128 * 257, ("RGB_D65_SRG_Rel_Lin", 188))):
    data = imagecodecs.jpegxl_encode(numpy.full((8, 8, 3), grey, dtype), lossless=True)
    decoded = imagecodecs.jpegxl_decode(data)
    assert (decoded == grey).all(), "the round trip is not exact"
    image = Image.open(io.BytesIO(data))
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    name = profile.profile.profile_description
    shown = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB")).getpixel((0, 0))[0]
    print(f"{dtype:6}  header {name:19}  decoded {decoded[0, 0, 0]:5}  shown {shown}")
    assert (name, shown) == expected, f"{dtype}: it was {name}, {shown}"
PYTHON
