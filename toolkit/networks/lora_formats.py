"""Reads adapter files of other programs: which change of which weight a file means, whatever its key names.

Known: LoRA, LoHa and LoKr, with or without DoRA, under every module prefix that ComfyUI or diffusers accept, and what
peft saves. The meaning of alpha and of diffusers' header metadata is theirs too; `docs/correctness.md` lists the files
it was checked with.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toolkit.errors import UserError
from toolkit.files.safetensors_io import check_count
from toolkit.models.interface import ROWS_OF
from toolkit.networks.adapter_settings import CONFIG_FILE, PEFT_PREFIX, AdapterSettings, read_settings

PREFIXES = (
    "base_model.model.transformer.", "base_model.model.", "pipe.dit.", "diffusion_model.", "transformer.",
    "lora_transformer_", "lora_unet_", "lycoris_", "",
)  # fmt: skip
"""Put before the module's name by one program or another; the flat ones write `_` for each dot."""

PARTS = {
    **{f".lora_{matrix}{end}": part for matrix, part in (("A", "down"), ("B", "up")) for end in ("", ".weight")},
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    **{f"{start}{part}.weight": part for start in (".lora_", ".lora.", "_lora.") for part in ("down", "up")},
    **{f".lora_linear_layer.{part}.weight": part for part in ("down", "up")},
    ".alpha": "alpha",
    ".diff_b": "bias",
    ".dora_scale": "dora_scale",
    **{f".lora_magnitude_vector{end}": "row_norms" for end in ("", ".weight", ".default.weight")},
    **{f".{name}": name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
    **{f".{name}": name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
}
"""Suffix of a key -> the part of the module it holds."""

UNSUPPORTED_KEYS = {
    ".diff": "whole changes of weights (diff)",
    ".set_weight": "whole weights (set_weight)",
    ".w_norm": "changes of norms (w_norm)",
    ".b_norm": "changes of norms (b_norm)",
    ".oft_blocks": "an OFT",
    ".oft_diag": "an OFT",
    ".on_input": "an IA3",
    ".a1.weight": "a GLoRA",
    ".lora_mid.weight": "a convolution's LoRA",
    ".hada_t1": "a convolution's LoHa",
    ".hada_t2": "a convolution's LoHa",
    ".lokr_t2": "a convolution's LoKr",
    ".lora_B.bias": "changes of biases (lora_bias)",
    ".scale_weight": "scaled float8 weights",
}
"""Suffix of a key of a form that is not read -> what it is, for the message."""

ADDED = (".diff", ".diff_b")
"""Suffixes of what is added to a weight or bias. Zeros, as ComfyUI extracts them of each norm and bias that did not
change, are ignored, whatever layer they are of."""

MATMUL_PAIRS = (
    ("up", "down"),
    ("hada_w1_a", "hada_w1_b"),
    ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
)
"""Parts that are multiplied as matrices."""

NO_BIAS = "This model has none there. Use the file with the model it is of."
"""For a file that changes the bias of a layer without one."""


@dataclass(frozen=True)
class LayerDelta:
    """What a file does to one linear layer."""

    parts: Mapping[str, Tensor]
    """Float32, by the names in PARTS; alpha excluded, row_norms as dora_scale [O, 1]."""

    scale: float

    bias: Tensor | None = None
    """What is added to the layer's bias [O], float32. A layer whose bias alone is changed has matrices of rank 0."""

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """(up_OR, down_RI) with the scale in `up`, for a plain LoRA."""
        return (self.scale * self.parts["up"], self.parts["down"]) if "up" in self.parts else None

    @property
    def magnitude(self) -> Tensor | None:
        """For a DoRA: the norms its weight gets, [1, I] of input columns or [O, 1] of output rows."""
        return self.parts.get("dora_scale")

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the weight it belongs to."""
        p = self.parts
        if "up" in p:
            return p["up"].shape[0], p["down"].shape[1]
        if "hada_w1_a" in p:
            return p["hada_w1_a"].shape[0], p["hada_w1_b"].shape[1]
        (rows, columns), (more_rows, more_columns) = factor(p, "lokr_w1").shape, factor(p, "lokr_w2").shape
        return rows * more_rows, columns * more_columns

    @property
    def has_weight(self) -> bool:
        """False where its bias alone is changed."""
        return "up" not in self.parts or bool(self.parts["up"].numel())

    @property
    def is_zero(self) -> bool:
        """Whether one of its factors is all zero, and its bias; never of a DoRA, whose norms may change the weight all
        the same."""
        if self.magnitude is not None or self.bias is not None:
            return False
        return self.scale == 0 or not all(part.any() for part in self.parts.values())

    def split(self, count: int) -> list[LayerDelta]:
        """The changes of `count` layers that have its outputs, one after the other and equally many. Raises ValueError
        where they are of none of these forms: a DoRA with norms of columns, a LoKr whose first factor does not split.
        """
        of_rows = ("up", "hada_w1_a", "hada_w2_a", "lokr_w1", "lokr_w1_a", "dora_scale")
        rows = {name: part.chunk(count) for name, part in self.parts.items() if name in of_rows}
        if any(len(self.parts[name]) % count for name in rows):
            raise ValueError(f"{list(rows)} cannot be split into {count}")
        of_each = [{name: rows[name][i] if name in rows else p for name, p in self.parts.items()} for i in range(count)]
        biases = [None] * count if self.bias is None else self.bias.chunk(count)
        # Copies: safetensors writes no tensors that share memory.
        return [
            LayerDelta({name: part.clone() for name, part in parts.items()}, self.scale, bias)
            for parts, bias in zip(of_each, biases, strict=True)
        ]

    def to(self, device: torch.device) -> LayerDelta:
        """The same on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return LayerDelta({name: part.to(device) for name, part in self.parts.items()}, self.scale, bias)

    def applied_to(self, weight_OI: Tensor) -> Tensor:
        """The weight that the file makes of `weight_OI` (float32)."""
        changed_OI = weight_OI + self.delta()
        if self.magnitude is None:
            return changed_OI
        return changed_OI * (self.magnitude / dora_norm(changed_OI, axis=0 if self.magnitude.shape[0] == 1 else 1))

    def delta_for(self, weight_OI: Tensor) -> Tensor:
        """What the file adds to `weight_OI` (float32), the magnitude of a DoRA included."""
        return self.delta() if self.magnitude is None else self.applied_to(weight_OI) - weight_OI

    def delta(self) -> Tensor:
        """The change of the weight [O, I]; of a DoRA, the one before its magnitude.

        Formulas: LyCORIS 4.1.3, equal to its training forward pass.
        """
        p = self.parts
        if "up" in p:
            return self.scale * p["up"] @ p["down"]
        if "hada_w1_a" in p:
            return self.scale * (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
        return self.scale * torch.kron(factor(p, "lokr_w1"), factor(p, "lokr_w2"))


def dora_norm(weight_OI: Tensor, axis: int) -> Tensor:
    """Norms of columns (axis 0, [1, I]) or rows (axis 1, [O, 1]); never zero."""
    return weight_OI.norm(dim=axis, keepdim=True).clamp_min(torch.finfo(weight_OI.dtype).tiny)


def factor(parts: Mapping[str, Tensor], name: str) -> Tensor:
    """A factor of a LoKr, `lokr_w1` or `lokr_w2`, multiplied out where it is low-rank."""
    return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]


def load_adapter_file(
    path: Path, layers: Mapping[str, tuple[int, int]] | Iterable[str], weights: Collection[str] = ()
) -> dict[str, LayerDelta]:
    """The changes a file makes, by full dotted module name.

    layers: names of all linear layers of the model; a mapping to (inputs, outputs) has the shapes checked too. weights:
    names of all weights and biases of the model, for which changes of biases are checked; none: not known. Raises
    UserError when the file cannot be read, holds keys of no known form or of layers or biases this model does not have,
    lacks a matrix, has matrices that do not fit, or holds numbers that are not finite.
    """
    tensors, metadata = read_tensors(path)
    changes = parse_adapter_tensors(tensors, layers, str(path), metadata)
    biases = (name for name, change in changes.items() if change.bias is not None)
    if weights and (absent := next((name for name in biases if f"{name}.bias" not in weights), "")):
        raise UserError(f"{path}: the bias of {absent} is changed. {NO_BIAS}")
    return changes


def parse_adapter_tensors(
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, tuple[int, int]] | Iterable[str],
    source: str,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, LayerDelta]:
    """`load_adapter_file` for tensors in memory; `source` names them in messages."""
    settings = settings_of(source, tensors, metadata or {})
    fused = fused_layers(layers)
    names = {spelling: name for name in (*layers, *fused) for spelling in (name, name.replace(".", "_"))}
    grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
    key_of: dict[tuple[str, str], str] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        if adds_nothing(key, tensor):
            continue
        place = _locate(key, names)
        if place is None:
            unknown.append(key)
        elif place in key_of:
            raise UserError(f"{source}: {place[0]} is changed twice, by {key_of[place]!r} and {key!r}.")
        else:
            key_of[place] = key
            grouped[place[0]][place[1]] = tensor.float()
    if unknown:
        raise UserError(_about_unknown(source, sorted(unknown)))
    changes: dict[str, LayerDelta] = {}
    for name, parts in grouped.items():
        bias = _bias(source, name, parts)
        whole = _module(source, name, parts, settings) if parts else _of_bias(fused.get(name, (name,))[0], bias, layers)
        for of_layer, change in split_change(source, name, replace(whole, bias=bias), fused).items():
            if of_layer in changes or (of_layer != name and of_layer in grouped):
                raise UserError(f"{source}: {of_layer} is changed twice, by itself and as a part of {name}.")
            changes[of_layer] = change
    if isinstance(layers, Mapping):
        _check_shapes(source, changes, layers)
    return changes


def fused_layers(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Layers of ComfyUI's weights that the model has in parts (`ROWS_OF`) -> the parts; for the layers of a model, or
    those of them that a file changes."""
    return {
        name.removesuffix(part) + whole: tuple(name.removesuffix(part) + other for other in parts)
        for name in layers
        for whole, parts in ROWS_OF.items()
        for part in parts
        if name.endswith(f".{part}")
    }


def fused_weights(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Each tensor of a transformer in one file, sorted by name -> the tensors of the model whose rows it has."""
    given = set(names)
    fused = fused_layers(name.removesuffix(".weight") for name in given)
    found = {f"{whole}.weight": tuple(f"{part}.weight" for part in parts) for whole, parts in fused.items()}
    in_parts = {part for parts in found.values() for part in parts}
    return dict(sorted((found | {name: (name,) for name in given - in_parts}).items()))


def in_one(weights: Mapping[str, Tensor], markers: Iterable[str]) -> dict[str, Tensor]:
    """The weights of a transformer with the layers in one that ComfyUI's have so (`ROWS_OF`). markers: names of empty
    tensors by which it knows the model."""
    found = {name: torch.zeros(0) for name in markers}
    for name, parts in fused_weights(weights).items():
        found[name] = torch.cat([weights[part] for part in parts]) if len(parts) > 1 else weights[parts[0]]
    return found


def split_change(
    source: str, name: str, change: LayerDelta, fused: Mapping[str, Sequence[str]]
) -> dict[str, LayerDelta]:
    """The change by the model's own layers."""
    if name not in fused:
        return {name: change}
    try:
        return dict(zip(fused[name], change.split(len(fused[name])), strict=True))
    except ValueError:
        whole = " and ".join(part.rpartition(".")[2] for part in fused[name])
        raise UserError(f"{source}: {name} is {whole} of this model in one, and this kind cannot be split.") from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file as they are. Raises UserError when it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            check_count(len(file.keys()))
            tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        config = path.with_name(CONFIG_FILE)
        is_of_peft = path.name == "adapter_model.safetensors" or any(key.startswith(PEFT_PREFIX) for key in tensors)
        if is_of_peft and config.is_file():
            metadata = {**metadata, CONFIG_FILE: config.read_text(encoding="utf-8")}
    except (SafetensorError, OSError, ValueError) as error:
        remedy = "Download or copy it again, or take an earlier file of the run"
        raise UserError(f"{path}: cannot be read as a safetensors file ({error}). {remedy}.") from error
    return tensors, metadata


def own_names(keys: Iterable[str]) -> list[str]:
    """The names that the keys of a file give its layers, whatever its model is."""
    found: dict[str, None] = {}
    for key in keys:
        suffix = max((s for s in PARTS if key.endswith(s)), key=len, default="")
        found[without_prefix(key.removesuffix(suffix))] = None
    return list(found)


def without_prefix(stem: str) -> str:
    """The start of a key without a dotted prefix of PREFIXES."""
    for prefix in PREFIXES:
        if prefix.endswith(".") and stem.startswith(prefix):
            return stem.removeprefix(prefix)
    return stem


def adds_nothing(key: str, tensor: Tensor) -> bool:
    """Whether it is one of ADDED, and zero."""
    return key.endswith(ADDED) and not tensor.float().any()


def _locate(key: str, names: Mapping[str, str]) -> tuple[str, str] | None:
    """(module name, part) of a key."""
    suffix = max((s for s in PARTS if key.endswith(s)), key=len, default=None)
    if suffix is None:
        return None
    stem = key.removesuffix(suffix)
    for prefix in PREFIXES:
        if stem.startswith(prefix) and stem.removeprefix(prefix) in names:
            return names[stem.removeprefix(prefix)], PARTS[suffix]
    return None


def _about_unknown(source: str, keys: list[str]) -> str:
    """Why these keys cannot be used, by the first of the most telling sort."""
    for key in keys:
        what = next((what for suffix, what in UNSUPPORTED_KEYS.items() if key.endswith(suffix)), None)
        if what:
            remedy = " In ComfyUI, extract it with bias_diff off." * key.endswith(ADDED)
            return f"{source}: holds {what}, as {key!r}. Only LoRA, DoRA, LoHa and LoKr can be read.{remedy}"
    for key in keys:
        if any(key.endswith(suffix) for suffix in PARTS):
            return f"{source}: {len(keys)} keys are of layers that this model does not have, such as {key!r}."
    return f"{source}: {len(keys)} keys are of no known form, such as {keys[0]!r}."


def ignores_alpha(parts: Collection[str]) -> bool:
    """Whether a layer has two full factors of a LoKr: its scale is 1, and its alpha may be infinite."""
    return "lokr_w1" in parts and "lokr_w2" in parts


def _bias(source: str, name: str, parts: dict[str, Tensor]) -> Tensor | None:
    """Takes the change of the bias out of the parts of a layer; None: there is none."""
    bias_O = parts.pop("bias", None)
    if bias_O is None:
        return None
    if bias_O.dim() != 1 or (parts and not lacks_a_matrix(parts) and len(bias_O) != LayerDelta(parts, 1.0).shape[0]):
        raise UserError(f"{source}: diff_b of {name} has the shape {list(bias_O.shape)}, which is not the layer's.")
    if not torch.isfinite(bias_O).all():
        raise UserError(f"{source}: {name} holds numbers that are not finite.")
    return bias_O


def _of_bias(name: str, bias_O: Tensor | None, layers: Mapping[str, tuple[int, int]] | Iterable[str]) -> LayerDelta:
    """No change of the weight of a layer; where its width is not known, of no inputs. name: of it, or of a part."""
    assert bias_O is not None  # else nothing of the layer is changed
    inputs = layers[name][0] if isinstance(layers, Mapping) else 0
    return LayerDelta({"up": torch.zeros(len(bias_O), 0), "down": torch.zeros(0, inputs)}, 1.0)


def _module(source: str, name: str, parts: dict[str, Tensor], settings: AdapterSettings | None) -> LayerDelta:
    alpha = parts.pop("alpha", None)
    if "row_norms" in parts:
        parts["dora_scale"] = parts.pop("row_norms").reshape(-1, 1)
    if lacks_a_matrix(parts):
        raise UserError(f"{source}: {name} lacks a matrix; it holds only {', '.join(sorted(parts)) or 'alpha'}.")
    check_parts(source, name, parts)
    if alpha is not None and alpha.numel() != 1 and not ignores_alpha(parts):
        raise UserError(f"{source}: alpha of {name} is {list(alpha.shape)} numbers, not one.")
    scale = layer_scale(name, parts, alpha, settings)
    if not math.isfinite(scale):
        raise UserError(f"{source}: alpha of {name} is not finite.")
    return LayerDelta(parts, scale)


def layer_scale(
    name: str, parts: Mapping[str, Tensor], alpha: Tensor | None, settings: AdapterSettings | None
) -> float:
    """The strength of a layer: what its change is multiplied by.

    name: the layer, without a prefix. parts: its matrices. alpha: the file's own alpha of the layer, one number, or
    None. settings: those that peft or diffusers stored with the file, or None. An alpha in the file counts before that
    of the settings, and is divided by the root of the rank where they say so (rsLoRA, as SimpleTuner 4.10.1 writes it
    for ComfyUI). Without either the strength is 1.
    """
    if alpha is None and settings is not None:
        return settings.scale(name, kind_of_parts(parts), None if ignores_alpha(parts) else rank_of(parts))
    if alpha is None or ignores_alpha(parts):
        return 1.0
    if settings is not None and settings.is_rank_stabilised:
        return float(alpha) / math.sqrt(rank_of(parts))
    return float(alpha) / rank_of(parts)


def kind_of_parts(parts: Collection[str]) -> str:
    """lora, loha or lokr, by the names of a layer's matrices."""
    if "up" in parts:
        return "lora"
    return "loha" if "hada_w1_a" in parts else "lokr"


def settings_of(source: str, keys: Collection[str], metadata: Mapping[str, str]) -> AdapterSettings | None:
    """The settings of a file with these keys. Raises UserError where they cannot be read, where they say that the
    matrices alone are not the change, or where peft's are missing."""
    try:
        settings = read_settings(metadata)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if settings is None:
        without = keys_without_strength(keys)
        if without:
            raise UserError(f"{source}: {MISSING_SETTINGS.format(without[0])} {MISSING_REMEDY}")
        return None
    reason, remedy = settings.fault
    if reason:
        raise UserError(f"{source}: {reason}. {remedy}")
    return settings


MISSING_SETTINGS = f"its keys are peft's, such as {{!r}}. Their strength is in {CONFIG_FILE}, which is missing."
MISSING_REMEDY = f"Put the file back next to the {CONFIG_FILE} that it was saved with."


def keys_without_strength(keys: Collection[str]) -> list[str]:
    """Keys of layers whose strength only peft's settings have: named as peft names them, and without an alpha."""
    found = []
    for key in keys:
        suffix = max((end for end in PARTS if key.endswith(end)), key=len, default="")
        stem = key.removesuffix(suffix)
        if key.startswith(PEFT_PREFIX) and PARTS.get(suffix) in SCALED_PARTS and f"{stem}.alpha" not in keys:
            found.append(key)
    return found


SCALED_PARTS = ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a")
"""A part of each kind whose strength is not in its matrices."""


def lacks_a_matrix(parts: Mapping[str, Tensor]) -> bool:
    if {"up", "down"} <= parts.keys() or {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= parts.keys():
        return False
    factors = ("lokr_w1", "lokr_w2")
    return not all(name in parts or {f"{name}_a", f"{name}_b"} <= parts.keys() for name in factors)


def rank_of(parts: Mapping[str, Tensor]) -> int:
    """The inner size that alpha is divided by; 1 of a LoKr with two full factors."""
    inner = next((parts[name] for name in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in parts), None)
    return 1 if inner is None else inner.shape[0]


def check_parts(source: str, name: str, parts: Mapping[str, Tensor]) -> None:
    """Matrices of one kind, that can be multiplied, of finite numbers."""
    if len({"lora" if part in ("up", "down") else part[:4] for part in parts if part != "dora_scale"}) > 1:
        raise UserError(f"{source}: {name} mixes several kinds of change: {', '.join(sorted(parts))}.")
    for part, tensor in parts.items():
        if tensor.dim() != 2 or not tensor.numel():
            raise UserError(f"{source}: {part} of {name} has the shape {list(tensor.shape)}; it is not a matrix.")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source}: {name} holds numbers that are not finite.")
    for left, right in MATMUL_PAIRS:
        if {left, right} <= parts.keys() and parts[left].shape[1] != parts[right].shape[0]:
            raise _misfit(source, name, parts)
    outputs, inputs = LayerDelta(parts, 1.0).shape
    if "hada_w2_a" in parts and (parts["hada_w2_a"].shape[0], parts["hada_w2_b"].shape[1]) != (outputs, inputs):
        raise _misfit(source, name, parts)
    magnitude = parts.get("dora_scale")
    if magnitude is not None and magnitude.shape not in ((1, inputs), (outputs, 1)):
        wanted = f"[1, {inputs}] or [{outputs}, 1]"
        raise UserError(f"{source}: dora_scale of {name} has the shape {list(magnitude.shape)}, not {wanted}.")


def _misfit(source: str, name: str, parts: Mapping[str, Tensor]) -> UserError:
    shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in sorted(parts.items()))
    return UserError(f"{source}: the matrices of {name} do not fit together: {shapes}.")


def _check_shapes(source: str, changes: Mapping[str, LayerDelta], layers: Mapping[str, tuple[int, int]]) -> None:
    for name, change in changes.items():
        inputs, outputs = layers[name]
        if change.shape != (outputs, inputs):
            has = f"{change.shape[1]} inputs and {change.shape[0]} outputs"
            raise UserError(
                f"{source}: {name} has {has} there, {inputs} and {outputs} in this model. It is of another model."
            )
