#!/usr/bin/env bash
# The alpha of one layer in a file also scales every layer whose name ends in that layer's name.
#
# Versions: diffusers 0.42.1, peft 0.21.2, transformers 5.24.0, torch 2.13.0.
#
# diffusers turns `.alpha` keys into peft's alpha_pattern, whose keys peft reads as regular expressions that may match
# the end of a name. For ranks diffusers anchors each name with `^`; for alphas it does not. FLUX has a layer
# `proj_out` and layers `single_transformer_blocks.N.proj_out`. If the alpha of the outer layer differs from the
# alpha of the others, all of them get it. There is no warning, although the file gives each layer the right alpha.
#
# Output seen (alpha / r):
#   context_embedder                         in the file 1.0, applied 1.0
#   proj_out                                 in the file 0.25, applied 0.25
#   single_transformer_blocks.0.proj_out     in the file 1.0, applied 0.25
#   single_transformer_blocks.1.proj_out     in the file 1.0, applied 0.25
#   transformer_blocks.0.attn.to_q           in the file 1.0, applied 1.0
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin
from safetensors.torch import save_file

RANK = 4
ALPHAS = {
    "context_embedder": 4.0,
    "proj_out": 1.0,
    "single_transformer_blocks.0.proj_out": 4.0,
    "single_transformer_blocks.1.proj_out": 4.0,
    "transformer_blocks.0.attn.to_q": 4.0,
}

torch.manual_seed(0)
transformer = FluxTransformer2DModel(
    patch_size=1,
    in_channels=4,
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=32,
    pooled_projection_dim=32,
    axes_dims_rope=(4, 4, 8),
)
tensors = {}
for name, alpha in ALPHAS.items():
    outputs, inputs = transformer.get_submodule(name).weight.shape
    tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(RANK, inputs)
    tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(outputs, RANK)
    tensors[f"transformer.{name}.alpha"] = torch.tensor(alpha)
save_file(tensors, "lora.safetensors")

state_dict, alphas = FluxLoraLoaderMixin.lora_state_dict("lora.safetensors", return_alphas=True)
FluxLoraLoaderMixin.load_lora_into_transformer(state_dict, network_alphas=alphas, transformer=transformer)
for name, alpha in ALPHAS.items():
    (applied,) = transformer.get_submodule(name).scaling.values()
    print(f"{name:40} in the file {alpha / RANK}, applied {applied}")
    expected = 0.25 if name.endswith("proj_out") else 1.0
    assert applied == expected, f"{name}: alpha / r was {expected}"
PYTHON
