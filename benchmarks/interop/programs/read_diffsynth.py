"""DiffSynth-Studio: the loader that its pipelines call, on its own transformer
classes."""

from __future__ import annotations

import torch
from diffsynth.diffusion.base_pipeline import BasePipeline
from diffsynth_models import transformer_of
from harness import main


def apply(job, file, weights):
    transformer = transformer_of(job, weights)
    pipeline = BasePipeline(device="cpu", torch_dtype=torch.float32)
    pipeline.load_lora(transformer, lora_config=file["path"])
    return {name: tensor.clone() for name, tensor in transformer.state_dict().items()}


main(apply)
