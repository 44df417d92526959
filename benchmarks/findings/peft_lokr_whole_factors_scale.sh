#!/usr/bin/env bash
# A LoKr of peft with two whole factors is scaled by alpha / r. The same LoKr in LyCORIS is not.
#
# Versions: peft 0.21.2, lycoris-lora 4.1.3, torch 2.13.0.
#
# Where the rank is too large for a layer's factors, both libraries keep two whole matrices, w1 and w2, so no matrix
# has r rows. LyCORIS then takes a strength of 1 and stores alpha = r. One would expect the same from peft, which took
# LoKr from LyCORIS. It multiplies by alpha / r all the same: with r = 64 and alpha = 2, the same two matrices have 1/32
# of the effect. Its file has no alpha, so a reader needs adapter_config.json and a separate rule for peft.
#
# Output seen:
#   peft:    matrices lokr_w1 (4, 4), lokr_w2 (4, 4); change / kron(w1, w2) = 0.03125
#   LyCORIS: matrices lokr_w1 (4, 4), lokr_w2 (4, 4); change / kron(w1, w2) = 1.0
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet peft==0.21.2 lycoris-lora==4.1.3
venv/bin/python - <<'PYTHON'
import logging

import torch
from lycoris import create_lycoris
from peft import LoKrConfig, get_peft_model
from torch import nn

logging.disable(logging.CRITICAL)
SIDE, RANK, ALPHA = 16, 64, 2


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(SIDE, SIDE, bias=False)


def strength(change, w1, w2):
    """The factor between a change and the plain product of its factors."""
    product = torch.kron(w1, w2)
    return ((change * product).sum() / (product * product).sum()).item()


torch.manual_seed(0)
config = LoKrConfig(r=RANK, alpha=ALPHA, target_modules=["layer"], init_weights=False)
of_peft = get_peft_model(Model(), config).base_model.model.layer
w1 = of_peft.lokr_w1["default"].detach()
w2 = of_peft.lokr_w2["default"].detach()
peft_strength = strength(of_peft.get_delta_weight("default").detach(), w1, w2)

network = create_lycoris(Model(), linear_dim=RANK, linear_alpha=ALPHA, algo="lokr")
of_lycoris = network.loras[0]
with torch.no_grad():
    of_lycoris.lokr_w1.copy_(w1)
    of_lycoris.lokr_w2.copy_(w2)
    lycoris_strength = strength(of_lycoris.get_diff_weight(1.0)[0], w1, w2)

shapes = f"matrices lokr_w1 {tuple(w1.shape)}, lokr_w2 {tuple(w2.shape)}"
print(f"peft:    {shapes}; change / kron(w1, w2) = {peft_strength}")
print(f"LyCORIS: {shapes}; change / kron(w1, w2) = {lycoris_strength}")
assert abs(peft_strength - ALPHA / RANK) < 1e-6, "peft no longer multiplies by alpha / r"
assert abs(lycoris_strength - 1) < 1e-6, "LyCORIS no longer takes a strength of 1"
PYTHON
