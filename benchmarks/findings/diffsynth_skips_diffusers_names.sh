#!/usr/bin/env bash
# DiffSynth-Studio applies nothing of a LoRA with diffusers' or peft's names, and reports it only as a zero.
#
# Versions: diffsynth 2.1.12, torch 2.13.0.
#
# Its loader reads bare names and the prefix `diffusion_model.`. The prefix that diffusers writes for the same layers,
# `transformer.`, and those of peft and kohya (`base_model.model.`, `lora_unet_`) match no layer. There is no error and
# no warning: the usual line gives the number 0, and the images come from the base model alone.
#
# Output seen:
#   (none)              strength 1.0, 1 tensors are fused
#   diffusion_model.    strength 1.0, 1 tensors are fused
#   transformer.        strength 0.0, 0 tensors are fused
#   base_model.model.   strength 0.0, 0 tensors are fused
#   lora_unet_          strength 0.0, 0 tensors are fused
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet numpy
# The package imports torchvision; its loader of LoRAs, which is one file, does not.
venv/bin/pip install --quiet --no-deps diffsynth==2.1.12
venv/bin/python - <<'PYTHON'
import contextlib
import importlib.util
import io
import sysconfig
from pathlib import Path

import torch
from torch import nn

path = Path(sysconfig.get_paths()["purelib"], "diffsynth", "utils", "lora", "general.py")
spec = importlib.util.spec_from_file_location("general", path)
general = importlib.util.module_from_spec(spec)
spec.loader.exec_module(general)

RANK, SIDE = 4, 16
LAYER = "transformer_blocks.0.to_q"
FLAT = LAYER.replace(".", "_")
NAMES = {
    "(none)": (LAYER, 1),
    "diffusion_model.": (f"diffusion_model.{LAYER}", 1),
    "transformer.": (f"transformer.{LAYER}", 0),
    "base_model.model.": (f"base_model.model.{LAYER}", 0),
    "lora_unet_": (f"lora_unet_{FLAT}", 0),
}

torch.manual_seed(0)
down, up = torch.randn(RANK, SIDE), torch.randn(SIDE, RANK)
product = up @ down
for prefix, (name, expected) in NAMES.items():
    model = nn.ModuleDict({"transformer_blocks": nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(SIDE, SIDE)})])})
    layer = model.get_submodule(LAYER)
    before = layer.weight.detach().clone()
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        general.GeneralLoRALoader().fuse_lora_to_base_model(model, tensors)
    change = layer.weight.detach() - before
    strength = ((change * product).sum() / (product * product).sum()).item()
    line = said.getvalue().split(" by LoRA")[0]
    print(f"{prefix:19} strength {strength:.1f}, {line}")
    assert abs(strength - expected) < 1e-5, f"{prefix}: the strength was {expected}"
    assert line == f"{expected} tensors are fused", "it says something else"
PYTHON
