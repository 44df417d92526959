#!/usr/bin/env bash
# mflux applies a ComfyUI-style LoRA of Qwen-Image at rank / alpha times its strength.
#
# Versions: mflux 0.24.0 on mlx 0.32.2 (CPU).
#
# mflux does use alpha, both from `lora_unet_` files and from the header that diffusers writes. But its table of names
# for Qwen-Image has no alpha with the prefix `diffusion_model.`, and its table for Qwen-Image-2.1 has no alpha at all.
# The matrices of such a file are applied, "All LoRA weights applied successfully" is printed, and the alpha keys are
# listed under "unmatched keys". With alpha folded into a matrix, the same LoRA is exact.
#
# Output seen (rank 4, alpha 2):
#   qwen    diffusion_model., alpha      strength 2.0
#   qwen    lora_unet_, alpha            strength 1.0
#   qwen    diffusion_model., folded in  strength 1.0
#   qwen21  diffusion_model., alpha      strength 2.0
#   qwen21  diffusion_model., folded in  strength 1.0
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
# Of mflux only the loader is needed. With its dependencies it would bring the CUDA build of mlx on Linux.
venv/bin/pip install --quiet "mlx[cpu]==0.32.2" transformers==5.24.0 pillow==13.0.0 piexif platformdirs toml
venv/bin/pip install --quiet --no-deps mflux==0.24.0
venv/bin/python - <<'PYTHON'
import contextlib
import io

import mlx.core as mx
from mflux.models.common.lora.mapping.lora_loader import LoRALoader
from mflux.models.qwen21.weights.qwen21_lora_mapping import Qwen21LoRAMapping
from mflux.models.qwen.weights.qwen_lora_mapping import QwenLoRAMapping
from mlx import nn

RANK, ALPHA, SIDE = 4, 2.0, 16
LAYER = "transformer_blocks.0.attn.to_q"
FLAT = LAYER.replace(".", "_")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(SIDE, SIDE, bias=False)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()


class Transformer(nn.Module):
    """The one layer of a Qwen-Image transformer that the files are for, by its name there."""

    def __init__(self):
        super().__init__()
        self.transformer_blocks = [Block()]


def strength(mapping, tensors):
    mx.save_safetensors("lora.safetensors", tensors)
    model = Transformer()
    layer = model.transformer_blocks[0].attn.to_q
    before = layer.weight
    with contextlib.redirect_stdout(io.StringIO()) as said:
        LoRALoader.load_and_apply_lora(mapping.get_mapping(), model, ["lora.safetensors"], [1.0])
    assert "All LoRA weights applied successfully" in said.getvalue()
    change = model.transformer_blocks[0].attn.to_q.weight - before
    return ((change * meant).sum() / (meant * meant).sum()).item()


mx.random.seed(0)
down, up = mx.random.normal((RANK, SIDE)), mx.random.normal((SIDE, RANK))
alpha, meant = mx.array(ALPHA), (up @ down) * (ALPHA / RANK)
comfyui = {f"diffusion_model.{LAYER}.lora_A.weight": down, f"diffusion_model.{LAYER}.lora_B.weight": up}
folded = {**comfyui, f"diffusion_model.{LAYER}.lora_A.weight": down * (ALPHA / RANK)}
kohya = {f"lora_unet_{FLAT}.lora_down.weight": down, f"lora_unet_{FLAT}.lora_up.weight": up}
cases = [
    ("qwen", "diffusion_model., alpha", QwenLoRAMapping, {**comfyui, f"diffusion_model.{LAYER}.alpha": alpha}, 2),
    ("qwen", "lora_unet_, alpha", QwenLoRAMapping, {**kohya, f"lora_unet_{FLAT}.alpha": alpha}, 1),
    ("qwen", "diffusion_model., folded in", QwenLoRAMapping, folded, 1),
    ("qwen21", "diffusion_model., alpha", Qwen21LoRAMapping, {**comfyui, f"diffusion_model.{LAYER}.alpha": alpha}, 2),
    ("qwen21", "diffusion_model., folded in", Qwen21LoRAMapping, folded, 1),
]
for family, words, mapping, tensors, expected in cases:
    found = strength(mapping, tensors)
    print(f"{family:7} {words:28} strength {found:.1f}")
    assert abs(found - expected) < 1e-4, f"{family}, {words}: the strength was {expected}"
PYTHON
