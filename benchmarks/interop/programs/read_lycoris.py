"""LyCORIS: its loader for files; what its layers then compute with, or what it merges
into the weights."""

from __future__ import annotations

import os

import torch
from harness import build, main
from lycoris import create_lycoris_from_weights


def apply(job, file, weights):
    transformer = build(job, weights)
    network, _ = create_lycoris_from_weights(1.0, file["path"], transformer)
    if os.environ.get("INTEROP_WAY") == "merge":
        network.merge_to(1.0)
        return {
            name: tensor.clone() for name, tensor in transformer.state_dict().items()
        }
    network.apply_to()
    return computed_with(transformer, file["layers"], weights)


def computed_with(transformer, layers, weights):
    """Weight and bias of each layer by its outputs for unit inputs and for none."""
    found = {}
    for name in layers:
        layer = transformer.get_submodule(name)
        inputs = weights[f"{name}.weight"].shape[1]
        nothing = layer(torch.zeros(1, inputs))[0]
        found[f"{name}.weight"] = (layer(torch.eye(inputs)) - nothing).T
        if f"{name}.bias" in weights:
            found[f"{name}.bias"] = nothing
    return found


main(apply)
