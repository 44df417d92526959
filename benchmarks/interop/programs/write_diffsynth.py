"""DiffSynth-Studio: a LoRA that its training module adds, drawn, and exported as its
trainer saves it."""

from __future__ import annotations

import torch
from diffsynth.diffusion.training_module import DiffusionTrainingModule
from diffsynth_models import transformer_of
from harness import changes, drawn, write_all
from safetensors.torch import save_file

RANK = 4


@torch.no_grad()
def write(job, weights, folder):
    transformer = transformer_of(job, weights).requires_grad_(False)
    trainer = DiffusionTrainingModule()
    trainer.pipe = torch.nn.Module()
    trainer.pipe.dit = trainer.add_lora_to_model(transformer, job["layers"], RANK)
    normal = drawn(f"diffsynth {job['model']}")
    for name, parameter in sorted(trainer.named_parameters()):
        if "lora_" in name:
            parameter.copy_(normal(*parameter.shape))
    tensors = trainer.export_trainable_state_dict(
        trainer.state_dict(), remove_prefix="pipe.dit."
    )
    path = folder / "lora.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    for module in transformer.modules():
        if hasattr(module, "merge"):
            module.merge()
    after = {
        name.replace(".base_layer", ""): t
        for name, t in transformer.state_dict().items()
        if "lora_" not in name
    }
    return [
        {
            "name": "lora",
            "what": "LoRA",
            "path": str(path),
            "meant": changes(after, weights),
        }
    ]


write_all(write)
