"""Files of LyCORIS: its own network over the transformer, saved by itself.

The meant change is that of its forward pass in training: the output of each layer for
unit inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lycoris.wrapper import LycorisNetwork
from torch import Tensor, nn

from benchmarks.interop.files import (
    ALPHA,
    RANK,
    Changes,
    Draws,
    WrittenFile,
    changes_of,
)
from benchmarks.interop.models import TinyModel, linear_weights

VERSION = f"LyCORIS {version('lycoris-lora')}"

COLUMNS = {"weight_decompose": True, "wd_on_out": False}
ROWS = {"weight_decompose": True, "wd_on_out": True}

KINDS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "locon": ("LoCon", "locon", {}),
    "locon_rslora": ("LoCon, rs_lora", "locon", {"rs_lora": True}),
    "locon_scalar": ("LoCon, use_scalar", "locon", {"use_scalar": True}),
    "dora_rows": ("DoRA of rows (its default)", "locon", ROWS),
    "dora_columns": ("DoRA of columns", "locon", COLUMNS),
    "loha": ("LoHa", "loha", {}),
    "loha_rslora": ("LoHa, rs_lora", "loha", {"rs_lora": True}),
    "loha_scalar": ("LoHa, use_scalar", "loha", {"use_scalar": True}),
    "loha_dora": ("LoHa, DoRA of columns", "loha", COLUMNS),
    "lokr": ("LoKr", "lokr", {"factor": 4}),
    "lokr_both": ("LoKr, decompose_both", "lokr", {"decompose_both": True}),
    "lokr_whole": ("LoKr, full_matrix", "lokr", {"full_matrix": True, "factor": 4}),
    "lokr_rslora": ("LoKr, rs_lora", "lokr", {"rs_lora": True, "factor": 4}),
    "lokr_scalar": ("LoKr, use_scalar", "lokr", {"use_scalar": True, "factor": 4}),
    "lokr_dora": ("LoKr, DoRA of columns", "lokr", {**COLUMNS, "factor": 4}),
    "lokr_dora_rows": ("LoKr, DoRA of rows", "lokr", {**ROWS, "factor": 4}),
    "glora": ("GLoRA", "glora", {}),
    "oft": ("diag-oft", "diag-oft", {}),
    "oft_constraint": ("diag-oft, constraint", "diag-oft", {"constraint": 0.01}),
    "oft_rescaled": ("diag-oft, rescaled", "diag-oft", {"rescaled": True}),
    "boft": ("BOFT", "boft", {}),
    "boft_rescaled": ("BOFT, rescaled", "boft", {"rescaled": True}),
    "tlora": ("T-LoRA", "tlora", {}),
    "full": ("full", "full", {}),
    "ia3": ("IA3", "ia3", {}),
}
"""Name -> title, algorithm, further settings."""

SMALL = ("oft", "boft", "ia3", "tlora", "full")
"""Kinds whose parameters are angles, or added to weights of their own: drawn small,
around their start."""


def write(
    model: TinyModel, folder: Path, kinds: Collection[str] = tuple(KINDS)
) -> Iterator[WrittenFile]:
    """A file of each kind."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    for name in kinds:
        what, algo, settings = KINDS[name]
        yield _written(
            model, folder / f"{name}.safetensors", name, what, algo, settings
        )


def _written(
    model: TinyModel,
    path: Path,
    name: str,
    what: str,
    algo: str,
    settings: Mapping[str, Any],
) -> WrittenFile:
    transformer = model.build()
    before = linear_weights(transformer)
    chosen = [
        layer for layer in model.layers() if _fits(name, len(before[f"{layer}.weight"]))
    ]
    targets = ["^" + layer.replace(".", r"\.") + "$" for layer in chosen]
    LycorisNetwork.apply_preset(
        {"target_module": [], "target_name": targets, "enable_conv": False}
    )
    torch.manual_seed(0)
    network = LycorisNetwork(
        transformer,
        lora_dim=RANK,
        alpha=ALPHA,
        conv_lora_dim=0,
        network_module=algo,
        **settings,
    )
    layers = {lora.lora_name: lora.org_module[0] for lora in network.loras}
    network.apply_to()
    _draw(network, Draws(model.title, "lycoris", name), is_small=name.startswith(SMALL))
    network.save_weights(str(path), torch.float32, {})
    names = {id(module): name for name, module in transformer.named_modules()}
    after = _trained_weights(
        {names[id(module)]: module for module in layers.values()}, before
    )
    meant = changes_of(after, {key: before[key] for key in after})
    return WrittenFile(
        f"lycoris_{name}", model.title, VERSION, what, path, meant, tuple(chosen)
    )


def _fits(name: str, outputs: int) -> bool:
    """A BOFT needs a power of two: it pairs ever farther rows."""
    return not name.startswith("boft") or outputs & (outputs - 1) == 0


@torch.no_grad()
def _draw(network: nn.Module, draws: Draws, is_small: bool) -> None:
    """Trained numbers: around zero, or around the start of the kinds that begin
    elsewhere."""
    for name, parameter in sorted(network.named_parameters()):
        if name.endswith("scalar"):
            parameter.fill_(0.7)
        elif name.endswith("dora_scale"):
            parameter.mul_(1 + draws.normal(*parameter.shape, std=0.1))
        elif is_small:
            parameter.add_(draws.normal(*parameter.shape, std=0.1))
        else:
            parameter.copy_(draws.normal(*parameter.shape))


@torch.no_grad()
def _trained_weights(
    layers: Mapping[str, nn.Module], before: Changes
) -> dict[str, Tensor]:
    """The weight that each layer works with, and its bias, by what it makes of unit
    inputs and of none."""
    found = {}
    for name, layer in layers.items():
        inputs = before[f"{name}.weight"].shape[1]
        nothing_O = layer(torch.zeros(1, inputs))[0]
        found[f"{name}.weight"] = (layer(torch.eye(inputs)) - nothing_O).T
        if f"{name}.bias" in before:
            found[f"{name}.bias"] = nothing_O
    return found
