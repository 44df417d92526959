#!/usr/bin/env bash
# Muon_adv makes an AdamW of the factors of a LoRA, and cannot load the state that it has saved of it.
#
# Versions: adv-optm 2.5.16, torch 2.13.0.
#
# Weights that are far wider than high, or the other way round, are not orthogonalized: the class steps them by AdamW,
# with a state of 8 bytes per weight instead of 4. If all weights of a group are such, which is so for a LoRA of rank 16
# on layers 3,072 wide, no step ever writes the group's entry 'actual_state_precision', and the class's own
# load_state_dict, which reads it, raises a KeyError. A training goes well until the first resume. AdaMuon_adv does the
# same.
#
# Output seen:
#   Muon_adv    (16, 256): momentum_buffer              4 bytes per weight, loads
#   Muon_adv    (16, 3072): exp_avg, exp_avg_sq         8 bytes per weight, KeyError: 'actual_state_precision'
#   AdaMuon_adv (16, 3072): exp_avg, exp_avg_sq         8 bytes per weight, KeyError: 'actual_state_precision'
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet adv-optm==2.5.16
venv/bin/python - <<'PYTHON'
import adv_optm
import torch

KEY = "'actual_state_precision'"


def state_after_a_step(name, width):
    weights = [torch.nn.Parameter(torch.ones(16, width)), torch.nn.Parameter(torch.ones(width, 16))]
    optimizer = getattr(adv_optm, name)(weights, lr=1e-3)
    for weight in weights:
        weight.grad = torch.cos(torch.arange(weight.numel())).view_as(weight)
    optimizer.step()
    return weights, optimizer


for name, width, entries, outcome in (
    ("Muon_adv", 256, ["momentum_buffer"], "loads"),
    ("Muon_adv", 3072, ["exp_avg", "exp_avg_sq"], f"KeyError: {KEY}"),
    ("AdaMuon_adv", 3072, ["exp_avg", "exp_avg_sq"], f"KeyError: {KEY}"),
):
    weights, optimizer = state_after_a_step(name, width)
    state = {key: value for key, value in optimizer.state[weights[0]].items() if torch.is_tensor(value)}
    size = sum(value.nbytes for value in state.values()) / weights[0].numel()
    try:
        getattr(adv_optm, name)(weights, lr=1e-3).load_state_dict(optimizer.state_dict())
        seen = "loads"
    except KeyError as error:
        seen = f"KeyError: {error}"
    print(f"{name:11} (16, {width}): {', '.join(state):28} {size:g} bytes per weight, {seen}")
    assert (list(state), seen) == (entries, outcome), f"{name} {width}: it was {entries}, {outcome}"
PYTHON
