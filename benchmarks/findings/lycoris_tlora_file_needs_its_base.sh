#!/usr/bin/env bash
# A T-LoRA file of LyCORIS has no meaning without the exact weights that it was trained on.
#
# Versions: lycoris-lora 4.1.3, torch 2.13.0.
#
# A T-LoRA starts from the singular vectors of the base weight, and its change is the difference from that start:
# P diag(lambda) Q - P0 diag(lambda0) Q0. The file holds P, lambda, Q and alpha, and looks like a LoRA with a diagonal.
# P0 and Q0 are not in it: create_lycoris_from_weights computes them from the weights of the model that it is given.
# Other LoRAs contain their change. This one subtracts something else when it is loaded on a finetune of its base. The
# product of the stored matrices, which a reader of LoRAs would add, is wrong on the right base too.
#
# Output seen:
#   tensors: alpha, lambda_layer, p_layer.weight, q_layer.weight
#   on its own base:                         error 0.00 of the change
#   on a base that was trained on by 10 %:   error 0.29 of the change
#   the product of the stored matrices:      error 1.12 of the change
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet lycoris-lora==4.1.3
venv/bin/python - <<'PYTHON'
import logging

import torch
from lycoris import create_lycoris, create_lycoris_from_weights
from safetensors.torch import load_file, save_file
from torch import nn

logging.disable(logging.CRITICAL)
SIDE, RANK = 32, 4


class Model(nn.Module):
    def __init__(self, moved=0.0):
        """moved: by which part of its norm the weight differs from that of Model()."""
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(SIDE, SIDE, bias=False)
        direction = torch.randn(SIDE, SIDE)
        direction /= direction.norm()
        with torch.no_grad():
            self.layer.weight.add_(moved * self.layer.weight.norm() * direction)

    def forward(self, x):
        return self.layer(x)


@torch.no_grad()
def change(model, network):
    """What the network adds to the layer's weight."""
    before = model(torch.eye(SIDE)).T
    network.apply_to()
    after = model(torch.eye(SIDE)).T
    network.restore()
    return after - before


def error(found):
    return ((found - meant).norm() / meant.norm()).item()


model = Model()
network = create_lycoris(model, linear_dim=RANK, linear_alpha=RANK, algo="tlora")
torch.manual_seed(1)
with torch.no_grad():
    for parameter in network.loras[0].parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
meant = change(model, network)
network.apply_to()
save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, "tlora.safetensors")
network.restore()

stored = {name.removeprefix("lycoris_layer."): tensor for name, tensor in load_file("tlora.safetensors").items()}
print("tensors:", ", ".join(sorted(stored)))
assert set(stored) == {"alpha", "lambda_layer", "p_layer.weight", "q_layer.weight"}, "the file has other tensors"

errors = {}
for words, base in {"its own base": Model(), "a base that was trained on by 10 %": Model(0.1)}.items():
    loaded, _ = create_lycoris_from_weights(1.0, "tlora.safetensors", base)
    errors[words] = error(change(base, loaded))
    print(f"{f'on {words}:':40} error {errors[words]:.2f} of the change")
product = stored["p_layer.weight"] @ (stored["lambda_layer"].T * stored["q_layer.weight"])
print(f"{'the product of the stored matrices:':40} error {error(product):.2f} of the change")
own, other = errors.values()
assert own < 1e-5, "the file is no longer exact on its own base"
assert other > 0.2, "the file no longer depends on its base"
assert error(product) > 0.2, "the stored matrices are the change"
PYTHON
