"""Distinguishes the encoder of a VAE from its decoder, by the files.

The encoder decides the latents that are cached and trained on. The decoder decides only
the sample images, so another decoder changes no cache entry and no run. This module
reads headers and bytes, and loads no weights. `hashes` and `qwen_model` use the hash,
`families` the check of the config, `toolkit.train.resumption` the name of the hash.
Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from toolkit.config.sections.model_files import (
    is_decoder_only,
    read_model_json,
    weight_files,
)
from toolkit.files.safetensors_io import METADATA, read_header
from toolkit.files.writing import open_regular
from toolkit.models.encoder_weights import is_of_decoder, of_wan
from toolkit.models.single_file import shards_of, without_prefix

VAE_ENCODER = "vae_encoder"
"""The name of `encoder_hash` among the hashes of the parts of a model."""

_PIECE = 2**20


def encoder_hash(folder: Path, file: Path | None = None) -> str:
    """A hash of the settings and weights of a VAE, except the decoder's.

    folder: of the part. file: one with the VAE's weights, or with the weights of its
    decoder alone, which then do not count. A file with the names of Wan's VAE, as
    ComfyUI has it, gets the same hash as a folder with the same weights.
    """
    config = read_model_json(folder / "config.json")
    settings = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and "decoder" not in key
    }
    digest = sha256(json.dumps(settings, sort_keys=True).encode())
    of_encoder = file is not None and not is_decoder_only(file)
    paths = shards_of(file) if file is not None and of_encoder else weight_files(folder)
    entries = {name: (path, entry) for path in paths for name, entry in _weights(path)}
    for name in sorted(entries):
        path, entry = entries[name]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        for piece in _bytes_of(path, entry):
            digest.update(piece)
    return digest.hexdigest()


def vae_config_fault(file: Path, folder: Path) -> str:
    """A message where the config.json next to a file contradicts the config of the
    model's VAE, which the file is read with. Empty: they agree, or there is none.

    folder: of the model's VAE.
    """
    path = file.with_name("config.json")
    of_model = folder / "config.json"
    if (
        not path.is_file()
        or not of_model.is_file()
        or path.resolve() == of_model.resolve()
    ):
        return ""
    config = read_model_json(path)
    expected = read_model_json(of_model)
    kind = config.get("_class_name")
    of_model_kind = expected.get("_class_name")
    if kind and kind != of_model_kind:
        return f"{path}: is {kind!r}, and the VAE of the model is {of_model_kind!r}. Give a VAE of this model."
    shared = [key for key in config.keys() & expected.keys() if not key.startswith("_")]
    differing = sorted(key for key in shared if config[key] != expected[key])
    if differing:
        return f"{path}: {', '.join(differing)}: not as in {of_model}. Give a VAE of this model."
    return ""


def _weights(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tensors of a file that are not the decoder's, by their names in diffusers;
    `data_offsets` from the beginning of the file."""
    with open_regular(path) as file:
        header = read_header(file)
        begin = file.tell()
    for name, entry in header.items():
        bare = of_wan(without_prefix(name))
        if name != METADATA and not is_of_decoder(bare):
            first, last = entry["data_offsets"]
            yield bare, {**entry, "data_offsets": (begin + first, begin + last)}


def _bytes_of(path: Path, entry: Mapping[str, Any]) -> Iterator[bytes]:
    first, last = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(first)
        for at in range(first, last, _PIECE):
            yield file.read(min(_PIECE, last - at))
