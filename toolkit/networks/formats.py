"""Reads adapter files of other programs: which change of which weight a file means, whatever its key names.

Known: LoRA, LoHa and LoKr, with or without DoRA, under every module prefix that ComfyUI or diffusers accept. The
meaning of alpha and of diffusers' header metadata is theirs too; `docs/correctness.md` lists the files it was checked
with.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toolkit.errors import UserError

PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "lora_unet_", "lycoris_", "")
"""Put before the module's name by one program or another; the flat ones write `_` for each dot."""

PARTS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    **{f".{name}": name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
    **{f".{name}": name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
}
"""Suffix of a key -> the part of the module it holds."""

HEADER_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class ModuleChange:
    """What a file does to one linear layer."""

    parts: Mapping[str, Tensor]
    """Float32, by the names in PARTS; alpha excluded."""

    scale: float

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """(up_OR, down_RI) with the scale in `up`, for a plain LoRA."""
        return (self.scale * self.parts["up"], self.parts["down"]) if "up" in self.parts else None

    @property
    def magnitude(self) -> Tensor | None:
        """Of a DoRA: the norms its weight gets, [1, I] of input columns or [O, 1] of output rows."""
        return self.parts.get("dora_scale")

    def applied_to(self, weight_OI: Tensor) -> Tensor:
        """The weight that the file makes of `weight_OI` (float32)."""
        changed_OI = weight_OI + self.delta()
        if self.magnitude is None:
            return changed_OI
        return changed_OI * (self.magnitude / dora_norm(changed_OI, axis=0 if self.magnitude.shape[0] == 1 else 1))

    def delta(self) -> Tensor:
        """The change of the weight [O, I]; of a DoRA, the one before its magnitude.

        Formulas: LyCORIS 4.1.3, equal to its training forward pass.
        """
        p = self.parts
        if "up" in p:
            return self.scale * p["up"] @ p["down"]
        if "hada_w1_a" in p:
            return self.scale * (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
        return self.scale * torch.kron(_factor(p, "lokr_w1"), _factor(p, "lokr_w2"))


def dora_norm(weight_OI: Tensor, axis: int) -> Tensor:
    """Norms of columns (axis 0, [1, I]) or rows (axis 1, [O, 1]); never zero."""
    return weight_OI.norm(dim=axis, keepdim=True).clamp_min(torch.finfo(weight_OI.dtype).tiny)


def read_network_file(path: Path, modules: Iterable[str]) -> dict[str, ModuleChange]:
    """The changes a file makes, by full dotted module name.

    modules: names of all linear layers of the model. Raises UserError when the file cannot be read, holds keys of no
    known form, names no layer of this model, lacks a matrix, or holds numbers that are not finite.
    """
    tensors, metadata = _read(path)
    names = {spelling: name for name in modules for spelling in (name, name.replace(".", "_"))}
    grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unknown: list[str] = []
    for key, tensor in tensors.items():
        place = _locate(key, names)
        if place is None:
            unknown.append(key)
        else:
            grouped[place[0]][place[1]] = tensor.float()
    if unknown:
        raise UserError(f"{path}: {len(unknown)} keys are of no known form or layer, such as {sorted(unknown)[0]!r}.")
    return {name: _module(path, name, parts, metadata) for name, parts in grouped.items()}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a safetensors file ({error}).") from error


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


def _module(path: Path, name: str, parts: dict[str, Tensor], metadata: Mapping[str, str]) -> ModuleChange:
    alpha = parts.pop("alpha", None)
    rank = _rank(parts)
    if rank is None:
        raise UserError(f"{path}: {name} lacks a matrix; it holds only {', '.join(sorted(parts)) or 'alpha'}.")
    magnitude = parts.get("dora_scale")
    if magnitude is not None and (magnitude.dim() != 2 or 1 not in magnitude.shape):
        raise UserError(f"{path}: dora_scale of {name} has the shape {list(magnitude.shape)}, not [1, in] or [out, 1].")
    if not all(torch.isfinite(tensor).all() for tensor in parts.values()):
        raise UserError(f"{path}: {name} holds numbers that are not finite.")
    if {"lokr_w1", "lokr_w2"} <= parts.keys():
        scale = 1.0  # two full factors: alpha is ignored, and may be infinite
    elif alpha is not None:
        scale = float(alpha) / rank
    else:
        scale = _header_scale(metadata, name)
    if not math.isfinite(scale):
        raise UserError(f"{path}: alpha of {name} is not finite.")
    return ModuleChange(parts, scale)


def _rank(parts: Mapping[str, Tensor]) -> int | None:
    """The inner size alpha is divided by, or None when a matrix is missing."""
    if {"up", "down"} <= parts.keys():
        return parts["down"].shape[0]
    if {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= parts.keys():
        return parts["hada_w1_b"].shape[0]
    factors = ("lokr_w1", "lokr_w2")
    if not all(name in parts or {f"{name}_a", f"{name}_b"} <= parts.keys() for name in factors):
        return None
    inner = parts.get("lokr_w2_b", parts.get("lokr_w1_b"))
    return 1 if inner is None else inner.shape[0]


def _factor(parts: Mapping[str, Tensor], name: str) -> Tensor:
    return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]


def _header_scale(metadata: Mapping[str, str], module: str) -> float:
    """lora_alpha / r of diffusers' header metadata, which scales a file without alpha keys; 1 without it.

    Source: diffusers, loaders/lora_base.py, `_load_lora_into_...` with `lora_adapter_metadata`; peft, LoraConfig.
    """
    if HEADER_METADATA not in metadata:
        return 1.0
    settings = {key.removeprefix("transformer."): value for key, value in json.loads(metadata[HEADER_METADATA]).items()}
    rank = _pattern_value(settings.get("rank_pattern"), module) or settings.get("r")
    alpha = _pattern_value(settings.get("alpha_pattern"), module) or settings.get("lora_alpha")
    if not rank or alpha is None:
        return 1.0
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _pattern_value(patterns: Mapping[str, float] | None, module: str) -> float | None:
    return next((v for name, v in (patterns or {}).items() if module == name or module.endswith(f".{name}")), None)
