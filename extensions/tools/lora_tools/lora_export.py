"""Reads adapter files in any known form, and writes them in the form of one program.

A program is a row of `FORMATS`: the kinds of change that it reads correctly. The rows
were found by running the program on generated files (ComfyUI a125cd84, diffusers 0.42.1
with peft 0.21.2) or from its source (ComfyUI's names of layers at 17358c8f,
musubi-tuner 0.3.4, ai-toolkit). Numbers are not rounded: they keep the dtype of the
file, and where a scale has to go into a matrix and does not fit into that dtype, the
file becomes float32.

The tools for LoRA files call it through `files.read_lora` and `process`;

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from toolkit.config.sections.model_files import named_elsewhere
from toolkit.errors import UserError
from toolkit.networks.adapter_settings import CONFIG_FILE, HEADER_METADATA
from toolkit.networks.lora_formats import (
    MATMUL_PAIRS,
    NO_BIAS,
    LayerDelta,
    fused_layers,
    ignores_alpha,
    own_names,
    parse_adapter_tensors,
    rank_of,
    read_tensors,
)
from toolkit.networks.multiplied import TITLES
from toolkit.networks.spelling import DIFFUSERS, spelling_for_layers

Layers = Mapping[str, tuple[int, int]] | Collection[str]
"""Full module name -> (inputs, outputs); names alone: layers of any size."""


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file as it was read.

    Example::

        file = read_lora("output/my_character.safetensors", None)
        print(file.kinds, file.dtype, len(file.changes))
    """

    path: Path
    changes: dict[str, LayerDelta]
    """Changes by full dotted module name."""

    dtype: torch.dtype
    """Dtype of its matrices; float32 if there are several."""

    metadata: dict[str, str]
    layers: Layers = ()
    """The layers of the model that it belongs to."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of change in the file, such as ("lora",) or ("dora", "lora")."""
        return tuple(sorted({kind_of(change) for change in self.changes.values()}))


def read_adapter(
    path: Path, models: Collection[Layers], any_model: bool = False
) -> AdapterFile:
    """Reads a file whose model has the linear layers of one of `models`. any_model:
    layers of other names are accepted too.

    Raises UserError where the file cannot be read or belongs to none of the models,
    with the reason for the first of them, and without `any_model` where it changes
    nothing.
    """
    tensors, metadata = read_tensors(path)
    if not tensors:
        raise UserError(f"{path}: holds no tensors.")
    refused: list[UserError] = []
    for layers in (*models, own_names(tensors)) if any_model else models:
        try:
            changes = parse_adapter_tensors(tensors, layers, str(path), metadata)
        except UserError as error:
            refused.append(error)
            continue
        if not changes and not any_model:
            raise UserError(
                f"{path}: changes nothing: all that it adds is zero. Give another file."
            )
        dtypes = {tensor.dtype for tensor in tensors.values() if tensor.dim() >= 2}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        return AdapterFile(path, changes, dtype, metadata, layers)
    raise refused[0]


def kind_of(change: LayerDelta) -> str:
    """The kind of a change: lora, loha, lokr, oft, boft or glora, or dora where it has
    a magnitude."""
    return _base_kind(change) if change.magnitude is None else "dora"


def _base_kind(change: LayerDelta) -> str:
    if change.multiplied:
        return change.multiplied.name(change.parts)
    if "up" in change.parts:
        return "lora"
    return "loha" if "hada_w1_a" in change.parts else "lokr"


@dataclass(frozen=True)
class Format:
    """The form of adapter files that one program reads.

    >>> FORMATS["kohya"].stem("transformer_blocks.0.attn.to_q")
    'lora_unet_transformer_blocks_0_attn_to_q'
    """

    title: str
    prefix: str
    """Text before the module's name."""

    is_flat: bool = False
    """Whether `_` stands for each dot of the module's name."""

    down_up: tuple[str, str] = (".lora_A.weight", ".lora_B.weight")
    has_alpha: bool = True
    """Whether a LoRA has an alpha. Without one its scale is in the up matrix. LoHa and
    LoKr always have an alpha."""

    kinds: tuple[str, ...] = ("lora", "loha", "lokr")
    """Kinds of change that it reads correctly."""

    column_magnitude: str = ""
    """Key of a DoRA's norms of input columns [1, I]; empty: it does not read them
    correctly."""

    row_magnitude: str = ""
    """Key of a DoRA's norms of output rows [O, 1]."""

    has_own_prefix: bool = False
    """Whether the model's own spelling gives the prefix, with which ComfyUI finds all
    layers."""

    is_fused: bool = False
    """Whether layers that are one layer in ComfyUI's weights (`lora_formats.ROWS_OF`)
    are one layer in the file."""

    bias: str = ""
    """Key of the change of a bias; empty: it does not read such changes."""

    flat_magnitude: bool = False
    """The norms are written as [O]."""

    has_authors_names: bool = False
    """Whether layers have the names of the model's authors (`ModelFacts.layer_names`),
    and are joined as these are, where diffusers names them otherwise (`DIFFUSERS`)."""

    def for_file(self, file: AdapterFile) -> Format:
        """The form with the prefix for the model of a file."""
        if not self.has_own_prefix:
            return self
        spelling = spelling_for_layers(file.changes, file.layers)
        return replace(self, prefix=spelling.prefix)

    def wholes(self, file: AdapterFile) -> dict[str, tuple[str, ...]]:
        """Layer of the program's model -> the layers of ours that it consists of, where
        it has another name and the file changes any."""
        wholes: dict[str, tuple[str, ...]] = {}
        if self.is_fused:
            wholes = fused_layers(file.layers)
        elif self.has_authors_names:
            # Elsewhere these programs train the layers of diffusers.
            if spelling_for_layers((), file.layers) is DIFFUSERS:
                wholes = named_elsewhere(file.layers)
        changed = file.changes.keys()
        return {
            w: parts for w, parts in wholes.items() if not changed.isdisjoint(parts)
        }

    def stem(self, module: str) -> str:
        """The beginning of the keys of a module."""
        return self.prefix + (module.replace(".", "_") if self.is_flat else module)


_DOWN_UP = (".lora_down.weight", ".lora_up.weight")

FORMATS: dict[str, Format] = {
    "comfyui": Format(
        "ComfyUI",
        "diffusion_model.",
        column_magnitude=".dora_scale",
        bias=".diff_b",
        has_own_prefix=True,
    ),
    "comfyui-fused": Format(
        "ComfyUI with fused layers",
        "diffusion_model.",
        column_magnitude=".dora_scale",
        bias=".diff_b",
        is_fused=True,
    ),
    "diffusers": Format(
        "diffusers",
        "transformer.",
        has_alpha=False,
        kinds=("lora",),
        row_magnitude=".lora_magnitude_vector",
        flat_magnitude=True,
    ),
    "kohya": Format(
        "kohya's sd-scripts",
        "lora_unet_",
        is_flat=True,
        down_up=_DOWN_UP,
        column_magnitude=".dora_scale",
        row_magnitude=".dora_scale",
        has_authors_names=True,
    ),
    "musubi": Format(
        "musubi-tuner",
        "lora_unet_",
        is_flat=True,
        down_up=_DOWN_UP,
        has_authors_names=True,
    ),
    "aitk": Format(
        "ai-toolkit",
        "diffusion_model.",
        has_alpha=False,
        kinds=("lora", "lokr"),
        has_authors_names=True,
    ),
}


def why_not_exported(file: AdapterFile, target: Format) -> list[str]:
    """Why a program would not read the file correctly; empty: it reads it correctly."""
    reasons: dict[str, None] = {}
    for change in file.changes.values():
        kind = _base_kind(change)
        magnitude = change.magnitude
        if kind not in target.kinds:
            reasons[f"{target.title} does not read {_TITLES[kind]}"] = None
        if magnitude is not None and not _magnitude_key(magnitude, target):
            axis = "rows" if len(magnitude) > 1 else "columns"
            norms = f"a DoRA with norms of {axis}"
            reasons[f"{target.title} does not read {norms} as it is meant"] = None
        if change.bias is not None and not target.bias:
            reasons[f"{target.title} does not read changes of biases"] = None
    for parts in target.wholes(file).values():
        there = (file.changes[part] for part in parts if part in file.changes)
        kinds = sorted(set(map(kind_of, there)))
        if len(parts) > 1 and kinds not in (["lora"], ["loha"]):
            named = " and ".join(_TITLES[kind] for kind in kinds)
            joined = f"{target.title} joins layers, which cannot be written of {named}"
            reasons[joined] = None
    return list(reasons)


_TITLES = {
    "lora": "a LoRA",
    "loha": "a LoHa",
    "lokr": "a LoKr",
    "dora": "a DoRA",
    **TITLES,
}


def _magnitude_key(magnitude: Tensor, target: Format) -> str:
    return target.row_magnitude if len(magnitude) > 1 else target.column_magnitude


def export(file: AdapterFile, target: Format) -> dict[str, Tensor]:
    """The tensors of the file in the form of a program. Raises UserError where that
    form cannot hold them."""
    reasons = why_not_exported(file, target)
    if reasons:
        raise UserError(
            f"{file.path}: {'; '.join(reasons)}. Merge it into the model, or extract a LoRA of it."
        )
    target = target.for_file(file)
    changes = _joined(file.changes, target.wholes(file))
    tensors = {
        target.stem(module) + suffix: tensor.contiguous()
        for module, change in changes.items()
        for suffix, tensor in _written(change, target).items()
    }
    exact = {name: tensors[name] for name in tensors if not name.endswith(".alpha")}
    rounded = {name: tensor.to(file.dtype) for name, tensor in exact.items()}
    fits = all(rounded[name].float().equal(exact[name]) for name in exact)
    return tensors | (rounded if fits else exact)


def _joined(
    changes: Mapping[str, LayerDelta], wholes: Mapping[str, Sequence[str]]
) -> dict[str, LayerDelta]:
    """The changes with layers in parts joined to one, exactly. Columns of the left
    factor are multiplied only with rows of the right factor of the same part, so that
    ranks add up. A part that is not changed has no rank."""
    joined = dict(changes)
    for whole, parts in wholes.items():
        if len(parts) == 1:
            joined[whole] = joined.pop(parts[0])
            continue
        first = next(changes[part] for part in parts if part in changes)
        scale = first.scale or 1.0
        empty = LayerDelta({name: _no_rank(first, name) for name in first.parts}, 0.0)
        deltas = [joined.pop(part, empty) for part in parts]
        tensors: dict[str, Tensor] = {}
        for left, right in MATMUL_PAIRS:
            if left in first.parts:
                pieces = [one.parts[left] for one in deltas]
                if left in ("up", "hada_w1_a"):
                    pieces = [one.scale / scale * one.parts[left] for one in deltas]
                tensors[left] = torch.block_diag(*pieces)
                tensors[right] = torch.cat([one.parts[right] for one in deltas])
        if any(one.bias is not None for one in deltas):
            raise UserError(f"the bias of {whole} is changed. {NO_BIAS}")
        joined[whole] = LayerDelta(tensors, scale)
    return joined


def _no_rank(change: LayerDelta, part: str) -> Tensor:
    outputs, inputs = change.shape
    is_left = any(part == left for left, _ in MATMUL_PAIRS)
    return torch.zeros((outputs, 0) if is_left else (0, inputs))


def _written(change: LayerDelta, target: Format) -> dict[str, Tensor]:
    """Suffix -> tensor of one module, float32."""
    parts = dict(change.parts)
    scale = change.scale
    # Only peft applies a strength to two whole factors.
    if ignores_alpha(parts):
        parts["lokr_w1"] = scale * parts["lokr_w1"]
        scale = 1.0
    magnitude = parts.pop("dora_scale", None)
    if "up" in parts:
        down, up = target.down_up
        written = {
            down: parts["down"],
            up: parts["up"] if target.has_alpha else scale * parts["up"],
        }
    else:
        written = {f".{name}": tensor for name, tensor in parts.items()}
    if target.has_alpha or "up" not in parts:
        written[".alpha"] = torch.tensor(scale * rank_of(parts))
    if magnitude is not None:
        key = _magnitude_key(magnitude, target)
        written[key] = magnitude.flatten() if target.flat_magnitude else magnitude
    if change.bias is None:
        return written
    return {**(written if change.has_weight else {}), target.bias: change.bias}


OF_THE_FORM = (HEADER_METADATA, CONFIG_FILE, "sha256", "format")
"""Metadata that are true of one form of a file only."""


def kept_metadata(file: AdapterFile, target: Format | None = None) -> dict[str, str]:
    """The file's metadata without the entries that are true of its own form only. In a
    form without alphas, the entries for alpha become the rank."""
    before = file.metadata
    metadata = {key: before[key] for key in before if key not in OF_THE_FORM}
    if target and not target.has_alpha and "lora" in file.kinds:
        for alpha, rank in (("alpha", "rank"), ("ss_network_alpha", "ss_network_dim")):
            if alpha in metadata and metadata.get(rank):
                metadata[alpha] = metadata[rank]
    return metadata
