"""How a run spells its LoRA files: the prefix of the keys, and where the strength is.

Networks export their tensors in one form: `diffusion_model.<layer>.<matrix>` with an alpha for each layer. `spelled`
turns that into the spelling of the model's family, which as many programs as possible load with exactly the trained
effect. Which program reads which spelling was found by running it (`benchmarks/bench_interop.py`; the table is in
docs/loras.md).

    spelling = SPELLINGS["qwen_image_2"]
    tensors = spelled(network.export(weights), spelling)

Shape suffixes: O outputs of a layer, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.models.interface import ROWS_OF

EXPORTED_PREFIX = "diffusion_model."
"""Before the name of a layer in what `Network.export` returns."""

UP = ".lora_B.weight"
DOWN = ".lora_A.weight"
ALPHA = ".alpha"


@dataclass(frozen=True)
class Spelling:
    """One way to write a LoRA, DoRA, LoHa or LoKr."""

    name: str
    """As checkpoints record it."""

    prefix: str
    """Before the name of a layer."""

    folds_alpha: bool
    """Whether alpha / rank is multiplied into the up matrix of a LoRA or DoRA. LoHa and LoKr always have an alpha."""

    stores_alpha: bool
    """Whether a LoRA or DoRA has an alpha for each layer: with `folds_alpha` it is the rank, which scales nothing."""


STORED = Spelling("alpha_stored", "diffusion_model.", folds_alpha=False, stores_alpha=True)
"""Of runs that began with version 0.2.0 or an earlier one. They keep it. mflux 0.24.0 ignores its alpha, and ComfyUI
does not know this prefix for all layers of Qwen-Image-2.1."""

FOLDED = Spelling("alpha_folded", "diffusion_model.", folds_alpha=True, stores_alpha=False)
"""ai-toolkit's. Exact in diffusers 0.42.1, ComfyUI (17358c8f), DiffSynth 2.1.12 and mflux 0.24.0."""

BARE = Spelling("bare", "", folds_alpha=True, stores_alpha=True)
"""For models whose layers ComfyUI (17358c8f) fuses: it finds their halves without a prefix. diffusers 0.42.1 loads such
names only where the file has an alpha."""

SPELLINGS: dict[str, Spelling] = {
    "qwen_image": FOLDED,
    "qwen_image_edit": FOLDED,
    "qwen_image_edit_plus": FOLDED,
    "qwen_image_2": BARE,
}
"""`model.arch` -> the spelling of new runs; FOLDED for families that are not listed."""

NAMED = {spelling.name: spelling for spelling in (STORED, FOLDED, BARE)}


def spelling_of(arch: str) -> Spelling:
    """The spelling of new runs on a family."""
    return SPELLINGS.get(arch, FOLDED)


def spelling_for_layers(layers: Iterable[str]) -> Spelling:
    """The spelling for a file whose model is known by its layers alone."""
    halves = tuple(f".{part}" for parts in ROWS_OF.values() for part in parts)
    return BARE if any(layer.endswith(halves) for layer in layers) else FOLDED


def spelled(tensors: Mapping[str, Tensor], spelling: Spelling) -> dict[str, Tensor]:
    """Exported tensors in a spelling.

    tensors: as `Network.export` returns them. Those without EXPORTED_PREFIX, which a network names itself, stay as they
    are. An up matrix [O, R] is multiplied in float32; alphas are float32 scalars.
    """
    written: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not key.startswith(EXPORTED_PREFIX):
            written[key] = tensor
            continue
        name = spelling.prefix + key.removeprefix(EXPORTED_PREFIX)
        if spelling.folds_alpha and key.endswith(UP):
            written[name] = _with_strength(tensor, tensors.get(f"{key.removesuffix(UP)}{ALPHA}"))
        elif spelling.folds_alpha and key.endswith(ALPHA):
            rank = _rank(tensors, key.removesuffix(ALPHA))
            if rank is None:  # a LoHa or LoKr
                written[name] = tensor
            elif spelling.stores_alpha:
                written[name] = torch.tensor(float(rank))
        else:
            written[name] = tensor
    return written


def _with_strength(up_OR: Tensor, alpha: Tensor | None) -> Tensor:
    if alpha is None:
        return up_OR
    return up_OR.float() * (float(alpha) / up_OR.shape[1])


def _rank(tensors: Mapping[str, Tensor], stem: str) -> int | None:
    """The rank of a LoRA's layer; None for a layer of another kind."""
    up_OR = tensors.get(f"{stem}{UP}")
    return None if up_OR is None else up_OR.shape[1]
