"""What musubi-tuner's merge makes of an adapter file, by its rules (0.3.4):
`lora_unet_` names, LoRA, LoHa and LoKr.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "lora_unet_"


def read(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The change of each weight. Keys of other names or forms are ignored without a
    word."""
    changes: dict[str, Tensor] = {}
    for name, weight_OI in weights.items():
        if name.endswith(".weight"):
            stem = PREFIX + name.removesuffix(".weight").replace(".", "_")
            change_OI = _change(stem, tensors)
            if change_OI is not None:
                changes[name] = change_OI.reshape(weight_OI.shape)
    return changes


def _change(stem: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    parts = {
        key.removeprefix(f"{stem}."): t.float()
        for key, t in tensors.items()
        if key.startswith(f"{stem}.")
    }
    alpha = parts.get("alpha")
    if {"lora_down.weight", "lora_up.weight"} <= parts.keys():
        down_RI = parts["lora_down.weight"]
        scale = 1.0 if alpha is None else float(alpha) / len(down_RI)
        return scale * parts["lora_up.weight"] @ down_RI
    if "hada_w1_a" in parts:
        rank = len(parts["hada_w1_b"])
        scale = 1.0 if alpha is None else float(alpha) / rank
        return (
            scale
            * (parts["hada_w1_a"] @ parts["hada_w1_b"])
            * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        )
    if "lokr_w1" in parts:
        return _lokr(parts, alpha)
    return None


def _lokr(parts: Mapping[str, Tensor], alpha: Tensor | None) -> Tensor:
    second, scale = parts.get("lokr_w2"), 1.0
    if second is None:
        second = parts["lokr_w2_a"] @ parts["lokr_w2_b"]
        scale = 1.0 if alpha is None else float(alpha) / len(parts["lokr_w2_b"])
    return scale * torch.kron(parts["lokr_w1"], second)
