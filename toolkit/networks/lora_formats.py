"""Reads adapter files of other programs: which change of which weight a file means,
under any of the known key names.

It reads LoRA, LoHa and LoKr, with or without DoRA, and OFT, BOFT and GLoRA
(`multiplied_files.py`), under every module prefix that ComfyUI or diffusers accept, and
files of peft. Kinds that are refused by name are in `unread_kinds.py`. Alpha and
diffusers' header metadata have the meaning that these programs give them;
`docs/correctness.md` lists the files that were compared.

It writes nothing: `spelling` and `save` do. Called wherever a file is used: by `merge`
and `applied`, by networks that start from a file, and by the tools for LoRA files.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toolkit.config.sections.model_files import named_elsewhere
from toolkit.contracts.model import ROWS_OF
from toolkit.errors import UserError
from toolkit.files.safetensors_io import aligned, check_count, read_header
from toolkit.files.unreadable import explained
from toolkit.files.writing import open_regular
from toolkit.networks.adapter_settings import (
    CONFIG_FILE,
    PEFT_PREFIX,
    AdapterSettings,
    read_settings,
)
from toolkit.networks.multiplied import FrozenLayer, Multiplied, kind_for
from toolkit.networks.multiplied_files import (
    STORED_PARTS,
    as_one_writer,
    form_of,
    misfit,
    read_stored,
)
from toolkit.networks.unread_kinds import unread_kind

PREFIXES = (
    "base_model.model.transformer.", "base_model.model.", "pipe.dit.", "diffusion_model.", "transformer.",
    "lora_transformer_", "lora_unet_", "lycoris_", "",
)  # fmt: skip
"""Prefixes that programs put before the module's name. Prefixes that end with `_`
belong to names with `_` for each dot."""

PARTS = {
    **{
        f".lora_{matrix}{end}": part
        for matrix, part in (("A", "down"), ("B", "up"))
        for end in ("", ".weight")
    },
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    **{
        f"{start}{part}.weight": part
        for start in (".lora_", ".lora.", "_lora.")
        for part in ("down", "up")
    },
    **{f".lora_linear_layer.{part}.weight": part for part in ("down", "up")},
    ".alpha": "alpha",
    ".diff_b": "bias",
    **{f".lora_B{end}.bias": "up_bias" for end in ("", ".default")},
    ".dora_scale": "dora_scale",
    **{
        f".lora_magnitude_vector{end}": "row_norms"
        for end in ("", ".weight", ".default.weight")
    },
    **{
        f".{name}": name
        for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    },
    **{
        f".{name}": name
        for name in (
            "lokr_w1",
            "lokr_w1_a",
            "lokr_w1_b",
            "lokr_w2",
            "lokr_w2_a",
            "lokr_w2_b",
        )
    },
    **STORED_PARTS,
}
"""Suffix of a key -> the part of the module that its tensor is."""

ADDED = (".diff", ".diff_b", ".lora_B.bias", ".lora_B.default.bias")
"""Suffixes of tensors that are added to a weight or bias. Such tensors of zeros are
ignored, for any layer: ComfyUI's extraction writes them for each norm and bias that did
not change."""

MATMUL_PAIRS = (
    ("up", "down"),
    ("hada_w1_a", "hada_w1_b"),
    ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
)
"""Parts that are multiplied as matrices."""

READ_KINDS = "LoRA, DoRA, LoHa, LoKr, OFT, BOFT, GLoRA, IA3 and whole changes"
"""The kinds that can be read, for messages."""

BROKEN = "The file is damaged, or its training failed. Take an earlier one, or save or download it again."
"""The remedy for a file whose numbers or matrices are missing."""

OTHER = "Give a file of this model, without layers of other parts."

BESIDE_LAYERS = re.compile(
    r"(?:base_model\.model\.)?(?:lora_te\d?_|text_encoders?(?:_\d)?[._])|bundle_emb\."
)
"""Beginnings of the names of a text encoder's layers, and of embeddings that OneTrainer
puts beside a LoRA."""

FULLRANK = "a whole matrix in the place of each lora_A, as network.type fullrank of ai-toolkit saves them"
FULLRANK_REMEDY = "Train it as lora or lokr there."
"""The remedy for a file with more layers than the model."""

NO_BIAS = "This model has none there. Use the file with the model it is of."
"""The remedy for a file that changes the bias of a layer without one."""


@dataclass(frozen=True)
class LayerDelta:
    """The change that a file makes to one linear layer.

    >>> change = LayerDelta({"up": torch.ones(4, 1), "down": torch.ones(1, 2)}, 0.5)
    >>> change.shape, change.delta()[0]
    ((4, 2), tensor([0.5000, 0.5000]))
    """

    parts: Mapping[str, Tensor]
    """Name in PARTS -> float32 matrix, without alpha; row_norms are dora_scale [O, 1].
    An OFT, BOFT or GLoRA has the names in `multiplied.py`."""

    scale: float

    bias: Tensor | None = None
    """The change of the layer's bias [O], float32. Where only the bias is changed, the
    matrices have rank 0."""

    size: tuple[int, int] = (0, 0)
    """(outputs, inputs) where `multiplied` has a kind; 0 where neither its matrices nor
    the model give the number."""

    @property
    def multiplied(self) -> Multiplied | None:
        """The kind of a change that multiplies the weight; None for a change that is
        added to it, and for a DoRA."""
        return kind_for(self.parts)

    @property
    def needs_base(self) -> bool:
        """Whether the change depends on the weight that it is used with. Then only
        `delta_for` gives it, and `delta` does not."""
        return self.magnitude is not None or self.multiplied is not None

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """(up_OR, down_RI) with the scale in `up`, for a plain LoRA."""
        if "up" in self.parts:
            return (self.scale * self.parts["up"], self.parts["down"])
        return None

    @property
    def magnitude(self) -> Tensor | None:
        """For a DoRA: the new norms of its weight, [1, I] for input columns or [O, 1]
        for output rows."""
        return self.parts.get("dora_scale")

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the changed weight."""
        p = self.parts
        if self.multiplied:
            return self.size
        if "up" in p:
            return p["up"].shape[0], p["down"].shape[1]
        if "hada_w1_a" in p:
            return p["hada_w1_a"].shape[0], p["hada_w1_b"].shape[1]
        rows, columns = factor(p, "lokr_w1").shape
        more_rows, more_columns = factor(p, "lokr_w2").shape
        return rows * more_rows, columns * more_columns

    @property
    def has_weight(self) -> bool:
        """False where only its bias is changed."""
        return "up" not in self.parts or bool(self.parts["up"].numel())

    @property
    def is_zero(self) -> bool:
        """Whether one of its factors is all zero, and it changes no bias. False for a
        DoRA, whose norms may change the weight all the same."""
        if self.magnitude is not None or self.bias is not None:
            return False
        if self.multiplied:
            return self.multiplied.is_zero(self.parts, self.scale)
        return self.scale == 0 or not all(part.any() for part in self.parts.values())

    def split(self, count: int) -> list[LayerDelta]:
        """The changes of `count` layers that each have an equal share of its outputs,
        in order. Raises ValueError where the change cannot be split: a DoRA with norms
        of columns, a LoKr whose first factor does not split, a BOFT of the outputs.
        """
        biases = [None] * count if self.bias is None else self.bias.chunk(count)
        if self.multiplied:
            of_each = self.multiplied.split(self.parts, count)
        else:
            of_each = self._split_parts(count)
        size = (self.size[0] // count, self.size[1])
        return [
            LayerDelta(parts, self.scale, bias, size)
            for parts, bias in zip(of_each, biases, strict=True)
        ]

    def _split_parts(self, count: int) -> list[dict[str, Tensor]]:
        of_rows = ("up", "hada_w1_a", "hada_w2_a", "lokr_w1", "lokr_w1_a", "dora_scale")
        rows = {
            name: part.chunk(count)
            for name, part in self.parts.items()
            if name in of_rows
        }
        if any(len(self.parts[name]) % count for name in rows):
            raise ValueError(f"{list(rows)} cannot be split into {count}")
        of_each = [
            {
                name: rows[name][i] if name in rows else p
                for name, p in self.parts.items()
            }
            for i in range(count)
        ]
        # They are copied, because safetensors writes no tensors that share memory.
        return [
            {name: part.clone() for name, part in parts.items()} for parts in of_each
        ]

    def to(self, device: torch.device) -> LayerDelta:
        """The same change on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(
            self,
            parts={name: part.to(device) for name, part in self.parts.items()},
            bias=bias,
        )

    def applied_to(self, weight_OI: Tensor) -> Tensor:
        """The weight after the change. weight_OI: the weight before it (float32)."""
        if self.magnitude is None:
            return weight_OI + self.delta_for(weight_OI)
        changed_OI = weight_OI + self.delta()
        return changed_OI * (
            self.magnitude
            / dora_norm(changed_OI, axis=0 if self.magnitude.shape[0] == 1 else 1)
        )

    def delta_for(self, weight_OI: Tensor) -> Tensor:
        """The difference that the file makes to `weight_OI` (float32), including the
        magnitude of a DoRA."""
        if self.multiplied:
            return self.multiplied.delta(self.parts, self.scale, weight_OI)
        if self.magnitude is None:
            return self.delta()
        return self.applied_to(weight_OI) - weight_OI

    def output_delta(self, x: Tensor, layer: FrozenLayer) -> Tensor:
        """The change of the outputs of the frozen layer for inputs `x` (float32), for a
        kind that multiplies the weight."""
        assert self.multiplied is not None
        return self.multiplied.output_delta(self.parts, self.scale, x, layer)

    def delta(self) -> Tensor:
        """The change of the weight [O, I]; for a DoRA the change before its magnitude.
        It is not defined for a kind in `multiplied`.

        Formulas: LyCORIS 4.1.3, equal to its training forward pass.
        """
        p = self.parts
        assert self.multiplied is None, "it has no change without the weight"
        if "up" in p:
            return self.scale * p["up"] @ p["down"]
        if "hada_w1_a" in p:
            return (
                self.scale
                * (p["hada_w1_a"] @ p["hada_w1_b"])
                * (p["hada_w2_a"] @ p["hada_w2_b"])
            )
        return self.scale * torch.kron(factor(p, "lokr_w1"), factor(p, "lokr_w2"))


def dora_norm(weight_OI: Tensor, axis: int) -> Tensor:
    """Norms of columns (axis 0, [1, I]) or rows (axis 1, [O, 1]), which are never zero.

    >>> dora_norm(torch.tensor([[3.0, 0.0], [4.0, 1.0]]), axis=0)
    tensor([[5., 1.]])
    """
    norms: Tensor = weight_OI.norm(dim=axis, keepdim=True)
    return norms.clamp_min(torch.finfo(weight_OI.dtype).tiny)


def factor(parts: Mapping[str, Tensor], name: str) -> Tensor:
    """A factor of a LoKr, `lokr_w1` or `lokr_w2`, multiplied out where it is
    low-rank."""
    return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]


def load_adapter_file(
    path: Path,
    layers: Mapping[str, tuple[int, int]] | Iterable[str],
    weights: Collection[str] = (),
) -> dict[str, LayerDelta]:
    """The changes of a file, by full dotted module name.

    layers: names of all linear layers of the model; with a mapping to (inputs, outputs)
    the shapes are checked too. weights: names of all weights and biases of the model,
    to check changes of biases; empty: not known. Raises UserError when the file cannot
    be read, has keys of no known form or of layers or biases that this model lacks,
    lacks a matrix, has matrices that do not fit, or has numbers that are not finite.

    Example::

        changes = load_adapter_file(Path("style.safetensors"), layers)
        change_OI = changes["transformer_blocks.0.attn.to_q"].delta()
    """
    tensors, metadata = read_tensors(path)
    changes = parse_adapter_tensors(tensors, layers, str(path), metadata)
    for name, change in changes.items():
        if weights and change.bias is not None and f"{name}.bias" not in weights:
            raise UserError(f"{path}: the bias of {name} is changed. {NO_BIAS}")
    return changes


def parse_adapter_tensors(
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, tuple[int, int]] | Iterable[str],
    source: str,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, LayerDelta]:
    """`load_adapter_file` for tensors in memory. source: their name in messages.

    >>> ends = {"lora_A.weight": torch.ones(1, 2), "lora_B.weight": torch.ones(4, 1)}
    >>> tensors = {f"transformer.to_q.{end}": tensor for end, tensor in ends.items()}
    >>> parse_adapter_tensors(tensors, {"to_q": (2, 4)}, "style")["to_q"].scale
    1.0
    """
    tensors = as_one_writer(tensors)
    settings = settings_of(source, tensors, metadata or {})
    fused = fused_layers(layers)
    names = {
        spelling: name
        for name in (*layers, *fused)
        for spelling in (name, name.replace(".", "_"))
    }
    grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
    key_of: dict[tuple[str, str], str] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        if adds_nothing(key, tensor):
            continue
        place = _locate(key, names)
        if place is None:
            unknown.append(key)
        elif place in key_of:
            raise UserError(
                f"{source}: {place[0]} is changed twice, by {key_of[place]!r} and {key!r}."
            )
        else:
            key_of[place] = key
            grouped[place[0]][place[1]] = tensor.float()
    if unknown:
        raise UserError(_about_unknown(source, sorted(unknown)))
    changes: dict[str, LayerDelta] = {}
    for name, parts in grouped.items():
        bias = _bias(source, name, parts)
        if parts:
            whole = _module(
                source,
                name,
                parts,
                settings,
                _size_of(fused.get(name, (name,)), layers),
            )
        else:
            whole = _of_bias(fused.get(name, (name,))[0], bias, layers)
        if bias is not None:
            check_bias(source, name, bias, whole.shape[0] or len(bias))
            whole = replace(whole, bias=bias)
        for of_layer, change in split_change(source, name, whole, fused).items():
            if of_layer in changes or (of_layer != name and of_layer in grouped):
                raise UserError(
                    f"{source}: {of_layer} is changed twice, by itself and as a part of {name}."
                )
            changes[of_layer] = change
    if isinstance(layers, Mapping):
        _check_shapes(source, changes, layers)
    return changes


def fused_layers(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Layer of ComfyUI's weights that the model has in parts (`ROWS_OF`), or under
    another name (`ModelFacts.layer_names`) -> the parts. layers: all layers of a model,
    or the ones that a file changes."""
    layers = list(layers)
    return named_elsewhere(layers) | {
        name.removesuffix(part) + whole: tuple(
            name.removesuffix(part) + other for other in parts
        )
        for name in layers
        for whole, parts in ROWS_OF.items()
        for part in parts
        if name.endswith(f".{part}")
    }


def fused_weights(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Each tensor of a transformer in one file, sorted by name -> the tensors of the
    model whose rows it has."""
    given = set(names)
    fused = fused_layers(name.removesuffix(".weight") for name in given)
    in_one_tensor = {
        f"{whole}.weight": tuple(f"{part}.weight" for part in parts)
        for whole, parts in fused.items()
    }
    in_parts = {part for parts in in_one_tensor.values() for part in parts}
    alone = {name: (name,) for name in given - in_parts}
    return dict(sorted((in_one_tensor | alone).items()))


def in_one(weights: Mapping[str, Tensor], markers: Iterable[str]) -> dict[str, Tensor]:
    """The weights of a transformer, with the layers joined that ComfyUI has joined
    (`ROWS_OF`). markers: names of empty tensors by which ComfyUI recognizes the
    model."""
    tensors = {name: torch.zeros(0) for name in markers}
    for name, parts in fused_weights(weights).items():
        if len(parts) > 1:
            tensors[name] = torch.cat([weights[part] for part in parts])
        else:
            tensors[name] = weights[parts[0]]
    return tensors


def split_change(
    source: str, name: str, change: LayerDelta, fused: Mapping[str, Sequence[str]]
) -> dict[str, LayerDelta]:
    """Layer of the model -> its part of the change."""
    if len(fused.get(name, ())) < 2:
        return {fused.get(name, [name])[0]: change}
    try:
        return dict(zip(fused[name], change.split(len(fused[name])), strict=True))
    except ValueError:
        whole = " and ".join(part.rpartition(".")[2] for part in fused[name])
        raise UserError(
            f"{source}: {name} is {whole} of this model in one, and this kind cannot be split."
        ) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file, unchanged. The text of peft's settings next to it
    is added to the metadata. Raises UserError when it cannot be read."""
    try:
        with open_regular(path) as opened:
            read_header(opened)  # names files of other kinds
        with safe_open(path, framework="pt") as file:
            check_count(len(file.keys()))
            tensors = {key: aligned(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        again = "Download or copy it again, or take an earlier file of the run."
        damaged = "cannot be read as a safetensors file"
        raise UserError(f"{path}: {explained(path, error, damaged, again)}") from error
    config = path.with_name(CONFIG_FILE)
    is_of_peft = path.name == "adapter_model.safetensors" or any(
        key.startswith(PEFT_PREFIX) for key in tensors
    )
    if is_of_peft and config.is_file():
        try:
            metadata = {**metadata, CONFIG_FILE: config.read_text(encoding="utf-8")}
        except (OSError, ValueError) as error:
            raise UserError(
                f"{config}: cannot be read ({error}). Copy it again with its file."
            ) from error
    return tensors, metadata


def own_names(keys: Iterable[str]) -> list[str]:
    """The names of the layers by the keys of a file, without knowledge of its model.

    >>> own_names(["transformer.to_q.lora_A.weight", "transformer.to_q.lora_B.weight"])
    ['to_q']
    """
    names: dict[str, None] = {}
    for key in keys:
        suffix = max((s for s in PARTS if key.endswith(s)), key=len, default="")
        names[without_prefix(key.removesuffix(suffix))] = None
    return list(names)


def without_prefix(stem: str) -> str:
    """The start of a key without a dotted prefix of PREFIXES."""
    for prefix in PREFIXES:
        if prefix.endswith(".") and stem.startswith(prefix):
            return stem.removeprefix(prefix)
    return stem


def adds_nothing(key: str, tensor: Tensor) -> bool:
    """Whether a tensor is one of ADDED, and all zero."""
    return key.endswith(ADDED) and not tensor.float().any()


def _locate(key: str, names: Mapping[str, str]) -> tuple[str, str] | None:
    """(module name, part) of a key."""
    suffix = max((s for s in PARTS if key.endswith(s)), key=len, default=None)
    if suffix is None:
        return None
    stem = key.removesuffix(suffix)
    for prefix in PREFIXES:
        if stem.startswith(prefix) and stem.removeprefix(prefix) in names:
            return names[stem.removeprefix(prefix)], PARTS[suffix]
    return None


def without_beside(source: str) -> str:
    """The command that leaves out what `BESIDE_LAYERS` names."""
    target = Path(source).with_suffix(".transformer.safetensors")
    code = (
        "import re; from safetensors.torch import load_file, save_file; "
        f"save_file({{k: v for k, v in load_file({source!r}).items() "
        f"if not re.match(r'{BESIDE_LAYERS.pattern}', k)}}, {str(target)!r})"
    )
    return f"A file without them: {shlex.join([sys.executable, '-c', code])}"


def is_fullrank(parts: Mapping[str, Tensor]) -> bool:
    """Whether a layer has one matrix, which is too large for a rank."""
    if parts.keys() != {"down"}:
        return False
    outputs, inputs = parts["down"].shape[0], parts["down"].shape[-1]
    return outputs >= 256 and 4 * outputs >= inputs


def _about_unknown(source: str, keys: list[str]) -> str:
    """Why these keys cannot be used, with the first key of the most specific reason."""
    if all(map(BESIDE_LAYERS.match, keys)):
        what = f"{len(keys)} keys are of a text encoder or of embeddings, such as {keys[0]!r}"
        return f"{source}: {what}. {without_beside(source)}"
    for key in keys:
        what = unread_kind(key)
        if what:
            remedy = (
                " ComfyUI's extraction leaves them out with bias_diff off; its training node always trains norms."
                * key.endswith(ADDED)
            )
            return f"{source}: holds {what}, as {key!r}. Only {READ_KINDS} can be read.{remedy}"
    for key in keys:
        if any(key.endswith(suffix) for suffix in PARTS):
            return f"{source}: {len(keys)} keys are of layers that this model does not have, such as {key!r}. {OTHER}"
    return f"{source}: {len(keys)} keys are of no known form, such as {keys[0]!r}."


def ignores_alpha(parts: Collection[str]) -> bool:
    """Whether a layer has two full factors of a LoKr. Then its scale is 1, and its
    alpha may be infinite."""
    return "lokr_w1" in parts and "lokr_w2" in parts


def _bias(source: str, name: str, parts: dict[str, Tensor]) -> Tensor | None:
    """Removes the change of the bias from the parts of a layer and returns it; None where
    the parts have none."""
    bias_O = parts.pop("bias", None)
    if bias_O is None:
        return None
    if "up_bias" in parts:
        raise UserError(
            f"{source}: the bias of {name} is changed twice, by diff_b and by lora_B.bias."
        )
    check_bias(source, name, bias_O, bias_O.numel())
    return bias_O


def _of_bias(
    name: str,
    bias_O: Tensor | None,
    layers: Mapping[str, tuple[int, int]] | Iterable[str],
) -> LayerDelta:
    """A change of a layer that leaves its weight as it is; it has 0 inputs where their
    number is not known. name: of the layer, or of a part."""
    assert bias_O is not None  # else nothing of the layer is changed
    inputs = layers[name][0] if isinstance(layers, Mapping) else 0
    return LayerDelta(
        {"up": torch.zeros(len(bias_O), 0), "down": torch.zeros(0, inputs)}, 1.0
    )


def _size_of(
    parts: Sequence[str], layers: Mapping[str, tuple[int, int]] | Iterable[str]
) -> tuple[int, int]:
    """(outputs, inputs) of a layer, or of a layer that the model has in several parts;
    zeros where they are not known."""
    if not isinstance(layers, Mapping):
        return 0, 0
    return sum(layers[part][1] for part in parts), layers[parts[0]][0]


def _module(
    source: str,
    name: str,
    parts: dict[str, Tensor],
    settings: AdapterSettings | None,
    size: tuple[int, int],
) -> LayerDelta:
    """The change of one layer. size: (outputs, inputs) of the layer, 0 where not
    known."""
    alpha = parts.pop("alpha", None)
    if alpha is not None and alpha.numel() != 1 and not ignores_alpha(parts):
        raise UserError(
            f"{source}: alpha of {name} is {list(alpha.shape)} numbers, not one."
        )
    if "row_norms" in parts:
        parts["dora_scale"] = parts.pop("row_norms").reshape(-1, 1)
    if is_fullrank(parts):
        raise UserError(f"{source}: holds {FULLRANK}, as {name}. {FULLRANK_REMEDY}")
    if lacks_a_matrix(parts):
        held = ", ".join(sorted(parts)) or "alpha"
        raise UserError(
            f"{source}: {name} lacks a matrix; it holds only {held}. {BROKEN}"
        )
    if (
        settings is not None
        and settings.values.get("use_dora")
        and "up" in parts
        and "dora_scale" not in parts
    ):
        lost = (
            f"{settings.source} says use_dora, and {name} has no magnitude: it was lost"
        )
        raise UserError(f"{source}: {lost}. Take the file as its trainer saved it.")
    up_bias = parts.pop("up_bias", None)
    form = form_of(parts)
    if form:
        stored, scale, shape = read_stored(
            source, name, form, parts, alpha, settings, size
        )
        change = LayerDelta(stored, scale, size=shape)
    else:
        check_parts(source, name, parts)
        try:
            change = LayerDelta(parts, layer_scale(name, parts, alpha, settings))
        except UserError as error:  # patterns that are not done in time
            raise UserError(f"{source}: {error}") from error
    if not math.isfinite(change.scale):
        raise UserError(f"{source}: alpha of {name} is not finite.")
    if up_bias is None:
        return change
    return replace(change, bias=_up_bias(source, name, up_bias, change))


def _up_bias(source: str, name: str, up_bias: Tensor, change: LayerDelta) -> Tensor:
    """The change of a layer's bias by the bias of lora_B, which is multiplied by the
    strength of the layer.

    Source: peft 0.21.2, tuners/lora/layer.py, `Linear.merge`. It writes no such bias
    with a DoRA.
    """
    if change.low_rank is None or change.needs_base:
        raise UserError(
            f"{source}: {name} mixes several kinds of change: {', '.join(sorted(change.parts))}, lora_bias."
        )
    check_bias(source, name, up_bias, change.shape[0])
    return change.scale * up_bias


def check_bias(source: str, name: str, bias: Tensor, outputs: int) -> None:
    """Raises UserError unless the bias is a vector of finite numbers, one for each
    output."""
    if bias.dim() != 1 or len(bias) != outputs:
        shape = f"the shape {list(bias.shape)}, which is not the layer's ([{outputs}])"
        raise UserError(f"{source}: the change of the bias of {name} has {shape}.")
    if not torch.isfinite(bias).all():
        raise UserError(f"{source}: {name} holds numbers that are not finite. {BROKEN}")


def layer_scale(
    name: str,
    parts: Mapping[str, Tensor],
    alpha: Tensor | None,
    settings: AdapterSettings | None,
) -> float:
    """The strength of a layer: the factor of its change.

    name: the layer, without a prefix. parts: its matrices. alpha: the file's own alpha
    of the layer, one number, or None. settings: the settings that peft or diffusers
    stored with the file, or None. An alpha in the file overrides the alpha of the
    settings. It is divided by the root of the rank where the settings require that
    (rsLoRA, as SimpleTuner 4.10.1 writes it for ComfyUI). Without both the strength is
    1.

    >>> parts = {"up": torch.ones(4, 2), "down": torch.ones(2, 4)}
    >>> layer_scale("to_q", parts, torch.tensor(1.0), settings=None)
    0.5
    """
    if alpha is None and settings is not None:
        return settings.scale(
            name, kind_of_parts(parts), None if ignores_alpha(parts) else rank_of(parts)
        )
    if alpha is None or ignores_alpha(parts):
        return 1.0
    if settings is not None and settings.is_rank_stabilised:
        return float(alpha) / math.sqrt(rank_of(parts))
    return float(alpha) / rank_of(parts)


def kind_of_parts(parts: Collection[str]) -> str:
    """lora, loha or lokr, by the names of a layer's matrices."""
    if "up" in parts:
        return "lora"
    return "loha" if "hada_w1_a" in parts else "lokr"


def settings_of(
    source: str, keys: Collection[str], metadata: Mapping[str, str]
) -> AdapterSettings | None:
    """The settings of a file with these keys. Raises UserError where they cannot be
    read, where with them the matrices alone are not the change, or where settings of
    peft are missing."""
    try:
        settings = read_settings(metadata)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if settings is None:
        without = keys_without_strength(keys)
        if without:
            raise UserError(f"{source}: {' '.join(missing_settings(without[0]))}")
        return None
    reason, remedy = settings.fault
    if reason:
        raise UserError(f"{source}: {reason}. {remedy}")
    return settings


def missing_settings(key: str) -> tuple[str, str]:
    """What is wrong with a file of such keys without peft's settings, and the remedy."""
    remedy = f"Put the file back next to the {CONFIG_FILE} that it was saved with."
    if "oft_R" in key:
        remedy += " An OFT of OneTrainer has none, and is not read: train a LoRA, LoHa or LoKr there."
    what = f"its keys are peft's, such as {key!r}. Their strength is in {CONFIG_FILE}, which is missing."
    return what, remedy


def keys_without_strength(keys: Collection[str]) -> list[str]:
    """Keys of layers whose strength is only in peft's settings: keys with peft's names
    and without an alpha."""
    without_strength = []
    for key in keys:
        suffix = max((end for end in PARTS if key.endswith(end)), key=len, default="")
        stem = key.removesuffix(suffix)
        part = PARTS.get(suffix)
        is_scaled = (
            key.startswith(PEFT_PREFIX)
            and part in SCALED_PARTS
            and f"{stem}.alpha" not in keys
        )
        # under any name: the settings define how its numbers become a rotation
        if is_scaled or part == "oft_R":
            without_strength.append(key)
    return without_strength


SCALED_PARTS = ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a", "boft_R")
"""A part of each kind whose matrices do not give the strength or the whole change."""


def lacks_a_matrix(parts: Mapping[str, Tensor]) -> bool:
    """Whether a matrix of the kind that the parts belong to is missing."""
    form = form_of(parts)
    if form:
        return not parts.keys() >= {*form.needed}
    if {"up", "down"} <= parts.keys() or {
        "hada_w1_a",
        "hada_w1_b",
        "hada_w2_a",
        "hada_w2_b",
    } <= parts.keys():
        return False
    factors = ("lokr_w1", "lokr_w2")
    return not all(
        name in parts or {f"{name}_a", f"{name}_b"} <= parts.keys() for name in factors
    )


def rank_of(parts: Mapping[str, Tensor]) -> int:
    """The inner size by which alpha is divided; 1 for a LoKr with two full factors, 0
    for an OFT or BOFT."""
    kind = kind_for(parts)
    if kind:
        return kind.rank(parts)
    inner = next(
        (
            parts[name]
            for name in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
            if name in parts
        ),
        None,
    )
    return 1 if inner is None else inner.shape[0]


def check_parts(source: str, name: str, parts: Mapping[str, Tensor]) -> None:
    """Raises UserError unless the matrices are of one kind, can be multiplied, and are
    finite."""
    if (
        len(
            {
                "lora" if part in ("up", "down") else part[:4]
                for part in parts
                if part != "dora_scale"
            }
        )
        > 1
    ):
        raise UserError(
            f"{source}: {name} mixes several kinds of change: {', '.join(sorted(parts))}."
        )
    for part, tensor in parts.items():
        if tensor.dim() != 2 or not tensor.numel():
            raise UserError(
                f"{source}: {part} of {name} has the shape {list(tensor.shape)}; it is not a matrix."
            )
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{source}: {name} holds numbers that are not finite. {BROKEN}"
            )
    for left, right in MATMUL_PAIRS:
        if {left, right} <= parts.keys() and parts[left].shape[1] != parts[right].shape[
            0
        ]:
            raise misfit(source, name, parts)
    outputs, inputs = LayerDelta(parts, 1.0).shape
    if "hada_w2_a" in parts and (
        parts["hada_w2_a"].shape[0],
        parts["hada_w2_b"].shape[1],
    ) != (outputs, inputs):
        raise misfit(source, name, parts)
    magnitude = parts.get("dora_scale")
    if magnitude is not None and magnitude.shape not in ((1, inputs), (outputs, 1)):
        wanted = f"[1, {inputs}] or [{outputs}, 1]"
        raise UserError(
            f"{source}: dora_scale of {name} has the shape {list(magnitude.shape)}, not {wanted}."
        )


def _check_shapes(
    source: str,
    changes: Mapping[str, LayerDelta],
    layers: Mapping[str, tuple[int, int]],
) -> None:
    for name, change in changes.items():
        inputs, outputs = layers[name]
        if change.shape != (outputs, inputs):
            has = f"{change.shape[1]} inputs and {change.shape[0]} outputs"
            raise UserError(
                f"{source}: {name} has {has} there, {inputs} and {outputs} in this model. It is of another model."
            )
