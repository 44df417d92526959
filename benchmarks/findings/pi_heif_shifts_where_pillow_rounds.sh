#!/usr/bin/env bash
# The same 10-bit picture is one level darker in places as HEIC (pi-heif) than as AVIF (Pillow): one shifts, one rounds.
#
# Versions: pi-heif 1.4.0, pillow-heif 1.8.1, pillow 13.0.0, imagecodecs 2026.3.6, numpy 2.4.6.
#
# Both openers give 8 bits of files with 10. Pillow 13 scales and rounds: round(value * 255 / 1023). pi-heif takes the
# high bits: value >> 2, so that 170 of the 1024 values are one level lower, and half of the steps of a gradient lie
# elsewhere. Both files here are without loss (matrix 0, 4:4:4), and hold the same values.
#
# Output seen:
#   AVIF  round(value * 255 / 1023)    0 of 1024 otherwise
#   HEIC  value >> 2                   0 of 1024 otherwise
#   170 of 1024 values differ, by at most 1
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet pi-heif==1.4.0 pillow-heif==1.8.1 pillow==13.0.0 imagecodecs==2026.3.6 numpy==2.4.6
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import io

import imagecodecs
import numpy
import pi_heif
import pillow_heif
from PIL import Image

values = numpy.arange(1024).reshape(32, 32)
ten_bits = numpy.stack([values] * 3, axis=2).astype(numpy.uint16)

avif = imagecodecs.avif_encode(ten_bits, bitspersample=10, primaries=1, transfer=13, matrix=0, pixelformat="444")
heic = io.BytesIO()
wide = (ten_bits.astype(int) * 65535 // 1023).astype(numpy.uint16)
picture = pillow_heif.from_bytes("RGB;16", (32, 32), wide.tobytes())
picture.save(heic, quality=-1, chroma=444, matrix_coefficients=0)

assert (imagecodecs.avif_decode(avif) == ten_bits).all(), "the AVIF has other values"
heic.seek(0)
opened = pi_heif.open_heif(heic, convert_hdr_to_8bit=False)  # kept while its pixels are used
assert (numpy.array(opened) >> 6 == ten_bits).all(), "the HEIC has other values"

pi_heif.register_heif_opener()
as_avif = numpy.asarray(Image.open(io.BytesIO(avif)))[..., 0].astype(int)
as_heic = numpy.asarray(Image.open(heic))[..., 0].astype(int)
rounded = numpy.floor(values * 255 / 1023 + 0.5)
off_avif, off_heic = (as_avif != rounded).sum(), (as_heic != values >> 2).sum()
differ, most = (as_avif != as_heic).sum(), abs(as_avif - as_heic).max()
print(f"AVIF  round(value * 255 / 1023)  {off_avif:3} of 1024 otherwise")
print(f"HEIC  value >> 2                 {off_heic:3} of 1024 otherwise")
print(f"{differ} of 1024 values differ, by at most {most}")
assert (off_avif, off_heic, differ, most) == (0, 0, 170, 1)
PYTHON
