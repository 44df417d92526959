#!/usr/bin/env bash
# diffusers' Qwen-Image pipeline reads `.alpha` keys under every prefix but its own.
#
# Versions: diffusers 0.42.1, peft 0.21.2, transformers 5.24.0, torch 2.13.0.
#
# `transformer.` is the prefix that save_lora_weights writes. Files with it are loaded, and so are files of other
# programs (`diffusion_model.`) with their alpha. But a single `.alpha` key, even with alpha = r, makes diffusers take a
# file with `transformer.` for one of another program: the names get the prefix a second time, and none is found.
#
# Output seen:
#   transformer.       without alpha  strength 1.0
#   transformer.       alpha = r      NoMatchingPeftModuleError: Target modules
#                                     {'transformer.transformer_blocks.0.attn.to_q'} not found in the base model. ...
#   diffusion_model.   without alpha  strength 1.0
#   diffusion_model.   alpha = r      strength 1.0
#   diffusion_model.   alpha = r / 2  strength 0.5
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel
from safetensors.torch import save_file

LAYER = "transformer_blocks.0.attn.to_q"
RANK, SIDE = 4, 32


def tiny_transformer():
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        in_channels=16,
        out_channels=4,
        axes_dims_rope=(4, 6, 6),
    )


def pipeline():
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "transformer": tiny_transformer()}
    return QwenImagePipeline(scheduler=FlowMatchEulerDiscreteScheduler(), **parts)


def change(model):
    layer = model.get_submodule(LAYER)
    return layer.get_delta_weight(layer.active_adapters[0]).detach()


def load(prefix, alpha):
    """The strength that the file is loaded with, or the error."""
    tensors = {f"{prefix}{LAYER}.lora_A.weight": down, f"{prefix}{LAYER}.lora_B.weight": up}
    if alpha is not None:
        tensors[f"{prefix}{LAYER}.alpha"] = torch.tensor(alpha)
    save_file(tensors, "lora.safetensors")
    pipe = pipeline()
    try:
        pipe.load_lora_weights("lora.safetensors")
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    product = up @ down
    strength = (change(pipe.transformer) * product).sum() / (product * product).sum()
    return f"strength {strength.item():.1f}"


down, up = torch.randn(RANK, SIDE), torch.randn(SIDE, RANK)
cases = [
    ("transformer.", "without alpha", None, "strength 1.0"),
    ("transformer.", "alpha = r", float(RANK), f"Target modules {{'transformer.{LAYER}'}} not found"),
    ("diffusion_model.", "without alpha", None, "strength 1.0"),
    ("diffusion_model.", "alpha = r", float(RANK), "strength 1.0"),
    ("diffusion_model.", "alpha = r / 2", RANK / 2, "strength 0.5"),
]
for prefix, words, alpha, expected in cases:
    found = load(prefix, alpha)
    print(f"{prefix:18} {words:14} {found}")
    assert expected in found, f"{prefix} {words}: it was {expected}"
PYTHON
