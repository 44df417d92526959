"""DiffSynth-Studio's own transformer classes with the weights of a job."""

from __future__ import annotations

import torch
from diffsynth.models.qwen_image_21_dit import QwenImage21DiT
from diffsynth.models.qwen_image_dit import QwenImageDiT


def transformer_of(job, weights):
    """Its class of the model."""
    if job["model"] == "2.1":
        transformer = QwenImage21DiT(**job["config"])
        transformer.load_state_dict(weights)
        return transformer
    return small(weights)


def small(weights):
    """Its transformer of 2509, whose width is fixed in its code: the modules get the
    tiny weights instead."""
    with torch.device("meta"):
        transformer = QwenImageDiT(num_layers=2)
    for name, tensor in weights.items():
        module = transformer.get_submodule(name.rpartition(".")[0])
        setattr(
            module,
            name.rpartition(".")[2],
            torch.nn.Parameter(tensor.clone(), requires_grad=False),
        )
        if isinstance(module, torch.nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    return transformer
