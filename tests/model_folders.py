"""Model folders and hub caches whose weights are empty, for what only looks at names,
indices and parts; and a tiny latent flow model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from toolkit.files.safetensors_io import framed
from toolkit.models.qwen_image.family import FAMILY

OURS = "QwenImageEditPlusPipeline"
COMMIT = "a" * 40
ARCHS = ("qwen_image", "qwen_image_edit", "qwen_image_edit_plus", "qwen_image_2")

NO_WEIGHTS = framed("{}")
"""A safetensors file without tensors."""


def write_header(shapes: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """A file of weights with these shapes by its header alone, without any of their
    bytes."""
    entries = {
        name: {"dtype": "BF16", "shape": list(shape), "data_offsets": [0, 0]}
        for name, shape in shapes.items()
    }
    file.write_bytes(framed(json.dumps(entries)))


def part_files(part: str) -> list[str]:
    """The files that a part has to contain."""
    return [names.split("|")[0] for names in FAMILY.parts[part].split()]


def write_model(folder: Path, pipeline: str = OURS, without: str = "") -> Path:
    """A folder with model_index.json and every part, each with the files that it needs,
    but for those in `without`."""
    folder.mkdir(parents=True, exist_ok=True)
    if "model_index.json" not in without.split():
        (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    for part in FAMILY.parts:
        if part not in without.split():
            (folder / part).mkdir()
            for name in part_files(part):
                (folder / part / name).write_text("{}")
        if part in FAMILY.weight_parts and part not in without.split():
            (folder / part / "model.safetensors").write_bytes(NO_WEIGHTS)
    return folder


def write_cached(
    home: Path, name: str, pipeline: str = OURS, without: str = "", listed: bool = False
) -> Path:
    """The snapshot of a hub model in the cache of HF_HOME `home`, as the client library
    lays it out.

    listed: with the library's own list of the repository's files, by which it knows
    that the snapshot is complete.
    """
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = write_model(repository / "snapshots" / COMMIT, pipeline, without)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    if listed:
        from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

        files = [path for path in snapshot.rglob("*") if path.is_file()]
        entries = {
            path.relative_to(snapshot).as_posix(): TreeCacheEntry(
                size=path.stat().st_size,
                blob_id=f"{index:040x}",
                lfs_sha256=None,
                lfs_size=None,
                xet_hash=None,
            )
            for index, path in enumerate(files)
        }
        write_tree_cache(str(repository), COMMIT, entries)
    return snapshot
