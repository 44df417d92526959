"""Model folders and hub caches whose weights are empty, for what only looks at names, indices and parts; and a tiny
latent flow model."""

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
    """A file of weights with these shapes by its header alone, without any of their bytes."""
    entries = {name: {"dtype": "BF16", "shape": list(shape), "data_offsets": [0, 0]} for name, shape in shapes.items()}
    file.write_bytes(framed(json.dumps(entries)))


def part_files(part: str) -> list[str]:
    """The files that a part has to contain."""
    return [names.split("|")[0] for names in FAMILY.parts[part].split()]


def write_model(folder: Path, pipeline: str = OURS, without: str = "") -> Path:
    """A folder with model_index.json and every part, each with the files that it needs, but for those in
    `without`."""
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


def write_cached(home: Path, name: str, pipeline: str = OURS, without: str = "", listed: bool = False) -> Path:
    """The snapshot of a hub model in the cache of HF_HOME `home`, as the client library lays it out.

    listed: with the library's own list of the repository's files, by which it knows that the snapshot is complete.
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
                size=path.stat().st_size, blob_id=f"{index:040x}", lfs_sha256=None, lfs_size=None, xet_hash=None
            )
            for index, path in enumerate(files)
        }
        write_tree_cache(str(repository), COMMIT, entries)
    return snapshot


SMALL_VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
}
"""Arguments of an AutoencoderKL with 2 x 2 pixels per latent pixel."""

SMALL_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SMALL_FLOW = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}


def write_flow_model(
    folder: Path, class_name: str = "SD3Transformer2DModel", prediction: str = "flow", positions: int = 0
) -> Path:
    """A latent flow model of random weights. positions: of SD3Transformer2DModel, along a side; 0: as by default."""
    import torch

    from extensions.from_scratch.autoencoder_config import AutoencoderConfig
    from extensions.from_scratch.autoencoders import make_autoencoder
    from extensions.from_scratch.latent_flow import new

    vae = make_autoencoder(AutoencoderConfig(config=SMALL_VAE), 0, torch.device("cpu"))
    vae.module.register_to_config(scaling_factor=1.5, shift_factor=0.25)
    vae.module.save_pretrained(folder / "vae")
    new.write_text_encoder(folder, SMALL_TEXT, ["a cat", "a photo of a dog"], 16, 0)
    table = {"pos_embed_max_size": positions} if positions else {}
    new.write_transformer(folder, class_name, SMALL_FLOW | table, 0)
    new.write_scheduler(folder)
    new.write_index(folder, prediction, 16)
    return folder
