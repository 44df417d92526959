"""Layouts of image datasets as the Hugging Face hub has them, and what `datasets` reads
of each.

Run with a Python that has `datasets`, `pyarrow` and `Pillow`, it prints
tests/golden/dataset_layouts.json: `python tests/dataset_layouts.py >
tests/golden/dataset_layouts.json`. Each picture has a colour of its own, by which it is
known again wherever it was put.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

PICTURES = tuple("abcdefgh")
"""Names of the pictures. In a layout `*x` stands for the file of a picture, in Parquet
`**x` for a struct with its bytes, `***path` for one with a path alone."""

ROWS = [{"file_name": f"{name}.png", "text": f"a photo of {name}"} for name in "ab"]
SPLITS = ("train", "validation", "test")
EDIT = {"input_image": "**a", "edited_image": "**b", "edit_prompt": "make it blue"}

LAYOUTS: dict[str, dict[str, Any]] = {
    "pictures alone": {"a.png": "*a", "b.png": "*b"},
    "metadata.jsonl": {"a.png": "*a", "b.png": "*b", "metadata.jsonl": ROWS},
    "metadata.csv": {"a.png": "*a", "b.png": "*b", "metadata.csv": ROWS},
    "metadata.parquet": {"a.png": "*a", "b.png": "*b", "metadata.parquet": ROWS},
    "other columns": {
        "a.png": "*a",
        "metadata.jsonl": [
            {"file_name": "a.png", "text": "a photo", "width": 8, "by": "x"}
        ],
    },
    "X_file_name": {
        "a.png": "*a",
        "metadata.jsonl": [{"image_file_name": "a.png", "text": "a photo"}],
    },
    "before and after": {
        "x_before.png": "*a",
        "x_after.png": "*b",
        "metadata.jsonl": [
            {
                "before_file_name": "x_before.png",
                "after_file_name": "x_after.png",
                "prompt": "make it blue",
            }
        ],
    },
    "pairs in folders": {
        "in/x.png": "*a",
        "out/x.png": "*b",
        "metadata.csv": [
            {
                "source_image_file_name": "in/x.png",
                "target_image_file_name": "out/x.png",
                "instruction": "blue",
            }
        ],
    },
    "lists of control images": {
        "a.png": "*a",
        "more/b.png": "*b",
        "more/c.png": "*c",
        "metadata.jsonl": [
            {
                "file_name": "a.png",
                "reference_file_names": ["more/b.png", "more/c.png"],
                "text": "both together",
            }
        ],
    },
    "lists of images": {
        "a.png": "*a",
        "b.png": "*b",
        "metadata.jsonl": [{"file_names": ["a.png", "b.png"], "text": "two"}],
    },
    "a table above its folders": {
        "images/a.png": "*a",
        "more/a.png": "*b",
        "metadata.jsonl": [
            {"file_name": f"{name}/a.png", "text": f"one of {name}"}
            for name in ("images", "more")
        ],
    },
    "a table far above": {
        "data/images/a.png": "*a",
        "metadata.jsonl": [{"file_name": "data/images/a.png", "text": "far below"}],
    },
    "a table in each folder": {
        f"{folder}/{path}": content
        for folder, name in (("one", "a"), ("two", "b"))
        for path, content in {
            f"{name}.png": f"*{name}",
            "metadata.jsonl": [
                {"file_name": f"{name}.png", "text": f"a photo of {name}"}
            ],
        }.items()
    },
    "folders for splits": {
        f"{split}/{name}.png": f"*{name}"
        for split, name in zip(SPLITS, "abc", strict=True)
    },
    "splits with tables": {
        f"{split}/{path}": content
        for split, name in zip(SPLITS, "abc", strict=True)
        for path, content in {
            f"{name}.png": f"*{name}",
            "metadata.jsonl": [{"file_name": f"{name}.png", "text": f"for {split}"}],
        }.items()
    },
    "splits further down": {
        f"data/{split}/{path}": content
        for split, name in zip(("train", "test"), "ab", strict=True)
        for path, content in {
            f"{name}.png": f"*{name}",
            "metadata.jsonl": [{"file_name": f"{name}.png", "text": f"for {split}"}],
        }.items()
    },
    "labels in splits": {
        "train/cat/a.png": "*a",
        "train/dog/b.png": "*b",
        "test/cat/c.png": "*c",
    },
    "a table above its splits": {
        "train/a.png": "*a",
        "test/b.png": "*b",
        "metadata.jsonl": [
            {"file_name": f"{path}.png", "text": f"for {path}"}
            for path in ("train/a", "test/b")
        ],
    },
    "splits in names of files": {"train_a.png": "*a", "test_b.png": "*b"},
    "folders as labels": {"cat/a.png": "*a", "dog/b.png": "*b"},
    "hidden files": {
        "a.png": "*a",
        "._a.png": "*b",
        ".thumbnails/a.png": "*c",
        "__MACOSX/._a.png": "*d",
        "metadata.jsonl": ROWS[:1],
    },
    "a visible picture in __MACOSX": {"images/a.png": "*a", "__MACOSX/b.png": "*b"},
    "a zip file": {
        "photos.zip": {"a.png": "*a", "b.png": "*b", "metadata.jsonl": ROWS}
    },
    "a column named image": {
        "a.png": "*a",
        "metadata.jsonl": [
            {"file_name": "a.png", "image": "of a cat", "text": "a cat"}
        ],
    },
    "a row for each caption": {
        "a.png": "*a",
        "metadata.jsonl": [
            {"file_name": "a.png", "text": text} for text in ("a cat", "an animal")
        ],
    },
    "captions in a list": {
        "a.png": "*a",
        "metadata.jsonl": [{"file_name": "a.png", "text": ["a cat", "an animal"]}],
    },
    "suffixes and spaces": {
        "my photo.PNG": "*a",
        "été.png": "*b",
        "metadata.jsonl": [
            {"file_name": "my photo.PNG", "text": "mine"},
            {"file_name": "été.png", "text": "summer"},
        ],
    },
    "a picture without a row": {
        "a.png": "*a",
        "b.png": "*b",
        "metadata.jsonl": ROWS[:1],
    },
    "pictures in Parquet": {
        "data/train-00000-of-00001.parquet": [
            {"image": f"**{name}", "text": f"a photo of {name}"} for name in "ab"
        ]
    },
    "pairs in Parquet": {"data/train-00000-of-00001.parquet": [EDIT]},
    "splits in Parquet": {
        f"data/{split}-00000-of-00001.parquet": [
            {"image": f"**{name}", "text": f"for {split}"}
        ]
        for split, name in zip(SPLITS, "abc", strict=True)
    },
    "paths in Parquet": {
        "a.png": "*a",
        "train.parquet": [{"image": "***a.png", "text": "a photo of a"}],
    },
}
"""Name -> its files: pictures, tables by their suffix, and the files in a zip file."""


def colour(name: str) -> tuple[int, int, int]:
    """Of a picture, which no other has."""
    return 20 * PICTURES.index(name) + 10, 200 - 20 * PICTURES.index(name), 90


def name_of(image: Image.Image) -> str:
    """The name of a picture by its colour."""
    found = image.convert("RGB").getpixel((0, 0))
    return next(name for name in PICTURES if colour(name) == found)


def picture(name: str) -> bytes:
    """The PNG of a picture."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour(name)).save(file, "PNG")
    return file.getvalue()


def write(files: Mapping[str, Any], folder: Path) -> None:
    """Writes a layout into an empty folder."""
    for path, content in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            file.write_bytes(picture(content[1:]))
        elif file.suffix == ".zip":
            with zipfile.ZipFile(file, "w") as archive:
                for name, inside in content.items():
                    archive.writestr(
                        name,
                        picture(inside[1:])
                        if isinstance(inside, str)
                        else _jsonl(inside),
                    )
        elif file.suffix == ".csv":
            with file.open("w", newline="", encoding="utf-8") as opened:
                writer = csv.DictWriter(opened, content[0])
                writer.writeheader()
                writer.writerows(content)
        elif file.suffix == ".parquet":
            _write_parquet(content, file)
        else:
            file.write_text(_jsonl(content), encoding="utf-8")


def _jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(rows: list[dict[str, Any]], file: Path) -> None:
    """As `push_to_hub` and `to_parquet` of `datasets` write it, with its word for the
    feature in the schema."""
    import pyarrow
    import pyarrow.parquet

    is_picture = {key: value.startswith("**") for key, value in rows[0].items()}
    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = {
        key: pyarrow.array(
            [_stored(row[key]) for row in rows],
            struct if is_picture[key] else pyarrow.string(),
        )
        for key in rows[0]
    }
    features = {
        key: {"_type": "Image"} if found else _TEXT for key, found in is_picture.items()
    }
    table = pyarrow.table(columns)
    if any(is_picture.values()):
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pyarrow.parquet.write_table(table, file)


_TEXT = {"dtype": "string", "_type": "Value"}


def _stored(value: str) -> Any:
    if value.startswith("***"):
        return {"bytes": None, "path": value[3:]}
    return (
        {"bytes": picture(value[2:]), "path": None} if value.startswith("**") else value
    )


# ---------------------------------------------------------------- what `datasets` reads


def read(folder: Path) -> dict[str, Any]:
    """Split -> its rows, pictures by their names; or the error of `datasets`."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    with TemporaryDirectory() as cache:
        try:
            found = datasets.load_dataset(str(folder), cache_dir=cache)
            return {
                "splits": {
                    split: [_plain(row) for row in rows]
                    for split, rows in found.items()
                }
            }
        except OSError as error:
            return {
                "error": f"{type(error).__name__}: {error}".replace(
                    str(folder), "FOLDER"
                )
            }


def _plain(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return f"picture {name_of(value)}"
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    """Prints the golden table."""
    import datasets

    cases = []
    for name, files in LAYOUTS.items():
        with TemporaryDirectory() as folder:
            write(files, Path(folder))
            cases.append({"layout": name, **read(Path(folder))})
    source = {
        "project": "huggingface/datasets",
        "version": datasets.__version__,
        "functions": ["load_dataset"],
    }
    note = (
        "load_dataset(FOLDER) of the folders that tests/dataset_layouts.py writes: split -> its rows, 'picture x' for "
        "the picture x; or the error."
    )
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = f'"source": {json.dumps([source])},\n"note": {json.dumps(note)}'
    sys.stdout.write(f'{{\n{head},\n"cases": [\n{lines}\n]\n}}\n')


if __name__ == "__main__":
    main()
