#!/usr/bin/env bash
# SimpleTuner's init_lora takes alpha = rank, whatever its own file and the job's lora_alpha say.
#
# Versions: simpletuner 4.10.1, diffusers 0.42.1, peft 0.21.2, transformers 5.24.0, torch 2.13.0.
#
# SimpleTuner saves with diffusers' save_lora_weights, which keeps alpha only in the header. init_lora derives the
# settings of the new adapter from the tensors, which contain no alpha, and these settings replace the job's lora_alpha.
# A run that continues from a file with rank 16 and alpha 32 starts with half of its effect. There is no warning, and
# no key is reported as missing.
#
# Output seen (rank 16, alpha 32):
#   settings from the file: {'r': 16, 'lora_alpha': 16.0}
#   additional keys: 0, missing keys: 0, strength 0.5
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
# Of SimpleTuner only two modules are needed, which run on older versions of Python than the whole program.
venv/bin/pip install --quiet --no-deps --ignore-requires-python simpletuner==4.10.1
venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file
from simpletuner.helpers.training.adapter import load_lora_weights
from simpletuner.helpers.training.lora_format import peft_lora_config_kwargs_from_state_dict

LAYER = "transformer_blocks.0.attn.to_q"
RANK, ALPHA = 16, 32


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



def change(model):
    layer = model.get_submodule(LAYER)
    return layer.get_delta_weight(layer.active_adapters[0]).detach()


trained = tiny_transformer()
trained.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q"], init_lora_weights=False))
meant = change(trained)
QwenImagePipeline.save_lora_weights(
    "saved",
    transformer_lora_layers=get_peft_model_state_dict(trained),
    transformer_lora_adapter_metadata=trained.peft_config["default"].to_dict(),
)

# As add_lora_adapter in simpletuner/helpers/models/common.py does it.
file = "saved/pytorch_lora_weights.safetensors"
tensors = load_file(file)
settings = peft_lora_config_kwargs_from_state_dict(tensors, prefix_to_strip="transformer.")
print("settings from the file:", settings)
assert settings == {"r": RANK, "lora_alpha": float(RANK)}, "alpha is no longer the rank"
continued = tiny_transformer()
continued.add_adapter(LoraConfig(target_modules=["to_q"], **settings))
additional, missing = load_lora_weights({"transformer": continued}, file, state_dict=tensors)
strength = ((change(continued) * meant).sum() / (meant * meant).sum()).item()
print(f"additional keys: {len(additional)}, missing keys: {len(missing)}, strength {strength:.1f}")
assert not additional and not missing
assert abs(strength - RANK / ALPHA) < 1e-5, "the strength was rank / alpha"
PYTHON
