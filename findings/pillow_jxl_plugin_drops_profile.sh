#!/usr/bin/env bash
# pillow-jxl-plugin saves every JPEG XL as sRGB: the ICC profile of the image is dropped, without a word.
#
# Versions: pillow-jxl-plugin 1.3.8, pillow 13.0.0.
#
# Pillow's own writers of JPEG, PNG, WebP, AVIF and TIFF keep a profile that is given as `icc_profile`, and most of them
# the one in `image.info`. The plugin reads profiles, but writes none: the values of an Adobe RGB or Display P3 picture
# are kept, and are read as sRGB afterwards. The same happens with and without loss, and in a container.
#
# Output seen (saved with the profile "XYZ identity built-in", then opened):
#   png  XYZ identity built-in
#   jxl  sRGB, lossless=True
#   jxl  sRGB, quality=95
#   jxl  sRGB, use_container=True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT
cd "${work}"
python3 -m venv venv
venv/bin/pip install --quiet pillow-jxl-plugin==1.3.8 pillow==13.0.0
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import io

import pillow_jxl  # noqa: F401 - registers itself
from PIL import Image, ImageCms

GIVEN = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))


def name_after(kind, **options):
    """The profile of a picture that was saved with another one than sRGB."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind, icc_profile=GIVEN.tobytes(), **options)
    found = Image.open(io.BytesIO(file.getvalue())).info["icc_profile"]
    return ImageCms.ImageCmsProfile(io.BytesIO(found)).profile.profile_description


kept = name_after("PNG")
print(f"png  {kept}")
assert kept == GIVEN.profile.profile_description
for option in ({"lossless": True}, {"quality": 95}, {"use_container": True}):
    found = name_after("JXL", **option)
    print(f"jxl  {found}, {', '.join(f'{key}={value}' for key, value in option.items())}")
    assert found == "sRGB", "the profile is kept"
PYTHON
