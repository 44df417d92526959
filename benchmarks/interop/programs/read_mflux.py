"""mflux: its mapping and its loader, on its own transformer classes (MLX on the
CPU)."""

from __future__ import annotations

import re

import mlx.core as mx
import torch
from harness import main
from mflux.models.common.lora.mapping.lora_loader import LoRALoader
from mflux.models.qwen.model.qwen_transformer.qwen_transformer import QwenTransformer
from mflux.models.qwen.weights.qwen_lora_mapping import QwenLoRAMapping
from mflux.models.qwen.weights.qwen_weight_mapping import QwenWeightMapping
from mflux.models.qwen21.model.qwen21_transformer.qwen21_transformer import (
    Qwen21Transformer,
)
from mflux.models.qwen21.weights.qwen21_lora_mapping import Qwen21LoRAMapping
from mlx.utils import tree_flatten, tree_unflatten

mx.set_default_device(mx.cpu)


def own_names(job, weights):
    """diffusers' name of each weight -> mflux's."""
    if job["model"] == "2.1":
        return {
            name: name.replace("modulation.1.", "modulation.layers.1.")
            for name in weights
        }
    patterns = {}
    for target in QwenWeightMapping.get_transformer_mapping():
        for pattern in target.from_pattern:
            patterns[re.escape(pattern).replace(r"\{block\}", r"(\d+)")] = (
                target.to_pattern
            )
    names = {}
    for name in weights:
        for pattern, own in patterns.items():
            match = re.fullmatch(pattern, name)
            if match:
                names[name] = own.replace(
                    "{block}", match.group(1) if match.groups() else ""
                )
    return names


def transformer_of(job):
    config = dict(job["config"])
    if job["model"] == "2.1":
        return Qwen21Transformer(**config), Qwen21LoRAMapping.get_mapping()
    config.pop("axes_dims_rope")
    return QwenTransformer(**config), QwenLoRAMapping.get_mapping()


def apply(job, file, weights):
    transformer, mapping = transformer_of(job)
    names = own_names(job, weights)
    given = [(own, mx.array(weights[name].numpy())) for name, own in names.items()]
    transformer.update(tree_unflatten(given))
    LoRALoader.load_and_apply_lora(mapping, transformer, [file["path"]], [1.0])
    after = dict(tree_flatten(transformer.parameters()))
    return {
        name: torch.tensor(after[own].tolist()).reshape(weights[name].shape)
        for name, own in names.items()
    }


main(apply)
