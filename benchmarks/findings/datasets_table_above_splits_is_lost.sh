#!/usr/bin/env bash
# datasets does not read a metadata.jsonl above folders named train/ and test/: its captions are lost, silently.
#
# Versions: datasets 5.2.0, pillow 13.0.0.
#
# A metadata.jsonl above the folders of its images is read: `{"file_name": "red/a.png", "text": "..."}` in the root is the
# layout of the hub's own guide. Where the names of the folders say which split they are, each split has only the files
# below its folder, and the table is in none. There is no error and no warning: the rows have a `label` instead of the
# text, the label of train is None, and num_rows is right. A table in each of the folders is read.
#
# Output seen:
#   red/, blue/                     train: ['text of red', 'text of blue']
#   train/, test/                   train: no text, label None; test: no text, label 0
#   train/, test/, a table in each  train: ['text of train']; test: ['text of test']
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet datasets==5.2.0 pillow==13.0.0
HF_HUB_OFFLINE=1 HF_HOME="${work}/hf" venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()


def write(table, rows):
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(name, folders, inside=False):
    """What load_dataset makes of a folder for each of these names, with one picture in each."""
    root = Path(name)
    for folder in folders:
        (root / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / folder / "a.png")
        if inside:
            write(root / folder / "metadata.jsonl", [{"file_name": "a.png", "text": f"text of {folder}"}])
    if not inside:
        write(root / "metadata.jsonl", [{"file_name": f"{each}/a.png", "text": f"text of {each}"} for each in folders])
    return datasets.load_dataset(str(root))


def in_words(found):
    words = []
    for split, rows in found.items():
        if "text" in rows.column_names:
            words.append(f"{split}: {rows['text'][:]}")
        else:
            words.append(f"{split}: no text, label {rows['label'][0]}")
    return "; ".join(words)


cases = [
    ("red/, blue/", read("other", ["red", "blue"]), "train: ['text of red', 'text of blue']"),
    ("train/, test/", read("splits", ["train", "test"]), "train: no text, label None; test: no text, label 0"),
    (
        "train/, test/, a table in each",
        read("inside", ["train", "test"], inside=True),
        "train: ['text of train']; test: ['text of test']",
    ),
]
for words, found, expected in cases:
    print(f"{words:31} {in_words(found)}")
    assert in_words(found) == expected, f"{words}: it was {expected}"
PYTHON
