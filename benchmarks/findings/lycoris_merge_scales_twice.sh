#!/usr/bin/env bash
# LyCORIS merges a LoHa, and a LoKr with a decomposed factor, with (alpha / r) squared.
#
# Versions: lycoris-lora 4.1.3, torch 2.13.0.
#
# The forward pass of these modules multiplies their weight by alpha / r once. `merge_to`, through `get_diff_weight`,
# takes a weight that is already scaled and scales it again. The merged model is then weaker than the trained one for
# alpha < r, stronger for alpha > r, and right only for alpha = r. A plain LoRA is merged correctly, so a check with a
# plain LoRA does not show it.
#
# Output seen (merged change / change of the forward pass):
#   lora, r 8, alpha 4                 1.0
#   loha, r 8, alpha 4                 0.5
#   loha, r 8, alpha 8                 1.0
#   lokr, r 2, alpha 4                 2.0
#   lokr, two whole factors            1.0
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet lycoris-lora==4.1.3
venv/bin/python - <<'PYTHON'
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.disable(logging.CRITICAL)
SIDE = 32


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(SIDE, SIDE, bias=False)

    def forward(self, x):
        return self.layer(x)


@torch.no_grad()
def merged_strength(**arguments):
    """The merged change of the weight, as a factor of the change that the forward pass makes."""
    model = Model()
    weight = model.layer.weight.clone()
    network = create_lycoris(model, **arguments)
    for parameter in network.loras[0].parameters():
        parameter.copy_(0.1 * torch.randn_like(parameter))
    network.apply_to()
    of_forward = model(torch.eye(SIDE)).T - weight
    network.restore()
    network.merge_to(1.0)
    merged = model.layer.weight - weight
    return ((merged * of_forward).sum() / (of_forward * of_forward).sum()).item()


cases = {
    "lora, r 8, alpha 4": ({"algo": "lora", "linear_dim": 8, "linear_alpha": 4}, 1),
    "loha, r 8, alpha 4": ({"algo": "loha", "linear_dim": 8, "linear_alpha": 4}, 4 / 8),
    "loha, r 8, alpha 8": ({"algo": "loha", "linear_dim": 8, "linear_alpha": 8}, 1),
    "lokr, r 2, alpha 4": ({"algo": "lokr", "linear_dim": 2, "linear_alpha": 4, "factor": 4}, 4 / 2),
    "lokr, two whole factors": ({"algo": "lokr", "linear_dim": 2, "linear_alpha": 4, "full_matrix": True}, 1),
}
for case, (arguments, expected) in cases.items():
    strength = merged_strength(**arguments)
    print(f"{case:34} {strength:.1f}")
    assert abs(strength - expected) < 1e-4, f"{case}: the factor was {expected}"
PYTHON
