"""How a run spells its LoRA files: the prefix of the keys, and where the strength is.

Networks export their tensors in one form: `diffusion_model.<layer>.<matrix>` with an
alpha for each layer. `spelled` turns that into the spelling of the model's family
(`ModelFacts.lora_spelling`), which as many programs as possible load with exactly the
trained effect. Which program reads which spelling was found by running it
(docs/use_your_lora.md has the table).

    spelling = SPELLINGS[family.lora_spelling]
    tensors = spelled(network.export(weights), spelling)

It changes names and scales, and writes nothing. Called by the writers of a run and by
the tools that write LoRA files. `lora_formats` reads every spelling.

Shape suffixes: O outputs of a layer, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from toolkit.config.sections.model_files import family_with
from toolkit.contracts.model import ROWS_OF

EXPORTED_PREFIX = "diffusion_model."
"""Prefix of the name of a layer in the result of `Network.export`."""

DOWN = ".lora_A.weight"
UP = ".lora_B.weight"
ALPHA = ".alpha"


@dataclass(frozen=True)
class Spelling:
    """One way to write a LoRA, DoRA, LoHa or LoKr.

    >>> FOLDED.prefix, FOLDED.folds_alpha
    ('diffusion_model.', True)
    """

    name: str
    """Its name in checkpoints."""

    prefix: str
    """Prefix of the name of a layer."""

    down_up: tuple[str, str]
    """Ends of the keys of a LoRA's matrices."""

    folds_alpha: bool
    """Whether alpha / rank is multiplied into the up matrix of a LoRA or DoRA, which
    then has no alpha. LoHa and LoKr always have one."""


STORED = Spelling("alpha_stored", "diffusion_model.", (DOWN, UP), folds_alpha=False)
"""Used by runs that began before spellings were recorded. mflux 0.24.0 ignores its
alpha, and ComfyUI (17358c8f) does not find all layers of Qwen-Image-2.1 by this
prefix."""

FOLDED = Spelling("alpha_folded", "diffusion_model.", (DOWN, UP), folds_alpha=True)
"""The spelling of ai-toolkit. A LoRA is exact in ComfyUI (17358c8f), diffusers 0.42.1,
DiffSynth 2.1.12, mflux 0.24.0."""

BARE = Spelling(
    "bare", "", (".lora_A.default.weight", ".lora_B.default.weight"), folds_alpha=True
)
"""The spelling of DiffSynth, for models whose layers ComfyUI (17358c8f) fuses: it finds
their halves only without the prefix. Without `default` in the keys mflux 0.24.0 refuses
bare names, and diffusers 0.42.1 needs an alpha to load them. A LoRA is exact in the
same programs as with FOLDED."""

DIFFUSERS = Spelling("diffusers", "transformer.", (DOWN, UP), folds_alpha=True)
"""The spelling of diffusers' own trainers, for models whose authors name their layers
otherwise: behind `diffusion_model.` diffusers 0.42.1 looks for the authors' names."""

SPELLINGS = {spelling.name: spelling for spelling in (STORED, FOLDED, BARE, DIFFUSERS)}
"""Name -> spelling. The spelling of new runs is a fact of the model's family
(`ModelFacts.lora_spelling`)."""


def spelling_for_layers(layers: Iterable[str], model: Iterable[str] = ()) -> Spelling:
    """The spelling for a file whose model is known only by its layers.

    layers: those that the file changes. model: all layers of the model, where they are
    known, by which the models of `DIFFUSERS` are found.

    >>> spelling_for_layers(["transformer_blocks.0.attn.to_q"]).name
    'alpha_folded'
    """
    halves = tuple(f".{part}" for parts in ROWS_OF.values() for part in parts)
    if any(layer.endswith(halves) for layer in layers):
        return BARE
    family = family_with(model)
    return SPELLINGS[family.lora_spelling] if family else FOLDED


def spelled(tensors: Mapping[str, Tensor], spelling: Spelling) -> dict[str, Tensor]:
    """Exported tensors in a spelling.

    tensors: as `Network.export` returns them. Tensors without EXPORTED_PREFIX, which a
    network names itself, stay as they are. An up matrix [O, R] is multiplied by alpha /
    R in float32.

    Example::

        tensors = spelled(network.export(weights), SPELLINGS["bare"])
    """
    down, up = spelling.down_up
    written: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        stem = spelling.prefix + key.removeprefix(EXPORTED_PREFIX)
        if not key.startswith(EXPORTED_PREFIX):
            written[key] = tensor
        elif key.endswith(DOWN):
            written[stem.removesuffix(DOWN) + down] = tensor
        elif key.endswith(UP):
            alpha = tensors.get(key.removesuffix(UP) + ALPHA)
            if alpha is None or not spelling.folds_alpha:
                strength = 1.0
            else:
                strength = float(alpha) / tensor.shape[1]
            written[stem.removesuffix(UP) + up] = (
                tensor if strength == 1 else tensor.float() * strength
            )
        elif (
            key.endswith(ALPHA)
            and spelling.folds_alpha
            and key.removesuffix(ALPHA) + UP in tensors
        ):
            continue  # it is in the up matrix
        else:
            written[stem] = tensor
    return written
