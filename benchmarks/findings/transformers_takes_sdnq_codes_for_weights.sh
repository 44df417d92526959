#!/usr/bin/env bash
# transformers loads an SDNQ int8 model with its integer codes as weights, unless the program has imported sdnq.
#
# Versions: transformers 5.24.0, diffusers 0.42.1, sdnq 0.2.8, torch 2.13.0.
#
# sdnq registers its method with transformers when it is imported; installing it is not enough. Without the import
# transformers does not know the method in config.json, logs "Unknown quantization type ... we will skip the
# quantization", and reads the files as if they were plain. int8 codes have the names and shapes of the weights, so they
# are converted to float32 and used, thousands of times too large. No key is missing; the scales are listed as
# unexpected keys, which "can be ignored when loading from different task/architecture". One would expect an error, as
# for a method whose package is missing.
#
# Output seen:
#   with import sdnq:     weight 0.0233, missing keys 0, unexpected keys 0, error of the logits 0.011
#   without import sdnq:  weight 51.0000, missing keys 0, unexpected keys 7, error of the logits 1.444
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet transformers==5.24.0 accelerate==1.15.0 diffusers==0.42.1 sdnq==0.2.8

cat > load.py <<'PYTHON'
import importlib
import sys

import torch
from transformers import Qwen2ForCausalLM

is_imported = sys.argv[1] == "with"
if is_imported:
    importlib.import_module("sdnq")
plain = Qwen2ForCausalLM.from_pretrained("plain")
loaded, keys = Qwen2ForCausalLM.from_pretrained("int8", output_loading_info=True)
layer = loaded.model.layers[0].self_attn.q_proj
weight = (layer.weight.float() * layer.scale if is_imported else layer.weight)[0, 0].item()
ids = torch.arange(8)[None]
with torch.no_grad():
    logits = plain(ids).logits
    error = ((loaded(ids).logits - logits).norm() / logits.norm()).item()
missing, unexpected = len(keys["missing_keys"]), len(keys["unexpected_keys"])
words = f"weight {weight:.4f}, missing keys {missing}, unexpected keys {unexpected}, error of the logits {error:.3f}"
print(f"{sys.argv[1] + ' import sdnq:':21} {words}")
assert missing == 0, "keys are missing"
if is_imported:
    assert error < 0.05, "the quantized model is not near the plain one"
else:
    assert weight > 10, "the codes are no longer taken for weights"
PYTHON

venv/bin/python - <<'PYTHON' 2> errors.txt || { cat errors.txt >&2; exit 1; }
import torch
from sdnq import SDNQConfig
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
config = Qwen2Config(
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=64,
)
Qwen2ForCausalLM(config).save_pretrained("plain")
quantized = Qwen2ForCausalLM.from_pretrained("plain", quantization_config=SDNQConfig(weights_dtype="int8"))
quantized.save_pretrained("int8")
PYTHON
for way in with without; do
    venv/bin/python load.py "${way}" 2> errors.txt || { cat errors.txt >&2; exit 1; }
done
