#!/usr/bin/env bash
# A text column named `image` behind `file_name` in a metadata.jsonl takes the place of the pictures, silently.
#
# Versions: datasets 5.2.0, pillow 13.0.0.
#
# `file_name` becomes the column `image` with the picture in it. Where the table has an `image` of its own (its id, its
# title, its description), the later of the two columns wins: behind `file_name` it is text, and the data set has no picture;
# before `file_name` its text is lost. load_dataset and num_rows are as usual, without an error or a warning.
#
# Output seen:
#   file_name, text            image: PngImageFile, text: str
#   file_name, image, text     image: str, text: str
#   image, file_name, text     image: PngImageFile, text: str
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet datasets==5.2.0 pillow==13.0.0
HF_HUB_OFFLINE=1 HF_HOME="${work}/hf" venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
VALUES = {"file_name": "a.png", "image": "a title", "text": "a caption"}


def kinds(columns):
    """Column -> the type of its value, for a folder with one picture and a table with these columns."""
    folder = Path("-".join(columns))
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "metadata.jsonl").write_text(json.dumps({column: VALUES[column] for column in columns}) + "\n")
    (row,) = datasets.load_dataset(str(folder), split="train")
    return ", ".join(f"{column}: {type(row[column]).__name__}" for column in sorted(row))


cases = [
    (("file_name", "text"), "image: PngImageFile, text: str"),
    (("file_name", "image", "text"), "image: str, text: str"),
    (("image", "file_name", "text"), "image: PngImageFile, text: str"),
]
for columns, expected in cases:
    found = kinds(columns)
    print(f"{', '.join(columns):26} {found}")
    assert found == expected, f"{columns}: it was {expected}"
PYTHON
