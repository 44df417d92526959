#!/usr/bin/env bash
# Dataset.to_parquet writes paths where push_to_hub would write pictures: the file is empty elsewhere.
#
# Versions: datasets 5.2.0, pyarrow 26.0.1, pillow 13.0.0.
#
# The pictures of an imagefolder are paths until they are used. push_to_hub embeds their bytes first; to_parquet writes the
# table as it is. The file has the path of the machine that wrote it and no bytes, it is a few kilobytes whatever the size of
# the pictures, and reading it on that machine works.
#
# Output seen:
#   to_parquet                      bytes: none, path: the file on this machine
#   embed_table_storage, to_parquet bytes: the picture
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet datasets==5.2.0 pyarrow==26.0.1 pillow==13.0.0
HF_HUB_OFFLINE=1 HF_HOME="${work}/hf" venv/bin/python - <<'PYTHON'
from pathlib import Path

import datasets
import pyarrow.parquet
from datasets.table import embed_table_storage
from PIL import Image

datasets.disable_progress_bars()
Path("photos").mkdir()
Image.new("RGB", (8, 8)).save("photos/a.png")
found = datasets.load_dataset("photos", split="train")
found.to_parquet("plain.parquet")
embedded = found.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
embedded.to_parquet("embedded.parquet")
(plain,) = pyarrow.parquet.read_table("plain.parquet")["image"].to_pylist()
(whole,) = pyarrow.parquet.read_table("embedded.parquet")["image"].to_pylist()
assert plain == {"bytes": None, "path": str(Path("photos/a.png").resolve())}, plain
print("to_parquet                      bytes: none, path: the file on this machine")
assert whole["bytes"] == Path("photos/a.png").read_bytes(), whole
print("embed_table_storage, to_parquet bytes: the picture")
PYTHON
