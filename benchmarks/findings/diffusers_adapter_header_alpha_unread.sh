#!/usr/bin/env bash
# diffusers' load_lora_adapter reads the alpha of a file only when it is told that the file is safetensors.
#
# Versions: diffusers 0.42.1, peft 0.21.2, transformers 5.24.0, torch 2.13.0.
#
# `save_lora_adapter` keeps rank and alpha in the header of the file (lora_adapter_metadata). `load_lora_adapter` reads
# them back when it gets a folder with `weight_name`, or `use_safetensors=True`. When it gets only the path of that
# file, it reads the weights through its branch for pickled files, which drops the header, and takes alpha = rank: the
# LoRA has rank / alpha times its strength, without a warning. `load_lora_weights` of a pipeline is not affected; it
# sets use_safetensors itself.
#
# Output seen (rank 4, alpha 2):
#   folder, use_safetensors=True   strength 1.0
#   folder, weight_name            strength 1.0
#   file, use_safetensors=True     strength 1.0
#   file                           strength 2.0
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig

LAYER = "transformer_blocks.0.attn.to_q"
FILE = "pytorch_lora_weights.safetensors"
RANK, ALPHA = 4, 2


def tiny_transformer():
    return QwenImageTransformer2DModel(
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        in_channels=16,
        out_channels=4,
        axes_dims_rope=(4, 6, 6),
    )


def change(model):
    layer = model.get_submodule(LAYER)
    return layer.get_delta_weight(layer.active_adapters[0]).detach()


torch.manual_seed(0)
trained = tiny_transformer()
trained.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q"], init_lora_weights=False))
meant = change(trained)
trained.save_lora_adapter("saved")

ways = {
    "folder, use_safetensors=True": ("saved", {"use_safetensors": True}, 1),
    "folder, weight_name": ("saved", {"weight_name": FILE}, 1),
    "file, use_safetensors=True": (f"saved/{FILE}", {"use_safetensors": True}, 1),
    "file": (f"saved/{FILE}", {}, RANK / ALPHA),
}
for way, (source, arguments, expected) in ways.items():
    model = tiny_transformer()
    model.load_lora_adapter(source, prefix=None, **arguments)
    strength = ((change(model) * meant).sum() / (meant * meant).sum()).item()
    print(f"{way:30} strength {strength:.1f}")
    assert abs(strength - expected) < 1e-5, f"{way}: the strength was {expected}"
PYTHON
