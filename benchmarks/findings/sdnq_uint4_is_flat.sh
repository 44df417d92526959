#!/usr/bin/env bash
# SDNQ stores uint4 weights flat and in groups that its config does not name; int8 weights keep their shape.
#
# Versions: sdnq 0.2.8, diffusers 0.42.1, transformers 5.24.0, torch 2.13.0.
#
# In config.json the two number types differ only in their names; both say group_size 0. With int8 a weight [O, I] stays
# [O, I], with one scale per row. With uint4 it becomes a vector of O x I / 2 bytes, and the scales and zero points are
# per 64 inputs, [O, I / 64, 1]. The 64 follows only from the shape of the scales. Layers with fewer than 16,384 numbers
# (minimum_allowed_numel) are not quantized at all.
#
# Output seen (attn.to_q):
#   int8   256 wide  group_size 0  weight I8 [256, 256]  scale [256, 1]     zero_point none
#   uint4  256 wide  group_size 0  weight U8 [32768]     scale [256, 4, 1]  zero_point [256, 4, 1]
#   uint4   64 wide  group_size 0  weight F32 [64, 64]   scale none         zero_point none
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 sdnq==0.2.8
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import json

import torch
from diffusers import QwenImageTransformer2DModel
from safetensors import safe_open
from sdnq import SDNQConfig

LAYER = "transformer_blocks.0.attn.to_q"


def save_quantized(weights_dtype, head_dim):
    """Saves a tiny transformer, plain and quantized."""
    transformer = QwenImageTransformer2DModel(
        num_layers=1,
        attention_head_dim=head_dim,
        num_attention_heads=4,
        joint_attention_dim=64,
        in_channels=64,
        out_channels=16,
        axes_dims_rope=(head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8),
    )
    transformer.save_pretrained("plain")
    config = SDNQConfig(weights_dtype=weights_dtype)
    QwenImageTransformer2DModel.from_pretrained("plain", quantization_config=config).save_pretrained("quantized")


def shape(file, part):
    name = f"{LAYER}.{part}"
    return file.get_slice(name).get_shape() if name in file.keys() else "none"


torch.manual_seed(0)
expected = {
    ("int8", 64): ("I8", [256, 256], [256, 1], "none"),
    ("uint4", 64): ("U8", [256 * 256 // 2], [256, 4, 1], [256, 4, 1]),
    ("uint4", 16): ("F32", [64, 64], "none", "none"),
}
for (weights_dtype, head_dim), layout in expected.items():
    save_quantized(weights_dtype, head_dim)
    with open("quantized/config.json") as file:
        said = json.load(file)["quantization_config"]
    with safe_open("quantized/diffusion_pytorch_model.safetensors", "pt") as file:
        number_type = file.get_slice(f"{LAYER}.weight").get_dtype()
        found = (number_type, *(shape(file, part) for part in ("weight", "scale", "zero_point")))
    width = f"{head_dim * 4:3} wide  group_size {said['group_size']}"
    shapes = f"weight {found[0] + ' ' + str(found[1]):14} scale {str(found[2]):12} zero_point {found[3]}"
    print(f"{weights_dtype:6} {width}  {shapes}")
    assert said["group_size"] == 0, "the config names the group"
    assert found == layout, f"{weights_dtype}, {head_dim * 4} wide: it was {layout}"
PYTHON
