#!/usr/bin/env bash
# A LoRA that SimpleTuner saves for ComfyUI cannot be loaded by diffusers because of its header; without it, it can.
#
# Versions: simpletuner 4.10.1, diffusers 0.42.1, peft 0.21.2, transformers 5.24.0, torch 2.13.0.
#
# With `lora_format: comfyui` SimpleTuner writes `diffusion_model.` names and `.alpha` keys, which diffusers reads. It
# also writes peft's settings into the header under diffusers' key (lora_adapter_metadata), but without the prefix that
# diffusers gives each of them (`transformer.r`). diffusers keeps only settings with this prefix, finds none, and makes
# a LoraConfig without target modules from them. peft then looks for the model's type to choose target modules, and the
# message, KeyError: 'model_type', names neither the file nor its header.
#
# Output seen (rank 4, alpha 2):
#   with the header     KeyError: 'model_type'
#   without the header  strength 1.0
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
# Of SimpleTuner only two modules are needed, which run on older versions of Python than the whole program.
venv/bin/pip install --quiet --no-deps --ignore-requires-python simpletuner==4.10.1
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import json

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from simpletuner.helpers.training.lora_format import convert_diffusers_to_comfyui

LAYER = "transformer_blocks.0.attn.to_q"


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


def load(header):
    """The strength that the file is loaded with, or the error."""
    save_file(tensors, "lora.safetensors", metadata=header)
    pipe = pipeline()
    try:
        pipe.load_lora_weights("lora.safetensors")
    except KeyError as error:
        return f"KeyError: {error}"
    strength = (change(pipe.transformer) * meant).sum() / (meant * meant).sum()
    return f"strength {strength.item():.1f}"


trained = tiny_transformer()
trained.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
meant = change(trained)
settings = trained.peft_config["default"].to_dict()
settings = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
named = {f"transformer.{name}": tensor for name, tensor in get_peft_model_state_dict(trained).items()}
tensors = convert_diffusers_to_comfyui(named, adapter_metadata=settings)
# As save_lora_weights in simpletuner/helpers/models/common.py writes it.
header = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(settings, indent=2, sort_keys=True)}

found = load(header)
print(f"with the header     {found}")
assert found == "KeyError: 'model_type'", "the file is loaded, or another error is raised"
found = load({"format": "pt"})
print(f"without the header  {found}")
assert found == "strength 1.0", "the file without its header was loaded exactly"
PYTHON
