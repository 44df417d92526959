"""The model that a LoRA file belongs to, by its header alone. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.config.reading.findings import Findings, error, warning
from toolkit.contracts.model import ROWS_OF, ModelSection
from toolkit.errors import UserError
from toolkit.files.safetensors_io import read_metadata, tensor_shapes
from toolkit.files.unreadable import cause_of
from toolkit.models.families import ModelFamily, family_for
from toolkit.models.single_file import OTHER_MODELS
from toolkit.registry import FAMILIES

ARCHITECTURE, VERSION = "modelspec.architecture", "ss_base_model_version"
"""Keys of the metadata that name the model: as `ModelFacts.modelspec` with the kind of
network behind a slash, and as `ModelFacts.arch`."""

OTHER_LAYERS = {
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj": "FLUX.2",
    "single_transformer_blocks.0.proj_mlp": "FLUX.1",
    "single_transformer_blocks.0.attn.to_q": "FLUX.1",
    "single_blocks.0.linear1": "FLUX.1",
    "layers.0.attention.to_q": "Z-Image",
    "layers.0.feed_forward.w1": "Z-Image",
    "input_blocks.0.0.transformer_blocks.0.attn1.to_q": "Stable Diffusion",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "Stable Diffusion",
    "blocks.0.attn1.to_q": "Wan",
    "text_model.encoder.layers.0.self_attn.q_proj": "a CLIP text encoder",
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": "a CLIP text encoder",
    **{name.removesuffix(".weight"): title for name, title in OTHER_MODELS.items()},
}
"""A layer -> the model whose LoRAs have it, by names that the one or the other program
gives. The first counts."""


DOWN_ENDS = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight")
"""Ends of the names of the matrix of a LoRA that has the inputs of its layer."""


def other_model(layers: Iterable[str]) -> str:
    """The model that a LoRA file with these names of layers (with or without a prefix)
    is of, where it is none of the families here; empty: not known."""
    flat = {f"_{_flat(name)}" for name in layers}
    ends = ((f"_{_flat(layer)}", title) for layer, title in OTHER_LAYERS.items())
    return next(
        (title for end, title in ends if any(name.endswith(end) for name in flat)), ""
    )


def unreadable(path: str) -> str:
    """Why a LoRA file that is there cannot be read, with the remedy; empty where it
    can, by its header and length, or where there is none."""
    file = Path(path).expanduser()
    try:
        if file.is_file():
            tensor_shapes(file)
            read_metadata(file)
    except (UserError, ValueError) as error:
        reason = error.__cause__ or error
        if isinstance(reason, Exception):
            cause = cause_of(file, reason)
        else:
            cause = None
        what = cause.what if cause else str(reason)
        if cause:
            remedy = cause.remedy
        else:
            remedy = "Download it again, or save it as safetensors in the program that made it"
        return f"{path!r} cannot be read as a safetensors file ({what}). {remedy}."
    return ""


def named_families(metadata: Mapping[str, Any]) -> list[ModelFamily]:
    """The families that a file's metadata name."""
    architecture = str(metadata.get(ARCHITECTURE, "")).partition("/")[0]
    known = [one for one in map(FAMILIES.load, FAMILIES) if one.published]
    return [
        one
        for one in known
        if one.modelspec[0] == architecture or one.arch == metadata.get(VERSION)
    ]


def origin_findings(key: str, path: str, model: ModelSection, folder: Path) -> Findings:
    """A LoRA file of another model: an error where that has other layers, else a
    warning. Nothing of a file that is not there or cannot be read, and of a model that
    is not known: other rules say so.

    folder: of the model.
    """
    try:
        family = family_for(model)
        keys = tensor_shapes(Path(path).expanduser())
        metadata = read_metadata(Path(path).expanduser())
        kinds = _kinds(family, folder)
    except (UserError, OSError, ValueError):
        return
    architecture = str(metadata.get(ARCHITECTURE, "")).partition("/")[0]
    known = [one for one in map(FAMILIES.load, FAMILIES) if one.published]
    named = named_families(metadata)
    others = []
    for one in named or known:
        if _kinds(one, Path(next(iter(one.published)))) != kinds:
            others.append(one)
    if (named and others) or (not named and not _fits(keys, kinds)):
        if named:
            matching = others
        else:
            matching = [one for one in others if _fits(keys, _kinds(one, Path()))]
        if matching:
            titles = " or ".join(one.title for one in matching)
            yield error(
                key,
                f"{path} is a LoRA of {titles}, and this model is {family.title}. Give one of this model.",
            )
    elif named and architecture and architecture != family.modelspec[0]:
        yield warning(
            key,
            f"{path} was trained on {architecture}, and this model is {family.modelspec[0]}. Its layers fit.",
        )


def width_findings(key: str, path: str, model: ModelSection, folder: Path) -> Findings:
    """An error for a LoRA whose matrices are wider or narrower than the layers of the
    model, as one of a larger model is. Nothing of a file that is not there or cannot be
    read (`unreadable`), and of a model that is not known.

    folder: of the model.
    """
    try:
        shapes = tensor_shapes(Path(path).expanduser())
        layers = family_for(model).every_linear_layer(folder)
    except (UserError, OSError, ValueError):
        return
    inputs_of = {name.replace(".", "_"): inputs for name, (inputs, _) in layers.items()}
    for name, shape in shapes.items():
        stem = next(
            (name.removesuffix(end) for end in DOWN_ENDS if name.endswith(end)), ""
        ).replace(".", "_")
        words = stem.split("_")
        # `lora_unet_` has two words
        spellings = ("_".join(words[prefix:]) for prefix in range(3))
        inputs = next((inputs_of[one] for one in spellings if one in inputs_of), None)
        if inputs is not None and shape[-1] != inputs:
            what = (
                f"{name} has {shape[-1]} inputs, and the layer of this model {inputs}"
            )
            yield error(
                key, f"{path} is of another model: {what}. Give one of this model."
            )
            return


def _kinds(family: ModelFamily, folder: Path) -> frozenset[str]:
    """The layers of a model without the numbers of blocks, flat; those that other
    programs have in one too."""
    kinds = {_flat(name) for name in family.every_linear_layer(folder)}
    for whole, parts in ROWS_OF.items():
        flat = _flat(parts[0])
        kinds |= {
            kind.removesuffix(flat) + _flat(whole)
            for kind in kinds
            if kind.endswith(flat)
        }
    return frozenset(kinds)


def _flat(name: str) -> str:
    return re.sub(r"(?<=_)\d+(?=_|$)", "N", name.replace(".", "_"))


def _fits(keys: Iterable[str], kinds: Iterable[str]) -> bool:
    """Whether each key is of one of these layers."""
    pattern = re.compile(f"(?:^|_)(?:{'|'.join(map(re.escape, kinds))})_")
    return all(pattern.search(_flat(key)) for key in keys)
