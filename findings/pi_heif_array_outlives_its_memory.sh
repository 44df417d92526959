#!/usr/bin/env bash
# numpy.asarray(pi_heif.open_heif(path)) reads freed memory: the array does not keep the picture alive.
#
# Versions: pi-heif 1.4.0, pillow-heif 1.8.1, pillow 13.0.0, numpy 2.4.6.
#
# The array is a view of libheif's memory, and nothing in it refers to the object that owns the memory: when the object
# goes, the pixels become what the process stores there next. In one line they are often already wrong, without an error.
# pillow-heif 1.8.1, from which pi-heif is made, copies and is right. `numpy.array(opened)` while the object lives is too.
#
# Output seen (numbers of values vary):
#   pi_heif           31 of 786,432 values changed behind `del opened`
#   pillow_heif        0 of 786,432 values changed behind `del opened`
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT
cd "${work}"
python3 -m venv venv
venv/bin/pip install --quiet pi-heif==1.4.0 pillow-heif==1.8.1 pillow==13.0.0 numpy==2.4.6
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import io

import numpy
import pi_heif
import pillow_heif

SIDE = 512
pixels = numpy.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(numpy.uint8)
file = io.BytesIO()
pillow_heif.from_bytes("RGB", (SIDE, SIDE), pixels.tobytes()).save(file, quality=-1, chroma=444, matrix_coefficients=0)


def changed_values(library):
    """How many values of an array change when its object goes and other arrays are made."""
    file.seek(0)
    opened = library.open_heif(file)
    view = numpy.asarray(opened)
    before = view.copy()
    assert (before == pixels).all(), "the file has other values"
    del opened
    others = [numpy.ones((SIDE, SIDE, 3), numpy.uint16) for _ in range(10)]
    assert len(others) == 10
    return int((view != before).sum())


for library, is_kept in ((pi_heif, False), (pillow_heif, True)):
    count = changed_values(library)
    print(f"{library.__name__:11}  {count:7,} of {pixels.size:,} values changed behind `del opened`")
    assert (count == 0) == is_kept
PYTHON
