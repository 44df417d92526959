"""The model that a LoRA file belongs to, by its header alone.

Layers, their widths and the metadata decide. It reads no weights, and the file's name
does not count. The trainer's rules and the tools that take LoRAs call it before
anything is loaded, so that a LoRA of another model is one clear error. Imports no
torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.config.reading.findings import Findings, error, warning
from toolkit.config.sections.model_files import named_elsewhere
from toolkit.contracts.model import ROWS_OF, ModelSection
from toolkit.errors import UserError
from toolkit.files.safetensors_io import read_metadata, tensor_shapes
from toolkit.files.unreadable import Cause, cause_of
from toolkit.models.families import ModelFamily, family_for, published_members
from toolkit.models.single_file import OTHER_MODELS

ARCHITECTURE, VERSION = "modelspec.architecture", "ss_base_model_version"
"""Keys of the metadata that name the model. The first has `ModelFacts.modelspec` with
the kind of network behind a slash, the second `ModelFacts.arch`."""

OTHER_LAYERS = {
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj": "FLUX.2",
    "single_transformer_blocks.0.proj_mlp": "FLUX.1",
    "single_transformer_blocks.0.attn.to_q": "FLUX.1",
    "single_blocks.0.linear1": "FLUX.1",
    "layers.0.attention.to_q": "Z-Image",
    "layers.0.feed_forward.w1": "Z-Image",
    "input_blocks.0.0.transformer_blocks.0.attn1.to_q": "Stable Diffusion",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "Stable Diffusion",
    "input_blocks.0.0.proj_in": "Stable Diffusion",
    "down_blocks.0.attentions.0.proj_in": "Stable Diffusion",
    "blocks.0.attn1.to_q": "Wan",
    "text_model.encoder.layers.0.self_attn.q_proj": "a CLIP text encoder",
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": "a CLIP text encoder",
    **{name.removesuffix(".weight"): title for name, title in OTHER_MODELS.items()},
}
"""A layer, by a name that some program gives it -> the model whose LoRAs have it. The
first entry that matches counts."""


_AGAIN = "Download it again, or save it as safetensors in the program that made it"

_OF_LAYER = re.compile(
    r"\.(?:lora|hada|lokr|oft|boft|alpha|dora|diff|magnitude|weight|bias)\b.*|"
    r"\.(?:lora|hada|lokr|oft|boft|dora|diff)_.*"
)
"""What stands behind the name of a layer."""

DOWN_ENDS = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight")
"""Ends of the names of a LoRA's matrix that reads the inputs of the layer."""


def other_model(layers: Iterable[str]) -> str:
    """The model of a LoRA file with these layers, where it is not one of the families
    that can be trained. Empty: it is not known.

    layers: names, with or without a prefix.

    >>> other_model(["transformer.double_blocks.0.img_attn.qkv"])
    'FLUX.1'
    """
    flat = {f"_{_flat(name)}" for name in layers}
    ends = ((f"_{_flat(layer)}", title) for layer, title in OTHER_LAYERS.items())
    return next(
        (title for end, title in ends if any(name.endswith(end) for name in flat)), ""
    )


def unreadable(path: str) -> str:
    """The reason why an existing LoRA file cannot be read, with the remedy. Empty where
    its header and length are right, or where there is no such file."""
    file = Path(path).expanduser()
    try:
        if file.is_file():
            tensor_shapes(file)
            read_metadata(file)
    except (UserError, ValueError) as error:
        reason = error.__cause__ or error
        assert isinstance(reason, Exception)  # nobody wraps an exit
        cause = cause_of(file, reason) or Cause(str(reason), _AGAIN)
        return f"{path!r} cannot be read as a safetensors file ({cause.what}). {cause.remedy}."
    return ""


def named_families(metadata: Mapping[str, Any]) -> list[ModelFamily]:
    """The families that a file's metadata name.

    >>> [family.title for family in named_families({VERSION: "qwen_image"})]
    ['Qwen-Image']
    """
    architecture = _architecture(metadata)
    return [
        one
        for one in published_members()
        if one.modelspec[0] == architecture or one.arch == metadata.get(VERSION)
    ]


def _architecture(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get(ARCHITECTURE, "")).partition("/")[0]


def origin_findings(key: str, path: str, model: ModelSection, folder: Path) -> Findings:
    """An error for a LoRA file of a model with other layers, a warning for a file of
    another model with the same layers.

    A missing or unreadable file and an unknown model yield nothing: other rules report
    them. folder: of the model.
    """
    try:
        family = family_for(model)
        keys = tensor_shapes(Path(path).expanduser())
        metadata = read_metadata(Path(path).expanduser())
        kinds = _kinds(family, folder)
    except (UserError, OSError, ValueError):
        return
    architecture = _architecture(metadata)
    named = named_families(metadata)
    kinds_of = {
        one: _kinds(one, Path(next(iter(one.published))))
        for one in named or published_members()
    }
    others = [one for one in kinds_of if kinds_of[one] != kinds]
    if not named:
        unknown = _others(keys, kinds)
        others = [one for one in others if unknown and not _others(keys, kinds_of[one])]
        layers = [_OF_LAYER.sub("", name) for name in unknown]
        foreign = "" if others else other_model(layers)
        none_fits = len(unknown) == len(keys) and layers != unknown
        if foreign or (none_fits and not others):
            whose = f"is a LoRA of {foreign}" if foreign else "is of another model"
            yield error(
                key,
                f"{path} {whose}: {family.title} has no layer {layers[0]!r}. Give one of this model.",
            )
            return
    if others:
        titles = " or ".join(one.title for one in others)
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
    model, as in a LoRA of a larger model.

    A missing or unreadable file (`unreadable`) and an unknown model yield nothing.
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
    """The layers of a model without the numbers of blocks, with underscores for dots.
    Layers that other programs fuse into one are listed under the fused name too."""
    layers = family.every_linear_layer(folder)
    kinds = {_flat(name) for name in (*layers, *named_elsewhere(layers))}
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


def _others(keys: Iterable[str], kinds: Iterable[str]) -> list[str]:
    """The keys that belong to none of these layers."""
    pattern = re.compile(f"(?:^|_)(?:{'|'.join(map(re.escape, kinds))})_")
    return [key for key in keys if not pattern.search(_flat(key))]
