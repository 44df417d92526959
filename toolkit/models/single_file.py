"""Reads the header of a part of a model in one safetensors file, as ComfyUI keeps it:
its tensors by the names of diffusers, and the reason why a file cannot be used.

Names are matched by tables. A name that is in no table stays unchanged, and is then
reported as a weight that the model does not have. The weights are read in `loading`,
where this module says how they are stored. `families` checks the files of a job,
`beside` recognises files, tools read and write single files with it. Imports no torch.

Source of the names: ComfyUI, model_detection.py (prefixes, markers), ops.py and
utils.py (scales, layer formats).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from toolkit.config.sections.model_files import is_decoder_only, lora_words
from toolkit.contracts.model import ROWS_OF, ModelFacts
from toolkit.files.safetensors_io import MAGIC, METADATA, read_header, tensor_shapes
from toolkit.files.writing import open_regular
from toolkit.models.encoder_weights import is_of_decoder, of_wan

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
OTHER_PARTS = (
    "vae.",
    "text_encoders.",
    "first_stage_model.",
    "cond_stage_model.",
    "conditioner.",
)
"""Beginnings of the names of other parts, in a checkpoint of ComfyUI that has them all.
They are not read from it."""

MARKERS = {"scaled_fp8": "", "__index_timestep_zero__": "Qwen-Image-Edit-2511"}
"""Tensors that are not weights -> title of the one model whose files have them. Empty:
files of any model may have them."""


def markers_of(title: str) -> list[str]:
    """The tensors without elements that a file of this model has for ComfyUI, in
    addition to its weights.

    >>> markers_of("Qwen-Image-Edit-2511")
    ['__index_timestep_zero__']
    """
    return [name for name, of_title in MARKERS.items() if of_title == title]


def unwritten(family: ModelFacts) -> str:
    """Why no file for ComfyUI is made of a model of this family; empty: one is. Of its
    tensors only the layers are known by their names there (`layer_names`)."""
    if not family.layer_names:
        return ""
    return f"no single file is made of a {family.title}, whose tensors have other names in ComfyUI."


SHARD = re.compile(r"(?P<stem>.+)-(\d{5})-of-(?P<count>\d{5})\.safetensors")
WEIGHT = ".weight"
SCALES = (".scale_weight", ".weight_scale")
"""Ends of the names of scales, which codes are multiplied by: one number, one for each
row, or one for each block of a row [O, blocks, 1]."""

FORMAT = ".comfy_quant"
"""End of the name of a tensor with JSON text, whose `format` says how ComfyUI has
quantized a layer."""

FORMATS = "_quantization_metadata"
"""Key of a file's metadata with the formats of all layers, in older files."""

READ_FORMATS = {"float8_e4m3fn": "F8_E4M3", "int8_tensorwise": "I8"}
"""`format` -> number type of the codes. int8_convrot is `int8_tensorwise` with
`convrot`."""

UNUSED = (".scale_input", ".input_scale", FORMAT)
"""Scales of activations, for products in fp8, and FORMAT."""

NUMBER_TYPES = {"F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}

OTHER_QUANTIZATIONS = {
    ".weight_scale_2": "in nvfp4",
    ".absmax": "in nf4 or another type of bitsandbytes",
    ".qweight": "in the 4 bits of Nunchaku",
}
"""Ends of names in quantizations that cannot be read -> words for the quantization."""

OTHER_MODELS = {
    "single_stream_modulation.lin.weight": "FLUX.2",
    "distilled_guidance_layer.in_proj.weight": "Chroma",
    "txt_in.individual_token_refiner.blocks.0.norm1.weight": "HunyuanVideo",
    "double_blocks.0.img_attn.qkv.weight": "FLUX.1",
    "joint_blocks.0.x_block.attn.qkv.weight": "Stable Diffusion 3",
    "blocks.0.self_attn.q.weight": "Wan",
    "layers.0.adaLN_modulation.0.weight": "Z-Image",
    "layers.0.attention.qkv.weight": "Lumina 2",
    "double_stream_blocks.0.block.adaLN_modulation.1.weight": "HiDream",
    "time_caption_embed.timestep_embedder.linear_1.weight": "OmniGen2",
    "patchify_proj.weight": "LTX-Video",
    "double_layers.0.attn.w1q.weight": "AuraFlow",
    "t5_yproj.weight": "Mochi",
    "t_block.1.weight": "PixArt",
    "mlp_t5.0.weight": "Hunyuan-DiT",
    "blocks.0.cross_attn.q_linear.weight": "Sana",
    "net.x_embedder.proj.1.weight": "Cosmos",
    "clip_txt_mapper.weight": "Stable Cascade",
    "label_emb.0.0.weight": "Stable Diffusion XL",
    "input_blocks.0.0.weight": "Stable Diffusion 1 or 2",
    "controlnet_blocks.0.weight": "a ControlNet",
}
"""A weight -> the model that has it. The first entry that a file has counts."""

TEXT_NAMES = {
    "model.language_model.": "language_model.",
    "model.visual.": "visual.",
    "model.": "language_model.",
}
"""Beginnings of the names of a text encoder, as published or as in ComfyUI's files ->
beginnings in transformers' module. The first entry that fits counts."""

HEAD = "lm_head.weight"
VL_WEIGHTS = ("language_model.embed_tokens.weight", "visual.patch_embed.proj.weight")

OF_ENCODERS: Mapping[str, tuple[str, Sequence[Sequence[str]]]] = {
    "vae": ("a VAE of this model", (["decoder.conv_in.weight"],)),
    "text_encoder": ("a text encoder with its vision tower", (VL_WEIGHTS,)),
    "captioner": ("a Qwen2.5-VL with its language-model head", ([*VL_WEIGHTS, HEAD],)),
}
"""Part -> words for it, and the weights by which it is recognised."""


def part_words(part: str) -> str:
    """Words for a part of any model.

    >>> part_words("vae")
    'a VAE'
    """
    return OF_ENCODERS[part][0].removesuffix(" of this model")


REMEDY = "Give the bf16 file, or one in fp8 (e4m3fn) or int8_convrot."


@dataclass(frozen=True)
class Stored:
    """The place of a weight in the file.

    >>> stored_weights({"model.diffusion_model.img_in.weight": (3072, 64)})
    {'img_in.weight': Stored(name='model.diffusion_model.img_in.weight', ...)}
    """

    name: str
    shape: tuple[int, ...]
    """Shape of the weight. The tensor may have more rows (see `half`)."""

    scale: str = ""
    """Name of the tensor that it is multiplied by; empty: none."""

    half: int | None = None
    """0, 1: it is the first or second half of the tensor's rows. None: all rows."""


def stored_weights(
    shapes: Mapping[str, tuple[int, ...]], names: Callable[[str], str] = str
) -> dict[str, Stored]:
    """The weights of a file with these tensors, by the names of diffusers.

    names: from a name in the file without its prefix to the name in diffusers.
    """
    weights: dict[str, Stored] = {}
    for name, shape in shapes.items():
        bare = names(without_prefix(name))
        if (
            bare in MARKERS
            or bare.endswith((*SCALES, *UNUSED))
            or name.startswith(OTHER_PARTS)
        ):
            continue
        stem, scale = name.removesuffix(WEIGHT), ""
        if stem != name:
            scale = next((stem + end for end in SCALES if stem + end in shapes), "")
        layer, _, kind = bare.rpartition(".")
        whole = next((end for end in ROWS_OF if layer.endswith(f".{end}")), "")
        if not whole:
            weights[bare] = Stored(name, shape, scale)
            continue
        for half, part in enumerate(ROWS_OF[whole]):
            weights[f"{layer.removesuffix(whole)}{part}.{kind}"] = Stored(
                name, (shape[0] // 2, *shape[1:]), scale, half
            )
    return weights


def layer_formats(path: Path) -> dict[str, Mapping[str, Any]]:
    """Name of each quantized layer in one file -> its `format` and settings, as ComfyUI
    wrote them. Text that is not JSON is returned as the format.

    path: a file that `tensor_shapes` can read.
    """
    with open_regular(path) as file:
        header = read_header(file)
        begin = file.tell()
        texts = {}
        for name in (name for name in header if name.endswith(FORMAT)):
            first, last = header[name]["data_offsets"]
            file.seek(begin + first)
            texts[name.removesuffix(FORMAT)] = file.read(last - first).decode(
                errors="replace"
            )
    metadata = header.get(METADATA)
    text = str(metadata.get(FORMATS)) if isinstance(metadata, dict) else ""
    layers = _json(text).get("layers")
    formats = {**layers} if isinstance(layers, dict) else {}
    formats |= {layer: _json(text) or {"format": text} for layer, text in texts.items()}
    return {
        layer: layer_format
        if isinstance(layer_format, dict)
        else {"format": layer_format}
        for layer, layer_format in formats.items()
    }


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    except (ValueError, RecursionError):
        return {}


def _group(layer_format: Mapping[str, Any]) -> Any:
    """The number of inputs of a layer that are rotated together; 0: not rotated."""
    is_rotated = layer_format.get("convrot")
    return layer_format.get("convrot_groupsize", 256) if is_rotated else 0


def rotations_of(path: Path) -> dict[str, int]:
    """Layers in `shards_of` whose inputs are rotated -> how many inputs at a time."""
    return {
        layer: group
        for shard in shards_of(path)
        for layer, layer_format in layer_formats(shard).items()
        if (group := _group(layer_format))
    }


def _format_fault(
    layer_format: Mapping[str, Any],
    weight: tuple[int, ...],
    stored: str,
    has_scale: bool,
) -> str:
    """The reason why a layer of this format and shape, with this number type, cannot be
    read. Empty: it can."""
    name = layer_format.get("format")
    group = _group(layer_format)
    if name not in READ_FORMATS:
        return f"is in {name!r}, which is not read"
    if (stored == "I8") != (READ_FORMATS[name] == "I8"):
        return f"is in {name!r} by what the file says, and its weight is {stored}"
    if READ_FORMATS[name] == "I8" and not has_scale:
        return "is in int8 without a scale"
    is_power = (
        isinstance(group, int)
        and group > 3
        and group.bit_count() == 1
        and group.bit_length() % 2
    )
    if layer_format.get("convrot") and not (
        is_power and len(weight) == 2 and weight[1] % group == 0
    ):
        return f"of the shape {weight} is rotated in groups of {group!r}, which is not a power of 4 that divides it"
    return ""


def scale_fits(scale: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can scale a weight [O, I]: the whole weight, its
    rows, or blocks of its rows.

    >>> scale_fits((8, 1), weight=(8, 64)), scale_fits((5,), weight=(8, 64))
    (True, False)
    """
    count = prod(scale)
    by_rows = bool(weight) and scale[:1] == weight[:1] and count % weight[0] == 0
    return count == 1 or (by_rows and prod(weight[1:]) % (count // weight[0]) == 0)


def without_prefix(name: str) -> str:
    """A tensor's name without the prefix of ComfyUI.

    >>> without_prefix("model.diffusion_model.img_in.weight")
    'img_in.weight'
    """
    return next(
        (name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)),
        name,
    )


def shards_of(path: Path) -> list[Path]:
    """The files of a part: this file, or all shards where it has the name of one.

    >>> [file.name for file in shards_of(Path("x-00001-of-00002.safetensors"))]
    ['x-00001-of-00002.safetensors', 'x-00002-of-00002.safetensors']
    """
    shard = SHARD.fullmatch(path.name)
    if not shard:
        return [path]
    stem = shard["stem"]
    count = int(shard["count"])
    return [
        path.with_name(f"{stem}-{at:05d}-of-{count:05d}.safetensors")
        for at in range(1, count + 1)
    ]


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor in `shards_of`. Raises as `tensor_shapes`."""
    return {
        name: shape
        for shard in shards_of(path)
        for name, shape in tensor_shapes(shard).items()
    }


def unread(path: Path) -> str:
    """The reason why the weights of a file and its shards cannot be read, whatever the
    model. Empty: they can. Raises UserError if a file is damaged."""
    return next(
        (fault for shard in shards_of(path) if (fault := _unread_file(shard))), ""
    )


def _unread_file(path: Path) -> str:
    if not path.is_file():
        return f"{path} does not exist (working directory: {Path.cwd()}). Give the file where it is now."
    try:
        with open_regular(path) as file:
            words = MAGIC.get(file.read(4))
            if words:
                return f"{path} is {words}, which is not read. {REMEDY}"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror or error}). Give a file that this user may read."
    shapes = tensor_shapes(path)
    formats = layer_formats(path)
    with open_regular(path) as file:
        header = read_header(file)
    types = {
        name: header[name]["dtype"]
        for name in shapes
        if not name.startswith(OTHER_PARTS)
    }
    shapes = {name: shapes[name] for name in types}
    for layer, layer_format in formats.items():
        name = layer + WEIGHT
        stored = types.pop(name, "")
        # Without it, it belongs to another part, or is reported as missing.
        if stored:
            has_scale = any(layer + end in shapes for end in SCALES)
            fault = _format_fault(layer_format, shapes[name], stored, has_scale)
            if fault:
                return f"{path}: {layer} {fault}. {REMEDY}"
    for end, words in OTHER_QUANTIZATIONS.items():
        if any(name.endswith(end) for name in shapes):
            return f"{path} is {words}, which is not read. {REMEDY}"
    for one in stored_weights(shapes).values():
        if one.scale and not scale_fits(shapes[one.scale], shapes[one.name]):
            return f"{path}: {one.scale} is {shapes[one.scale]}, which is not a scale of its weight. {REMEDY}"
    other = {
        stored for name, stored in types.items() if not name.endswith(FORMAT)
    } - NUMBER_TYPES
    if other:
        return f"{path}: has weights in {', '.join(sorted(other))}, which is not read. {REMEDY}"
    return ""


def encoder_file_fault(
    path: Path, part: str, expected: Mapping[str, tuple[int, ...]]
) -> str:
    """The reason why a file is not this part. Empty: by its header it is. Raises as
    `unread`.

    part: a key of OF_ENCODERS. expected: shapes from `toolkit.models.encoder_weights`;
    empty: not known.
    """
    fault = unread(path)
    if fault:
        return fault
    words, ways = OF_ENCODERS[part]
    stored = encoder_stored(path)
    if part not in encoders_in(stored):
        return f"{path}: has no {' and '.join(ways[0])}, so is not {words}. Give another file."
    missing = expected.keys() - stored.keys()
    unexpected = stored.keys() - expected.keys() - {HEAD}
    if part == "vae" and is_decoder_only(path):  # the model folder has the encoder
        missing = set(filter(is_of_decoder, missing))
        unexpected |= {name for name in stored if not is_of_decoder(name)}
    if not expected:
        return ""
    for name, shape in expected.items():
        if name in stored and shape and not _has_shape(stored[name].shape, shape):
            return f"{path}: {name} is {stored[name].shape}, so is not {words}. Give a file of this model."
    if unexpected:
        return f"{path}: weights that this model does not have: {some(unexpected)}. Give a file of this model."
    if missing:
        return f"{path}: missing weights: {some(missing)}. Give the whole file."
    return ""


def _has_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(
        side in (0, has) for side, has in zip(expected, shape, strict=True)
    )


def encoder_stored(path: Path) -> dict[str, Stored]:
    """The weights of an encoder's file, by the names in diffusers and transformers."""
    return stored_weights(shapes_of(path), lambda name: of_wan(text_encoder_name(name)))


def encoders_in(names: Collection[str]) -> list[str]:
    """The parts, keys of OF_ENCODERS, that are recognised by these weights.

    >>> encoders_in(["decoder.conv_in.weight"])
    ['vae']
    """
    return [
        part
        for part, (_, ways) in OF_ENCODERS.items()
        if any(set(way) <= set(names) for way in ways)
    ]


def text_encoder_name(name: str) -> str:
    """The name of a weight in transformers' module without its head.

    >>> text_encoder_name("model.layers.0.mlp.up_proj.weight")
    'language_model.layers.0.mlp.up_proj.weight'
    """
    return next(
        (
            new + name.removeprefix(old)
            for old, new in TEXT_NAMES.items()
            if name.startswith(old)
        ),
        name,
    )


def single_file_fault(
    path: Path,
    title: str,
    expected: Mapping[str, tuple[int, ...]],
    others: Mapping[str, Collection[str]],
) -> str:
    """The reason why a file is not the transformer with these weights. Empty: by its
    header it is.

    title: of the model. expected: name -> shape. others: titles of other models ->
    names of their weights. Raises UserError for a damaged file.
    """
    fault = unread(path)
    if fault:
        return fault
    shapes = shapes_of(path)
    stored = stored_weights(shapes)
    bare = set(map(without_prefix, shapes))
    markers = {
        name: other for name, other in MARKERS.items() if other not in ("", title)
    }
    other = next(
        (
            other
            for name, other in (OTHER_MODELS | markers).items()
            if name in bare - expected.keys()
        ),
        "",
    )
    if other:
        return f"{path}: this is {other}. Give a file of {title}."
    missing = expected.keys() - stored.keys()
    unexpected = stored.keys() - expected.keys()
    if unexpected:
        words = lora_words(path)
        if words:
            return f"{path} is not a transformer. {words}"
        parts = encoders_in(encoder_stored(path))
        if parts:
            return f"{path}: this is {part_words(parts[0])}: that is model.{parts[0]}_path. Give a file of {title}."
        nearer = (
            f"this is {other}"
            for other, names in others.items()
            if len(stored.keys() - names) < len(unexpected)
        )
        unlike = f"weights that a {title} does not have: {some(unexpected)}"
        return f"{path}: {next(nearer, unlike)}. Give a file of {title}."
    if missing:
        return f"{path}: missing weights: {some(missing)}. Give the whole transformer in one file."
    for name, shape in expected.items():
        if stored[name].shape != shape:
            return f"{path}: {name} is {stored[name].shape}, this model has {shape}. Give a file of this model."
    return ""


def some(names: Collection[str], most: int = 3) -> str:
    """The first of these names, for a message.

    >>> some(["norm", "bias", "proj"], most=2)
    'bias, norm and 1 more'
    """
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
