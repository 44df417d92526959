#!/usr/bin/env bash
# create_lycoris ignores rs_lora: the network trains with alpha / r. The modules themselves support rs_lora.
#
# Versions: lycoris-lora 4.1.3, torch 2.13.0.
#
# `create_network`, which kohya's scripts call, passes rs_lora on, and the modules scale by alpha / sqrt(r).
# `create_lycoris`, the way for all other programs, takes the same keywords in **kwargs and never reads this one:
# there is no error and no warning, and the strength is alpha / r. A module with rs_lora stores alpha x sqrt(r) as its
# alpha, so readers that divide by r are right without knowing about rs_lora.
#
# Output seen (r 16, alpha 16):
#   create_lycoris                        scale 1.0, alpha in the file 16.0
#   create_lycoris, rs_lora=True          scale 1.0, alpha in the file 16.0
#   LoConModule, rs_lora=True             scale 4.0, alpha in the file 64.0
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet lycoris-lora==4.1.3
venv/bin/python - <<'PYTHON'
import logging

from lycoris import create_lycoris
from lycoris.modules.locon import LoConModule
from torch import nn

logging.disable(logging.CRITICAL)
RANK = 16


def wrapped(**arguments):
    model = nn.ModuleDict({"layer": nn.Linear(32, 32)})
    return create_lycoris(model, linear_dim=RANK, linear_alpha=RANK, algo="lora", **arguments).loras[0]


ways = {
    "create_lycoris": (wrapped(), 1.0),
    "create_lycoris, rs_lora=True": (wrapped(rs_lora=True), 1.0),
    "LoConModule, rs_lora=True": (
        LoConModule("layer", nn.Linear(32, 32), lora_dim=RANK, alpha=RANK, rs_lora=True),
        RANK**0.5,
    ),
}
for way, (module, expected) in ways.items():
    alpha = module.alpha.item()
    print(f"{way:37} scale {module.scale}, alpha in the file {alpha}")
    assert module.scale == expected, f"{way}: the scale was {expected}"
    assert alpha == expected * RANK, f"{way}: alpha was {expected * RANK}"
PYTHON
