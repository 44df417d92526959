"""Reads OFT, BOFT, GLoRA, IA3 and whole changes, as LyCORIS and peft store them, into
the parts of `multiplied.py`. It neither opens a file nor applies a change. Called by
`lora_formats` and `adapter_health`.

| kind, writer | keys after the layer's name | besides |
|---|---|---|
| OFT of LyCORIS (diag-oft) | `oft_blocks` [K, B, B], `rescale` [O, 1] | `alpha` times O: most norm of the blocks |
| BOFT of LyCORIS | `oft_blocks` [M, K, B, B], `rescale` [O, 1] | the same |
| GLoRA of LyCORIS | `a1`, `a2`, `b1`, `b2` with `.weight` | `alpha`: through the rank it is the scale |
| OFT of peft | `oft_R.weight` [K, B (B - 1) / 2] | settings (`OftSettings`) |
| BOFT of peft | `boft_R` [M, K, B, B], `boft_s` [O, 1] | nothing: its settings are the shape of the matrices |
| full of LyCORIS, ComfyUI's extraction | `diff` [O, I] | nothing |
| IA3 of LyCORIS | `weight` [O] or [I] | `on_input`: 1 where it has the inputs |

Source: LyCORIS 4.1.3, `weight_list` and `make_module_from_state_dict` of its modules;
peft 0.21.2, tuners/{oft,boft}. Tested against the outputs of both libraries in
`tests/toolkit/networks/test_multiplied_files.py`.

Shape suffixes: as in `multiplied.py`; N numbers above the diagonal of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.networks.adapter_settings import AdapterSettings, OftSettings
from toolkit.networks.multiplied import (
    Parts,
    cayley_KBB,
    cayley_neumann_KBB,
    limited_each_KBB,
    limited_skew,
    skew_of_triangle_KBB,
)

Stored = tuple[dict[str, Tensor], float, tuple[int, int]]
"""Parts for `multiplied.py`, the scale, and (outputs, inputs) of the layer, 0 where
they are not known."""

Shape = tuple[int, int]

COMFYUI = "diffusion_model."
"""Beginning of the keys that ComfyUI's training node writes, with dotted names."""


class Misfit(ValueError):
    """Matrices of these shapes do not belong to this kind, or not to this layer."""


@dataclass(frozen=True)
class StoredForm:
    """How one program stores one kind.

    >>> form_of({"a1", "a2"}).title  # some parts may be missing
    'a GLoRA'
    """

    title: str
    """The kind with its article, for messages."""

    needed: tuple[str, ...]
    """Parts that every layer has, by the names in STORED_PARTS."""

    optional: tuple[str, ...]
    read: Callable[[Parts, float | None, AdapterSettings | None, Shape], Stored]
    """A function of the parts (float32), alpha, the settings, and (outputs, inputs) of
    the model's layer, 0 where not known. It raises Misfit, and UserError for settings
    that cannot be read."""

    has_alpha: bool = True


def _need(fits: bool) -> None:
    """Raises Misfit where the matrices do not."""
    if not fits:
        raise Misfit


def _read_lycoris_oft(
    parts: Parts, alpha: float | None, settings: AdapterSettings | None, layer: Shape
) -> Stored:
    blocks = parts["oft_blocks"]
    _need(blocks.dim() in (3, 4) and blocks.shape[-1] == blocks.shape[-2])
    skew = blocks - blocks.transpose(-1, -2)
    outputs = blocks.shape[-1] * blocks.shape[-3]
    rotation = cayley_KBB(limited_skew(skew, outputs * (alpha or 0.0)))
    # its OFT multiplies rows by the transposed matrices, its BOFT does not
    if blocks.dim() == 3:
        rotation = rotation.transpose(-1, -2)[None]
    else:
        _check_butterfly(len(blocks), blocks.shape[-1], outputs)
    stored = {"rotation_of_outputs": rotation.contiguous()}
    if "rescale" in parts:
        stored["rescale"] = _column(parts["rescale"], outputs)
    return stored, 1.0, (outputs, layer[1])


def _read_glora(
    parts: Parts, alpha: float | None, settings: AdapterSettings | None, layer: Shape
) -> Stored:
    a1, a2, b1, b2 = (parts[name] for name in ("a1", "a2", "b1", "b2"))
    _need(all(part.dim() == 2 for part in (a1, a2, b1, b2)))
    inputs, rank = a1.shape
    _need(a2.shape == b2.shape == (rank, inputs) and b1.shape[1] == rank)
    return dict(parts), 1.0 if alpha is None else alpha / rank, (len(b1), inputs)


def _read_peft_oft(
    parts: Parts, alpha: float | None, settings: AdapterSettings | None, layer: Shape
) -> Stored:
    triangle_KN = parts["oft_R"]
    _need(triangle_KN.dim() == 2)
    count, numbers = triangle_KN.shape
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2
    _need(size * (size - 1) // 2 == numbers)
    # A file without settings has been refused by `settings_of`; `adapter_health` needs
    # only shapes.
    how = OftSettings() if settings is None else settings.oft()
    skew_KBB = skew_of_triangle_KBB(triangle_KN, size)
    if how.coft_eps is not None:
        skew_KBB = limited_each_KBB(skew_KBB, how.coft_eps)
    terms = how.neumann_terms
    rotation_KBB = (
        cayley_neumann_KBB(skew_KBB, terms) if terms else cayley_KBB(-skew_KBB)
    )
    _need(not how.is_shared or (count == 1 and layer[1] % size == 0))
    inputs = layer[1] if how.is_shared else count * size
    return {"rotation_of_inputs": rotation_KBB[None]}, 1.0, (layer[0], inputs)


def _read_peft_boft(
    parts: Parts, alpha: float | None, settings: AdapterSettings | None, layer: Shape
) -> Stored:
    blocks_MKBB = parts["boft_R"]
    _need(blocks_MKBB.dim() == 4 and blocks_MKBB.shape[-1] == blocks_MKBB.shape[-2])
    stages, count, size, _ = blocks_MKBB.shape
    if stages > 1:
        _check_butterfly(stages, size, count * size)
    rotation_MKBB = cayley_KBB((blocks_MKBB.transpose(-1, -2) - blocks_MKBB) / 2)
    rescale = _column(parts["boft_s"], len(parts["boft_s"]))
    stored = {"rotation_of_inputs": rotation_MKBB, "rescale": rescale}
    return stored, 1.0, (len(rescale), count * size)


def _read_whole(
    parts: Parts, alpha: float | None, settings: AdapterSettings | None, layer: Shape
) -> Stored:
    _need(parts["diff"].dim() == 2)
    outputs, inputs = parts["diff"].shape
    return dict(parts), 1.0, (outputs, inputs)


def _read_ia3(
    parts: Parts, alpha: float | None, settings: AdapterSettings | None, layer: Shape
) -> Stored:
    factors = parts["ia3_weight"]
    _need(factors.dim() == 1 and parts["on_input"].numel() == 1)
    if parts["on_input"].item():
        return {"factors": factors[None]}, 1.0, (layer[0], len(factors))
    return {"factors": factors[:, None]}, 1.0, (len(factors), layer[1])


def as_one_writer(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors, with one meaning for each name.

    The `.weight` next to an `.on_input` is named `.ia3_weight`: an IA3 of LyCORIS has
    no distinct name. The limit of an OFT of ComfyUI's training node is that of the
    norm, and LyCORIS's that of the norm per output: it is divided by the outputs.

    Source: ComfyUI 3684cff3, comfy/weight_adapter/oft.py, `calculate_weight`.
    """
    stems = {
        key.removesuffix(".on_input") for key in tensors if key.endswith(".on_input")
    }
    renamed = {}
    for key, tensor in tensors.items():
        stem = key.removesuffix(".weight")
        blocks = tensors.get(f"{key.removesuffix('.alpha')}.oft_blocks")
        if key.startswith(COMFYUI) and blocks is not None and blocks.dim() == 3:
            tensor = tensor.float() / blocks.shape[:2].numel()
        renamed[f"{stem}.ia3_weight" if stem != key and stem in stems else key] = tensor
    return renamed


def _check_butterfly(stages: int, size: int, width: int) -> None:
    """Raises Misfit where the rotations do not fit the width. The last rotation mixes
    2 ** (stages - 1) blocks of the rows or columns."""
    _need(size % 2 == 0 and width % (2 ** (stages - 1) * size) == 0)


def _column(part: Tensor, outputs: int) -> Tensor:
    _need(part.shape == (outputs, 1))
    return part


LYCORIS_OFT = StoredForm(
    "an OFT or BOFT of LyCORIS", ("oft_blocks",), ("rescale",), _read_lycoris_oft
)
GLORA = StoredForm("a GLoRA", ("a1", "a2", "b1", "b2"), (), _read_glora)
PEFT_OFT = StoredForm("an OFT of peft", ("oft_R",), (), _read_peft_oft, has_alpha=False)
PEFT_BOFT = StoredForm(
    "a BOFT of peft", ("boft_R", "boft_s"), (), _read_peft_boft, has_alpha=False
)

WHOLE = StoredForm("a whole change", ("diff",), (), _read_whole, has_alpha=False)
IA3 = StoredForm(
    "an IA3 of LyCORIS", ("ia3_weight", "on_input"), (), _read_ia3, has_alpha=False
)

FORMS = (LYCORIS_OFT, GLORA, PEFT_OFT, PEFT_BOFT, WHOLE, IA3)

STORED_PARTS: Mapping[str, str] = {
    ".oft_blocks": "oft_blocks",
    ".rescale": "rescale",
    **{f".{name}.weight": name for name in GLORA.needed},
    **{f".{name}": name for name in (*WHOLE.needed, *IA3.needed)},
    ".oft_R.weight": "oft_R",
    ".oft_R.default.weight": "oft_R",
    **{f".{name}{end}": name for name in PEFT_BOFT.needed for end in ("", ".default")},
}
"""Suffix of a key -> the part of the layer that its tensor is. peft removes the
adapter's name (`default`) when it saves; tensors that other code takes from a model
still have it."""


def form_of(parts: Collection[str]) -> StoredForm | None:
    """The form in which a layer's parts are stored; some may be missing. None where no
    form has such parts."""
    return next(
        (
            form
            for form in FORMS
            if any(name in parts for name in (*form.needed, *form.optional))
        ),
        None,
    )


def read_stored(
    source: str,
    name: str,
    form: StoredForm,
    parts: Mapping[str, Tensor],
    alpha: Tensor | None,
    settings: AdapterSettings | None,
    size: tuple[int, int],
) -> Stored:
    """The change of a layer that is stored in this form with all its matrices.

    parts: float32, without alpha. size: (outputs, inputs) of the model's layer, 0 where
    not known. Raises UserError where the matrices do not fit together or are not
    finite, or where the settings do not define their meaning.
    """
    others = parts.keys() - {*form.needed, *form.optional}
    if others or (alpha is not None and not form.has_alpha):
        also = sorted(others) or ["alpha"]
        raise UserError(
            f"{source}: {name} mixes several kinds of change: {form.title} and {', '.join(also)}."
        )
    if not all(torch.isfinite(part).all() for part in parts.values()):
        raise UserError(f"{source}: {name} holds numbers that are not finite.")
    if alpha is not None and not torch.isfinite(alpha).all():
        raise UserError(f"{source}: alpha of {name} is not finite.")
    if not all(part.numel() for part in parts.values()):
        raise misfit(source, name, parts)
    try:
        return form.read(parts, None if alpha is None else float(alpha), settings, size)
    except Misfit:
        raise misfit(source, name, parts) from None
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def misfit(source: str, name: str, parts: Mapping[str, Tensor]) -> UserError:
    """The refusal of matrices whose sizes contradict each other."""
    shapes = ", ".join(
        f"{part} {list(tensor.shape)}" for part, tensor in sorted(parts.items())
    )
    return UserError(f"{source}: the matrices of {name} do not fit together: {shapes}.")
