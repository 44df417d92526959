#!/usr/bin/env bash
# diffusers cannot load the PiSSA adapter that it has saved; with low_cpu_mem_usage=False it loads it exactly.
#
# Versions: diffusers 0.42.1, peft 0.21.2, transformers 5.24.0, accelerate 1.15.0, torch 2.13.0.
#
# `save_lora_weights` keeps the settings of a LoRA in the header, init_lora_weights="pissa" among them.
# `load_lora_weights` makes the adapter with the same settings, so peft decomposes the base weight again. The result
# cannot replace the empty tensors of low_cpu_mem_usage, which is diffusers' default, and the message does not name
# PiSSA. With low_cpu_mem_usage=False the same file is exact: peft takes the principal part out of the base weight, as
# it did in training. So the file has a meaning only with its base weight, although it looks like any LoRA.
#
# Output seen:
#   load_lora_weights(file): RuntimeError: Attempted to call `variable.set_data(tensor)`, but `variable` and `tensor`
#     have incompatible tensor type.
#   load_lora_weights(file, low_cpu_mem_usage=False): error 0.0 of the change
#   A and B alone, as any other reader adds them: error 2.5 of the change
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel
from peft import LoraConfig, get_peft_model_state_dict

LAYER = "transformer_blocks.0.attn.to_q"
RANK = 4


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


def weight(model):
    layer = model.get_submodule(LAYER)
    return (layer.base_layer.weight + layer.get_delta_weight(layer.active_adapters[0])).detach()


def error(change):
    return ((change - meant).norm() / meant.norm()).item()


base = tiny_transformer().get_submodule(LAYER).weight.detach()
trained = tiny_transformer()
trained.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q"], init_lora_weights="pissa"))
with torch.no_grad():
    for name, parameter in trained.named_parameters():
        if ".lora_" in name:
            parameter.add_(0.05 * torch.randn_like(parameter))
meant = weight(trained) - base
tensors = get_peft_model_state_dict(trained)
settings = trained.peft_config["default"].to_dict()
QwenImagePipeline.save_lora_weights(
    "saved", transformer_lora_layers=tensors, transformer_lora_adapter_metadata=settings
)

message = ""
try:
    pipeline().load_lora_weights("saved")
except RuntimeError as raised:
    message = str(raised)
print(f"load_lora_weights(file): RuntimeError: {message}")
assert "incompatible tensor type" in message, "the file is loaded, or another error is raised"

pipe = pipeline()
pipe.load_lora_weights("saved", low_cpu_mem_usage=False)
with_argument = error(weight(pipe.transformer) - base)
print(f"load_lora_weights(file, low_cpu_mem_usage=False): error {with_argument:.1f} of the change")
assert with_argument < 1e-5, "low_cpu_mem_usage=False is no longer exact"

product = tensors[f"{LAYER}.lora_B.weight"] @ tensors[f"{LAYER}.lora_A.weight"]
alone = error(product)
print(f"A and B alone, as any other reader adds them: error {alone:.1f} of the change")
assert alone > 0.5, "A and B alone are the change"
PYTHON
