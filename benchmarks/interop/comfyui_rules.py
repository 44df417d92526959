"""What ComfyUI makes of an adapter file, by its rules: which names it knows, which
forms of keys, which formulas.

Written from facts that were checked against ComfyUI's own code on generated files:
names of weights as comfy/lora.py at 17358c8f (autumn 2026), formulas as
comfy/weight_adapter at the same time. ComfyUI never reads the header of a file.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.contracts.model import ROWS_OF

MATRIX_KEYS = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)
"""Ends of the keys of up and down matrix; the first form that is in a file counts."""


@dataclass(frozen=True)
class Place:
    """A weight of ComfyUI's, or rows of it."""

    weight: str
    """Its name without `.weight`."""

    rows: slice | None = None


@dataclass(frozen=True)
class Reading:
    """What a file does."""

    changes: dict[str, Tensor]
    """Change of each weight and bias, by the names of diffusers."""

    unread: list[str]
    """Keys that are of no known name or form; ComfyUI says so in its log alone."""

    failed: list[str]
    """Weights whose formula failed; they stay as they are, with a line in the log."""


def known_names(layers: Mapping[str, int]) -> dict[str, Place]:
    """Each name that ComfyUI knows -> the weight it is of, in the order in which it
    looks for them.

    layers: names of the linear layers of the model in diffusers -> their outputs.
    """
    fused = {
        layer.removesuffix(part) + whole: tuple(
            layer.removesuffix(part) + each for each in parts
        )
        for layer in layers
        for whole, parts in ROWS_OF.items()
        for part in parts
        if layer.endswith(f".{part}")
    }
    in_parts = {part for parts in fused.values() for part in parts}
    weights = [*(layer for layer in layers if layer not in in_parts), *fused]
    names: dict[str, Place] = {}
    for weight in weights:
        names[f"lora_unet_{weight.replace('.', '_')}"] = Place(weight)
        names[f"diffusion_model.{weight}"] = Place(weight)
    for weight in weights:
        start = 0
        for part in fused.get(weight, (weight,)):
            rows = None
            if weight in fused:
                rows = slice(start, start + layers[part])
                start += layers[part]
            names[part] = Place(weight, rows)
            names[f"transformer.{part}"] = Place(weight, rows)
            names[f"lycoris_{part.replace('.', '_')}"] = Place(weight, rows)
    return names


def read(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Reading:
    """The changes that ComfyUI makes with a file. weights: of the linear layers and
    their biases, by diffusers' names.

    Raises KeyError where a matrix lacks its partner, as ComfyUI does.
    """
    layers = {
        name.removesuffix(".weight"): len(w)
        for name, w in weights.items()
        if name.endswith(".weight")
    }
    known = known_names(layers)
    used: set[str] = set()
    patches: dict[tuple[str, str], tuple[Place, Patch]] = {}
    for name, place in known.items():
        patch = patch_of(name, tensors, used)
        if patch is not None:
            patches[place.weight, str(place.rows)] = (place, patch)
    biases = _bias_changes(tensors, known, weights, used)
    wholes = _whole_weights(weights, known)
    changed = {name: whole.clone() for name, whole in wholes.items()}
    failed = []
    for place, patch in patches.values():
        part = (
            changed[place.weight]
            if place.rows is None
            else changed[place.weight][place.rows]
        )
        try:
            part.copy_(patch(part.clone()))
        except RuntimeError:
            failed.append(place.weight)
    changes = {name: changed[name] - whole for name, whole in wholes.items()}
    unread = [key for key in tensors if key not in used]
    return Reading({**_in_layers(changes, known), **biases}, unread, failed)


Patch = Callable[[Tensor], Tensor]
"""The new weight of an old one; may raise RuntimeError."""


def patch_of(name: str, tensors: Mapping[str, Tensor], used: set[str]) -> Patch | None:
    """What the keys with this name do; None: there are none. Where there are several
    kinds, the last one counts."""
    found = Found(name, tensors, used)
    alpha = found.take(".alpha")
    magnitude = found.take(".dora_scale")
    patch: Patch | None = None
    for read_kind in (_lora, _loha, _lokr, _glora, _oft, _boft):
        kind = read_kind(found, None if alpha is None else alpha.item(), magnitude)
        patch = kind or patch
    whole = found.take(".diff")
    if whole is not None:
        patch = _added(whole)
    replaced = found.take(".set_weight")
    if replaced is not None:
        patch = _set_to(replaced)
    return patch


class Found:
    """The keys of a file with one name."""

    def __init__(
        self, name: str, tensors: Mapping[str, Tensor], used: set[str]
    ) -> None:
        self.name, self.tensors, self.used = name, tensors, used

    def take(self, end: str) -> Tensor | None:
        """The tensor with this end of its key, which counts as read; None: there is
        none."""
        key = self.name + end
        if key in self.tensors:
            self.used.add(key)
        return self.tensors.get(key)

    def need(self, end: str) -> Tensor:
        """The same, or KeyError."""
        self.used.add(self.name + end)
        return self.tensors[self.name + end]

    def has(self, end: str) -> bool:
        return self.name + end in self.tensors


def _lora(found: Found, alpha: float | None, magnitude: Tensor | None) -> Patch | None:
    for up, down in MATRIX_KEYS:
        if found.has(up):
            down_RI = found.need(down).float()
            product_OI = found.need(up).float() @ down_RI
            scale = 1.0 if alpha is None else alpha / len(down_RI)
            return _scaled(_constant(product_OI), scale, magnitude)
    return None


def _loha(found: Found, alpha: float | None, magnitude: Tensor | None) -> Patch | None:
    if not found.has(".hada_w1_a"):
        return None
    first_OR, first_RI = (
        found.need(".hada_w1_a").float(),
        found.need(".hada_w1_b").float(),
    )
    second_OR, second_RI = (
        found.need(".hada_w2_a").float(),
        found.need(".hada_w2_b").float(),
    )
    scale = 1.0 if alpha is None else alpha / len(first_RI)
    return _scaled(
        _constant((first_OR @ first_RI) * (second_OR @ second_RI)), scale, magnitude
    )


def _lokr(found: Found, alpha: float | None, magnitude: Tensor | None) -> Patch | None:
    first, first_rank = _factor(found, ".lokr_w1")
    second, second_rank = _factor(found, ".lokr_w2")
    if first is None or second is None:
        return None
    rank = second_rank or first_rank
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    return _scaled(_constant(torch.kron(first, second)), scale, magnitude)


def _factor(found: Found, name: str) -> tuple[Tensor | None, int | None]:
    """A factor, and the rank where it is low-rank."""
    whole = found.take(name)
    if whole is not None:
        return whole.float(), None
    left, right = found.take(f"{name}_a"), found.take(f"{name}_b")
    if left is None or right is None:
        return None, None
    return left.float() @ right.float(), len(right)


def _glora(found: Found, alpha: float | None, magnitude: Tensor | None) -> Patch | None:
    """W a1 a2 + b1 b2."""
    if not found.has(".a1.weight"):
        return None
    first_a, second_a = (
        found.need(".a1.weight").float(),
        found.need(".a2.weight").float(),
    )
    first_b, second_b = (
        found.need(".b1.weight").float(),
        found.need(".b2.weight").float(),
    )
    scale = 1.0 if alpha is None else alpha / len(second_a)
    return _scaled(
        lambda weight_OI: weight_OI @ first_a @ second_a + first_b @ second_b,
        scale,
        magnitude,
    )


def _oft(found: Found, alpha: float | None, magnitude: Tensor | None) -> Patch | None:
    """Each block of output rows is rotated. alpha: the largest norm of the rotations'
    generators, 0: none."""
    blocks = found.tensors.get(f"{found.name}.oft_blocks")
    if blocks is None or blocks.dim() != 3:
        return None
    found.take(".oft_blocks")
    found.take(".rescale")
    count, size = blocks.shape[:2]
    rotations = _rotations(blocks.float(), alpha or 0.0)

    def change(weight_OI: Tensor) -> Tensor:
        rows = weight_OI.reshape(count, size, -1)
        return ((rotations.mT - torch.eye(size)) @ rows).reshape(weight_OI.shape)

    return _scaled(change, 1.0, magnitude)


def _boft(found: Found, alpha: float | None, magnitude: Tensor | None) -> Patch | None:
    """Products of rotations of ever farther rows (butterflies)."""
    blocks = found.tensors.get(f"{found.name}.oft_blocks")
    if blocks is None or blocks.dim() != 4:
        return None
    found.take(".oft_blocks")
    rescale = found.take(".rescale")
    size = blocks.shape[2]

    def change(weight_OI: Tensor) -> Tensor:
        if alpha is None:
            raise RuntimeError("a BOFT without alpha")
        turned = weight_OI
        for stage, rotation in enumerate(_rotations(blocks.float(), alpha)):
            step = 2**stage * (size // 2)
            grouped = (
                turned.unflatten(0, (-1, 2, step))
                .transpose(1, 2)
                .flatten(0, 2)
                .unflatten(0, (-1, size))
            )
            grouped = rotation @ grouped
            turned = (
                grouped.flatten(0, 1)
                .unflatten(0, (-1, step, 2))
                .transpose(1, 2)
                .flatten(0, 2)
            )
        return (turned if rescale is None else turned * rescale.float()) - weight_OI

    return _scaled(change, 1.0, magnitude)


def _rotations(blocks: Tensor, most: float) -> Tensor:
    """(1 + Q) (1 - Q)^-1 of Q = blocks - blocks^T, cut to the norm `most` over all
    blocks unless that is 0."""
    generators = blocks - blocks.mT
    norm = float(generators.norm()) + 1e-8
    if most > 0 and norm > most:
        generators = generators * (most / norm)
    unit = torch.eye(blocks.shape[-1])
    return (unit + generators) @ (unit - generators).inverse()


def _constant(change_OI: Tensor) -> Patch:
    """A change that does not depend on the weight."""
    return lambda _: change_OI


def _scaled(change: Patch, scale: float, magnitude: Tensor | None) -> Patch:
    """The change times `scale`; with the magnitude of a DoRA where there is one.

    Norms of columns, [1, I], are those of the changed weight, as a DoRA means it. With
    norms of rows, [O, 1], ComfyUI divides by the norm of the weight before the change.
    """

    def patch(weight_OI: Tensor) -> Tensor:
        change_OI = scale * change(weight_OI).reshape(weight_OI.shape)
        if magnitude is None:
            return weight_OI + change_OI
        changed_OI = weight_OI + change_OI
        if magnitude.shape[0] == len(weight_OI):
            norm = weight_OI.norm(dim=1, keepdim=True)
        else:
            norm = changed_OI.norm(dim=0, keepdim=True)
        return changed_OI * (magnitude.float() / (norm + torch.finfo(norm.dtype).eps))

    return patch


def _added(change: Tensor) -> Patch:
    def patch(weight: Tensor) -> Tensor:
        return weight + change.float() if change.shape == weight.shape else weight

    return patch


def _set_to(value: Tensor) -> Patch:
    return lambda weight: weight.copy_(value)


def _bias_changes(
    tensors: Mapping[str, Tensor],
    known: Mapping[str, Place],
    weights: Mapping[str, Tensor],
    used: set[str],
) -> dict[str, Tensor]:
    """What is added to biases (`.diff_b`)."""
    changes: dict[str, Tensor] = {}
    for name, place in known.items():
        key = f"{name}.diff_b"
        if key in tensors:
            used.add(key)
            bias = weights.get(f"{place.weight}.bias")
            if bias is not None and bias.shape == tensors[key].shape:
                changes[f"{place.weight}.bias"] = tensors[key].float()
    return changes


def _whole_weights(
    weights: Mapping[str, Tensor], known: Mapping[str, Place]
) -> dict[str, Tensor]:
    """ComfyUI's weights of the model, by their names without `.weight`."""
    parts: dict[str, list[str]] = {}
    for name, place in known.items():
        if f"{name}.weight" in weights:
            parts.setdefault(place.weight, []).append(name)
    return {
        whole: torch.cat([weights[f"{part}.weight"] for part in names])
        for whole, names in parts.items()
    }


def _in_layers(
    changes: Mapping[str, Tensor], known: Mapping[str, Place]
) -> dict[str, Tensor]:
    """The changes by the layers of diffusers."""
    found = {}
    for name, place in known.items():
        if not name.startswith(
            ("lora_unet_", "lycoris_", "transformer.", "diffusion_model.")
        ):
            change = changes[place.weight]
            found[f"{name}.weight"] = (
                change if place.rows is None else change[place.rows]
            )
    return found
