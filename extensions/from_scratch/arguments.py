"""Compares the arguments that a job gives to a class of diffusers or transformers with
the parameters of the class. The class is read from its source, not imported, so a dry
run needs neither torch nor the library.

It checks names, types, and ranges, and the arguments that depend on each other. It does
not make a network. The sections call it: `flow_config`, `vae_config` and
`new_model_config`; `latent_flow.family` calls it for the config of a folder.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import to_json

from extensions.from_scratch.autoencoder_config import CONFIG, AutoencoderConfig
from toolkit.config.reading.located import NOWHERE, ConfigNode, KeyPath, dotted
from toolkit.config.reading.validate import explain
from toolkit.config.sections.model_files import (
    ORIGINAL_MODEL,
    quantization_fault,
    weight_files,
)
from toolkit.errors import UserError, did_you_mean
from toolkit.files.safetensors_io import tensor_shapes

SOURCES = {
    "AutoencoderKL": "diffusers/models/autoencoders/autoencoder_kl.py",
    "AutoencoderKLQwenImage": "diffusers/models/autoencoders/autoencoder_kl_qwenimage.py",
    "AutoencoderTiny": "diffusers/models/autoencoders/autoencoder_tiny.py",
    "SD3Transformer2DModel": "diffusers/models/transformers/transformer_sd3.py",
    "QwenImageTransformer2DModel": "diffusers/models/transformers/transformer_qwenimage.py",
    "QwenImage21Transformer2DModel": "diffusers/models/transformers/transformer_qwenimage21.py",
    "BertConfig": "transformers/models/bert/configuration_bert.py",
}
"""Class -> its file."""

PUBLISHED = "QwenImageTransformer2DModel"
"""The class of the published model's transformer."""

LEAST_VOCABULARY = 259
"""Tokens of the smallest tokenizer that is made from captions: every byte, and three
special ones."""

MOST_LAYERS = 200
"""Maximum number of layers of a network, or of one of its levels: three times the
number in the largest published ones."""

BOUNDS: tuple[tuple[str, float, float], ...] = (
    (r"dual_attention_layers", 0, MOST_LAYERS),
    (r"layers|blocks", 1, MOST_LAYERS),
    (r"dropout", 0, 0.99),
    (r"eps$|_range", 1e-30, 0.99),
    (r"pos_embed_max_size", 1, 1024),
    (r"patch_size", 1, 16),
    (r"^vocab_size", LEAST_VOCABULARY, 2**20),
    (r"_id$", 0, LEAST_VOCABULARY - 1),
    (r"scaling_factor|latents_std", 1e-30, 1e30),
    (r"shift|mean", -1e30, 1e30),
    (r"", 1, 2**20),
)
"""Pattern of an argument -> its smallest and largest number; the first pattern that
matches is used."""

FIXED: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {"in_channels": 3, "out_channels": 3},
    "AutoencoderKLQwenImage": {"input_channels": 3, "attn_scales": []},
    "AutoencoderTiny": {
        "in_channels": 3,
        "out_channels": 3,
        "upsampling_scaling_factor": 2,
    },
    "QwenImageTransformer2DModel": {"patch_size": 2, "use_additional_t_cond": False},
    "QwenImage21Transformer2DModel": {"causal_condition": True},
    "BertConfig": {"add_cross_attention": False},
}
"""Class -> arguments with one possible value: images have three channels, a level
halves or doubles the sides, and a forward pass has no further inputs."""

FITTED = (
    "in_channels",
    "out_channels",
    "joint_attention_dim",
    "pooled_projection_dim",
    "caption_projection_dim",
    "context_in_dim",
)
"""Arguments of a transformer that follow from the latents and the text embeddings."""

MOST_LEVELS = 10

LEVELS = (
    "block_out_channels",
    "dim_mult",
    "encoder_block_out_channels",
    "decoder_block_out_channels",
)
"""Arguments with one entry per level, each of which halves or doubles the sides."""

AS_MANY = {
    "down_block_types": ("block_out_channels", 0),
    "up_block_types": ("block_out_channels", 0),
    "num_encoder_blocks": ("encoder_block_out_channels", 0),
    "num_decoder_blocks": ("decoder_block_out_channels", 0),
    "temperal_downsample": ("dim_mult", -1),
}
"""Argument -> the argument that has as many entries, and the difference in number."""

MULTIPLES = {
    "block_out_channels": "norm_num_groups",
    "hidden_size": "num_attention_heads",
}
"""Argument -> the argument that divides it."""

CHOICES = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
    "upsample_fn": ("nearest", "nearest-exact", "bilinear", "bicubic", "area"),
    "qk_norm": ("rms_norm", "layer_norm", "fp32_layer_norm"),
}
"""Argument -> its values."""

ACTIVATIONS = {
    "act_fn": "diffusers/models/activations.py",
    "hidden_act": "transformers/activations.py",
}
"""Argument -> the file with the table of its values."""

Fault = tuple[KeyPath, str]
"""Path inside the arguments, and a message."""


def faults(
    class_name: str, arguments: Mapping[str, Any], of_file: bool = False
) -> Iterator[Fault]:
    """The faults in the arguments of a class. of_file: they are from a config.json,
    which may also have names that the class does not know, and names that follow from
    the other parts.

    >>> list(faults("AutoencoderKL", {"latent_channels": 0}))
    [(('latent_channels',), '0 is out of range: must be from 1 to 1,048,576.')]
    """
    parameters = _parameters(class_name)
    given = {
        name: value
        for name, value in arguments.items()
        if not of_file or name in parameters.model_fields
    }
    mistakes = list(_of_other_types(class_name, parameters, given))
    if not mistakes:
        for name, value in given.items():
            mistakes.extend(_out_of_range(name, value))
    yield from mistakes or _of_each_other(class_name, parameters, given, of_file)


def file_fault(file: Path, config: Mapping[str, Any]) -> str:
    """The first fault in the arguments of a config.json, whose class is in `SOURCES`;
    empty: none."""
    fault = next(faults(config["_class_name"], config, of_file=True), None)
    return f"{file}: {dotted(fault[0])}: {fault[1]}" if fault else ""


def autoencoder_fault(model: AutoencoderConfig) -> str:
    """The first fault in the files of an autoencoder's folder that can be found without
    reading weights; empty: none. Raises as `AutoencoderConfig.arguments`."""
    folder = model.folder()
    config = model.arguments()
    fault = quantization_fault(folder, "vae", ORIGINAL_MODEL)
    if fault:
        return fault
    try:
        for path in weight_files(folder):
            tensor_shapes(path)
    except UserError as error:
        return str(error)
    return file_fault(folder / CONFIG, config)


def _of_other_types(
    class_name: str, parameters: type[BaseModel], given: Mapping[str, Any]
) -> Iterator[Fault]:
    try:
        parameters.model_validate_json(to_json(given, inf_nan_mode="constants"))
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            key = detail["loc"]
            if detail["type"] == "extra_forbidden":
                hint = did_you_mean(str(key[0]), parameters.model_fields)
                yield key[:1], f"{class_name} has no such argument. {hint}"
            else:
                value = _as_written(detail["input"], key)
                yield (
                    tuple(
                        part for part in key if part in given or isinstance(part, int)
                    ),
                    explain(detail, value),
                )


def _as_written(value: Any, path: KeyPath) -> ConfigNode:
    """A value of a mapping as a node, without a place in a file."""
    inside = value
    if isinstance(value, dict):
        inside = {
            name: _as_written(item, (*path, name)) for name, item in value.items()
        }
    elif isinstance(value, list):
        inside = [_as_written(item, (*path, index)) for index, item in enumerate(value)]
    return ConfigNode(
        inside,
        path,
        NOWHERE,
        NOWHERE,
        text="" if inside is not value else json.dumps(value),
    )


def _out_of_range(name: str, value: Any) -> Iterator[Fault]:
    values = value if isinstance(value, list | tuple) else [value]
    if name in LEVELS and not 1 <= len(values) <= MOST_LEVELS:
        yield (name,), f"has {len(values)} entries: must be from 1 to {MOST_LEVELS}."
    least, most = next(
        (least, most) for pattern, least, most in BOUNDS if re.search(pattern, name)
    )
    for number in values:
        if not isinstance(number, bool | str | None) and not least <= number <= most:
            yield (
                (name,),
                f"{number} is out of range: must be from {least:,} to {most:,}.",
            )
    for text in values:
        known = _choices(name)
        if isinstance(text, str) and known and text not in known:
            yield (name,), f"{text!r} is unknown. {did_you_mean(text, known)}"


def _of_each_other(
    class_name: str,
    parameters: type[BaseModel],
    given: Mapping[str, Any],
    of_file: bool,
) -> Iterator[Fault]:
    is_transformer = "Transformer" in class_name
    for name, value in FIXED.get(class_name, {}).items():
        if given.get(name, value) != value:
            yield (name,), f"{given[name]}: only {value} is possible. Leave it out."
    if is_transformer and not of_file:
        for name in sorted(given.keys() & set(FITTED)):
            yield (
                (name,),
                "follows from the latents and the text encoder. Leave it out.",
            )
    values = {
        name: field.default for name, field in parameters.model_fields.items()
    } | dict(given)
    for name, (other, more) in AS_MANY.items():
        if name not in values:
            continue
        wanted = len(values[other]) + more
        if len(values[name]) != wanted:
            yield (
                (name,),
                f"has {len(values[name])} entries, {other} {len(values[other])}. Give it {wanted}.",
            )
    for name, other in MULTIPLES.items():
        widths = values.get(name, ())
        for width in widths if isinstance(widths, list | tuple) else [widths]:
            if other in values and width % values[other]:
                yield (
                    (name,),
                    f"{width} is not a multiple of {other}, which is {values[other]}. Change one of them.",
                )
    for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
        if len(set(values.get(name, ()))) > 1:
            yield (
                (name,),
                f"{list(values[name])}: {class_name} has the same channels at each level.",
            )
    if values.get("sample_size", 16) < values.get("patch_size", 1):
        yield (
            ("sample_size",),
            f"{values['sample_size']} is smaller than patch_size, which is {values['patch_size']}.",
        )
    if not is_transformer:
        return
    heads, head, layers = (
        values[name]
        for name in ("num_attention_heads", "attention_head_dim", "num_layers")
    )
    if "pos_embed_max_size" in values and heads * head % 4:
        yield (
            ("attention_head_dim",),
            f"{head} by {heads} heads is {heads * head}: must be a multiple of 4.",
        )
    if max(values.get("dual_attention_layers", ()), default=0) >= layers:
        yield (
            ("dual_attention_layers",),
            f"names layer {max(values['dual_attention_layers'])} of {layers} (from 0).",
        )
    if "axes_dims_rope" in given:
        axes = given["axes_dims_rope"]
        if sum(axes) != head or any(axis % 2 for axis in axes):
            yield (
                ("axes_dims_rope",),
                f"must be even numbers whose sum is attention_head_dim, which is {head}.",
            )
    elif "axes_dims_rope" in values and (head < 8 or head % 4):
        yield ("attention_head_dim",), f"{head} is not a multiple of 4 of at least 8."


# ------------------------------------------------------------ the classes


@cache
def _parameters(class_name: str) -> type[BaseModel]:
    """The parameters of a class with their types and defaults."""
    tree = ast.parse(_source(SOURCES[class_name]))
    class_node = next(
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    init = next(
        (
            node
            for node in class_node.body
            if isinstance(node, ast.FunctionDef) and node.name == "__init__"
        ),
        None,
    )
    declared: list[tuple[str, ast.expr | None, ast.expr | None]]
    if init:
        of_init = zip(init.args.args[1:], init.args.defaults, strict=True)
        declared = [
            (argument.arg, argument.annotation, default)
            for argument, default in of_init
        ]
    else:  # a dataclass
        fields = (node for node in class_node.body if isinstance(node, ast.AnnAssign))
        declared = [
            (ast.unparse(node.target), node.annotation, node.value) for node in fields
        ]
    fields_of: dict[str, Any] = {
        # diffusers writes tuple[int] for any number of them.
        name: (
            re.sub(r"tuple\[(\w+)\]", r"tuple[\1, ...]", ast.unparse(kind)),
            ast.literal_eval(default),
        )
        for name, kind, default in declared
        if kind and default
    }
    config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )
    return create_model(class_name, __config__=config, **fields_of)


@cache
def _choices(name: str) -> tuple[str, ...]:
    """The values of an argument that is a name; empty: any."""
    if name not in ACTIVATIONS:
        return CHOICES.get(name, ())
    for node in ast.parse(_source(ACTIVATIONS[name])).body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "ACT2CLS"
            and isinstance(node.value, ast.Dict)
        ):
            return tuple(ast.literal_eval(key) for key in node.value.keys if key)
    return ()


def _source(file: str) -> str:
    package, _, path = file.partition("/")
    spec = PathFinder.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places or ())), path).read_text(encoding="utf-8")
