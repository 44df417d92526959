"""Finds the faults of a LoRA file by its numbers alone: not finite, never trained,
matrices that are missing or do not fit, an alpha that was lost or makes no sense.

It needs no model, and reads files that `lora_formats` refuses. It does not judge the
images of a LoRA, nor whether its layers belong to a model. Called by the writers of a
run and by the tools that examine a file.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toolkit.errors import Diagnostic, Severity, UserError
from toolkit.networks.adapter_settings import (
    HEADER_METADATA,
    read_settings,
)
from toolkit.networks.lora_formats import (
    BESIDE_LAYERS,
    FULLRANK,
    FULLRANK_REMEDY,
    MATMUL_PAIRS,
    PARTS,
    LayerDelta,
    adds_nothing,
    check_parts,
    ignores_alpha,
    is_fullrank,
    keys_without_strength,
    lacks_a_matrix,
    layer_scale,
    missing_settings,
    rank_of,
    without_prefix,
)
from toolkit.networks.multiplied_files import as_one_writer, form_of, read_stored
from toolkit.networks.targets import block_in
from toolkit.networks.unread_kinds import unread_kind
from toolkit.version import NAME

NEARLY_NOTHING = 2e-6
EXPLODED = 32.0
"""Sizes of a change, relative to a weight's usual size, 1 / sqrt(inputs). A change
below the first is not visible: one step of Adam at a learning rate of 1e-4 changes
three times more with alpha 1 at rank 128. A change above the second drowns the
model."""

FADED = 1e-3
"""A layer that is nearly zero, and smaller than this share of the largest, was not
trained like the largest."""

MOST_RANK = 2
"""A rank that is more than this multiple of the larger side of its layer is the layer's
width: A and B are exchanged."""

TEXT_SIDE = re.compile(r"add(?:ed)?[._]|txt|text|context")
"""Pattern in the names of layers on the side of the text, where a model has one."""

USUAL_SCALES = (1 / 1024, 32.0)
"""Range of plausible alpha / rank: from alpha 1 at rank 1024 to rank-stabilised 32 at
rank 1."""

UNLIKE = 4.0
"""The factor by which the strength of a layer may differ from most layers."""


def finding(
    check: str,
    message: str,
    remedy: str,
    layers: Sequence[str] = (),
    severity: Severity = "error",
) -> Diagnostic:
    """One report about a LoRA file.

    layers: as the file names them; empty: all, or none in particular. severity: a
    warning is worth knowing, but the file may be sound.
    """
    return Diagnostic(tuple(layers), message, severity, check, remedy=remedy)


@dataclass
class FileLayers:
    """The tensors of a file by its own names of layers, without a model.

    >>> layers_of({"to_q.lora_A.weight": torch.ones(1, 4)}).parts["to_q"].keys()
    dict_keys(['down'])
    """

    parts: dict[str, dict[str, Tensor]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """Stem of the keys -> part (`lora_formats.PARTS`, alpha too) -> tensor as it is."""

    biases: dict[str, Tensor] = field(default_factory=dict)
    """Stem of the keys -> change of the layer's bias. The matrices of the layer may be
    missing."""

    unknown: list[str] = field(default_factory=list)
    """Keys of no known form."""

    def sound(self, metadata: Mapping[str, str]) -> dict[str, LayerDelta]:
        """The layers whose matrices exist, fit and are finite, with their strength.
        Settings that cannot be read count as missing."""
        settings = None
        with suppress(UserError):  # `_of_settings` reports it
            settings = read_settings(metadata)
        layers = {}
        for name, parts in self.parts.items():
            matrices = _matrices(parts)
            if _faults(matrices):
                continue
            alpha = parts.get("alpha")
            if alpha is not None and alpha.numel() != 1:
                alpha = None
            form = form_of(matrices)
            if not form:
                scale = layer_scale(without_prefix(name), matrices, alpha, settings)
                layers[name] = LayerDelta(matrices, scale)
                continue
            with suppress(UserError):  # alpha or settings, which other checks report
                stored, scale, shape = read_stored(
                    "", name, form, matrices, alpha, settings, (0, 0)
                )
                layers[name] = LayerDelta(stored, scale, size=shape)
        return layers


def layers_of(tensors: Mapping[str, Tensor]) -> FileLayers:
    """The tensors of a file by layer."""
    layers = FileLayers()
    for key, tensor in as_one_writer(tensors).items():
        suffix = max((end for end in PARTS if key.endswith(end)), key=len, default="")
        if adds_nothing(key, tensor):
            continue
        if suffix and PARTS[suffix] in ("bias", "up_bias"):
            layers.biases[key.removesuffix(suffix)] = tensor
        elif suffix:
            layers.parts[key.removesuffix(suffix)][PARTS[suffix]] = tensor
        else:
            layers.unknown.append(key)
    return layers


def _matrices(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All parts but alpha, float32, as `LayerDelta` has them."""
    matrices = {
        name: tensor.float() for name, tensor in parts.items() if name != "alpha"
    }
    if "row_norms" in matrices:
        matrices["dora_scale"] = matrices.pop("row_norms").reshape(-1, 1)
    return matrices


def _faults(matrices: Mapping[str, Tensor]) -> str:
    """The check that a layer fails, or empty."""
    if any(not torch.isfinite(tensor).all() for tensor in matrices.values()):
        return "not_finite"
    if any(not tensor.numel() for tensor in matrices.values()):
        return "rank_zero"
    if is_fullrank(matrices):
        return "fullrank"
    if lacks_a_matrix(matrices):
        return "incomplete"
    form = form_of(matrices)
    try:
        if form:
            read_stored("", "", form, matrices, None, None, (0, 0))
        else:
            check_parts("", "", matrices)
    except UserError:
        return "misfit"
    is_wide = "up" in matrices and rank_of(matrices) > MOST_RANK * max(
        LayerDelta(matrices, 1.0).shape
    )
    return "misfit" if is_wide else ""


_BROKEN = {
    "not_finite": (
        "numbers that are not finite (NaN or infinity): images become black or noise.",
        "Take an earlier file of the run; train with a lower lr, or in bf16.",
    ),
    "rank_zero": (
        "matrices of rank 0, which change nothing.",
        "Train with a rank of 1 or more, or convert the original file again.",
    ),
    "fullrank": (f"{FULLRANK}.", FULLRANK_REMEDY),
    "incomplete": (
        "only one of their matrices, or an alpha alone: the other was lost.",
        "Take the file as its trainer saved it; if it was converted, convert it again.",
    ),
    "misfit": (
        "matrices or biases that do not fit: they cannot be multiplied or added, or lora_A and lora_B are exchanged.",
        "Take the file as its trainer saved it: this one was put together wrongly.",
    ),
}


def health(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> list[Diagnostic]:
    """The faults of a file by its numbers, worst first; empty where it has none.

    It takes one pass over the tensors. It does not check whether a model has the
    layers.

    >>> [found.check for found in health({"to_q.lora_A.weight": torch.ones(1, 4)}, {})]
    ['incomplete']
    """
    read = layers_of(tensors)
    sound = read.sound(metadata)
    return [
        *_unread(read, len(tensors)),
        *_broken(read),
        *_untrained(sound),
        *_of_settings(tensors, metadata),
        *_alphas(read, sound, metadata),
    ]


def _of_settings(
    keys: Collection[str], metadata: Mapping[str, str]
) -> Iterator[Diagnostic]:
    """Faults of peft's settings: they cannot be read, name a kind that the matrices
    alone do not give, or are missing."""
    try:
        settings = read_settings(metadata)
    except UserError as error:
        yield finding(
            "bad_header",
            str(error),
            "Convert the original file again; diffusers stops at it.",
        )
        return
    if settings is None:
        without = keys_without_strength(keys)
        if without:
            message, remedy = missing_settings(without[0])
            yield finding("settings_missing", message[0].upper() + message[1:], remedy)
        return
    reason, remedy = settings.fault
    if reason:
        yield finding(
            "settings", f"The matrices alone are not its change: {reason}.", remedy
        )


def _unread(read: FileLayers, count: int) -> Iterator[Diagnostic]:
    if not read.unknown:
        return
    names = sorted(read.unknown)
    number = f"All {count}" if len(names) == count else f"{len(names)} of {count}"
    kinds = [kind for kind in map(unread_kind, names) if kind]
    if kinds:
        problem = f"hold {kinds[0]}"
        remedy = "Extract a LoRA of it (run.py extract)."
    elif all(map(BESIDE_LAYERS.match, names)):
        problem = "are embeddings that OneTrainer puts beside a LoRA"
        remedy = "Save it without them there (bundle_additional_embeddings)."
    else:
        problem = "are of no known form of a LoRA"
        remedy = "Give a LoRA file, not a model or a text encoder."
    yield finding(
        "unknown_keys",
        f"{number} keys {problem}, such as {names[0]!r}.",
        remedy,
        tuple(names),
    )


def _broken(read: FileLayers) -> Iterator[Diagnostic]:
    layers_by_fault: dict[str, list[str]] = defaultdict(list)
    for name, parts in read.parts.items():
        fault = _layer_fault(parts)
        if fault:
            layers_by_fault[fault].append(name)
    broken = {name for names in layers_by_fault.values() for name in names}
    sound = read.sound({})
    for name, bias_O in read.biases.items():
        if name in broken:
            continue
        fault = _bias_fault(bias_O, sound.get(name))
        if fault:
            layers_by_fault[fault].append(name)
    count = len(read.parts.keys() | read.biases.keys())
    for fault, (message, remedy) in _BROKEN.items():
        names = layers_by_fault[fault]
        if names:
            yield finding(
                fault, f"{_count(names, count)} hold {message}", remedy, tuple(names)
            )


def _layer_fault(parts: Mapping[str, Tensor]) -> str:
    """The check that a layer with its alpha fails, or empty."""
    alpha = parts.get("alpha")
    if (
        alpha is not None
        and not ignores_alpha(parts)
        and not torch.isfinite(alpha.float()).all()
    ):
        return "not_finite"
    return _faults(_matrices(parts))


def _bias_fault(bias_O: Tensor, change: LayerDelta | None) -> str:
    """The check that a change of a bias fails, or empty. change: of the layer's
    weight."""
    if not torch.isfinite(bias_O.float()).all():
        return "not_finite"
    fits = bias_O.dim() == 1 and (not change or len(bias_O) == change.shape[0])
    return "" if fits else "misfit"


def _untrained(sound: Mapping[str, LayerDelta]) -> Iterator[Diagnostic]:
    """Layers that change nothing, or too much. `_alphas` reports a scale of 0 and an
    implausible scale, so such layers count here as if their scale were 1."""
    if not sound:
        return
    sizes = {
        name: _size(change) * _believed_scale(change) for name, change in sound.items()
    }
    largest = max(sizes.values())
    if largest == 0:
        remedy = "Train again, and see that the loss has a gradient (grad_norm above 0 in metrics.jsonl)."
        yield finding("untrained", _why_untrained(sound), remedy)
        return
    if largest < NEARLY_NOTHING:
        message = f"All {len(sound)} layers are nearly zero: {largest:.1g} of the usual size of a weight."
        yield finding(
            "nearly_zero",
            message,
            "Train longer, or with a higher lr; it changes nothing that is seen.",
        )
        return
    least = min(NEARLY_NOTHING, FADED * largest)
    zero = [name for name, size in sizes.items() if size == 0 or size < least]
    if zero and not _is_end_of_text(zero, sound):
        message = f"{_count(zero, len(sound))} are zero or nearly: they were never trained, or lost their numbers."
        yield finding(
            "partly_untrained",
            message,
            "Train those layers too, or take another file.",
            tuple(zero),
        )
    huge = [name for name, size in sizes.items() if size > EXPLODED]
    if huge:
        message = f"{_count(huge, len(sound))} are up to {largest:.2g} times as large as a model's weights."
        remedy = "The training broke down: take an earlier file of the run; train with a lower lr."
        yield finding("exploded", message, remedy, tuple(huge))


def _believed_scale(change: LayerDelta) -> float:
    least, most = USUAL_SCALES
    scale = abs(change.scale)
    return scale if least <= scale <= most else 1.0


def _why_untrained(sound: Mapping[str, LayerDelta]) -> str:
    """Why a file without any effect is zero, and whether it was trained for even one
    step."""
    ups = [change.parts["up"] for change in sound.values() if "up" in change.parts]
    ups_are_zero = bool(ups) and not any(up.any() for up in ups)
    side = "lora_B (the up matrix)" if ups_are_zero else "one of the matrices"
    initial = ", and lora_A is as it was initialised: no step was taken"
    state = initial if _is_initial(sound) else ""
    return f"{side} is all zero in all {len(sound)} layers{state}. It does nothing."


def _size(change: LayerDelta) -> float:
    """The approximate size of a change at scale 1, without the norms of a DoRA,
    relative to a weight's usual size (`NEARLY_NOTHING`). It assumes that the rows of
    one matrix and the columns of the next are independent."""
    if change.multiplied:
        return change.multiplied.size(change.parts)
    inputs = change.shape[1]
    size = math.sqrt(inputs)
    for name, matrix in change.parts.items():
        if name != "dora_scale":
            size *= float(matrix.square().mean(dtype=torch.float64).sqrt())
    for left, _ in MATMUL_PAIRS:
        if left in change.parts:
            inner = change.parts[left].shape[1]
            size *= math.sqrt(inner)
    return size


def _is_initial(sound: Mapping[str, LayerDelta]) -> bool:
    """Whether all down matrices are evenly spread between -1 and 1 through the root of
    their inputs, as trainers begin with them (`torch.nn.init.kaiming_uniform_(a=5 **
    0.5)`)."""
    downs = [
        change.parts["down"] for change in sound.values() if "down" in change.parts
    ]
    spread = [
        float(down.std() * math.sqrt(3 * down.shape[1]))
        for down in downs
        if down.numel() > 1
    ]
    most = max(
        (float(down.abs().max()) * math.sqrt(down.shape[1]) for down in downs),
        default=2.0,
    )
    return most <= 1.01 and abs(sum(spread) / max(len(spread), 1) - 1) < 0.05


def _is_end_of_text(zero: Collection[str], sound: Collection[str]) -> bool:
    """Whether only layers of the text in the last block are zero. Layers after the last
    attention on that side reach no pixel, so they are zero in a good file too."""
    numbers = [number for number in map(block_in, sound) if number is not None]
    last = max(numbers, default=0)
    text_of_last = {
        name for name in sound if block_in(name) == last and TEXT_SIDE.search(name)
    }
    return set(zero) <= text_of_last and set(zero) < set(sound)


@dataclass(frozen=True)
class _Strengths:
    """The layers of a file that have a strength, and where it comes from."""

    scales: dict[str, float]
    """Name of each such layer -> its strength, alpha / rank."""

    alphas: dict[str, Tensor]
    """Name of each layer with its own alpha -> that alpha, as it is in the file."""

    metadata: Mapping[str, str]

    @property
    def finite(self) -> dict[str, float]:
        return {
            name: scale for name, scale in self.scales.items() if math.isfinite(scale)
        }

    @property
    def odd(self) -> list[str]:
        """The layers with an implausible strength, except a strength of 0."""
        least, most = USUAL_SCALES
        return [
            name
            for name, scale in self.finite.items()
            if scale and not least <= scale <= most
        ]


def _alphas(
    read: FileLayers, sound: Mapping[str, LayerDelta], metadata: Mapping[str, str]
) -> Iterator[Diagnostic]:
    """All faults of the strengths of a file's layers."""
    scales = {
        name: change.scale for name, change in sound.items() if _has_strength(change)
    }
    alphas = {
        name: read.parts[name]["alpha"]
        for name in scales
        if "alpha" in read.parts[name]
    }
    file = _Strengths(scales, alphas, metadata)
    yield from _lost_alphas(file)
    yield from _alphas_of_several_numbers(file)
    yield from _alphas_of_zero(file)
    if file.odd:
        yield _odd_strength(file)
        return
    yield from _unlike_strengths(file)
    yield from _strength_in_header_alone(file)


def _lost_alphas(file: _Strengths) -> Iterator[Diagnostic]:
    without = tuple(name for name in file.scales if name not in file.alphas)
    if not without:
        return
    if file.alphas:
        message = f"{_count(without, len(file.scales))} lack the alpha that the others have: their strength is 1."
        yield finding(
            "alpha_lost", message, "Convert the original file again.", without
        )
        return
    remedy = "Take the file as its trainer saved it, with its .alpha keys."
    if any(name.startswith("lora_unet_") for name in without):
        message = f"No layer has an alpha, and files of this form always have one: {_says(file.metadata)}"
        yield finding("alpha_lost", message, remedy)
        return
    lost = _lost_by_header(file.metadata)
    if lost:
        yield finding("alpha_lost", f"Its keys have no alpha, and {lost}", remedy)


def _alphas_of_several_numbers(file: _Strengths) -> Iterator[Diagnostic]:
    several = [name for name, alpha in file.alphas.items() if alpha.numel() != 1]
    if several:
        shape = list(file.alphas[several[0]].shape)
        message = f"alpha is not a single number, but {shape}, in {_count(several, len(file.scales))}."
        yield finding(
            "alpha_absurd",
            message,
            "Take the file as its trainer saved it.",
            tuple(several),
        )


def _alphas_of_zero(file: _Strengths) -> Iterator[Diagnostic]:
    zero = [name for name, scale in file.finite.items() if scale == 0]
    if zero:
        message = (
            f"alpha is 0 in {_count(zero, len(file.finite))}: they have no effect."
        )
        remedy = "Write the alpha of the training into the file (usually the rank)."
        yield finding("alpha_zero", message, remedy, tuple(zero))


def _odd_strength(file: _Strengths) -> Diagnostic:
    first = file.finite[file.odd[0]]
    message = f"alpha / rank, the strength, is {first:.4g} in {_count(file.odd, len(file.finite))}."
    remedy = "Look for the alpha of the training; it was changed on the way."
    return finding("alpha_absurd", message, remedy, tuple(file.odd))


def _unlike_strengths(file: _Strengths) -> Iterator[Diagnostic]:
    """Layers whose strength differs from most, unless one alpha is meant for layers of
    several ranks."""
    scales = {name: scale for name, scale in file.finite.items() if scale}
    counts = Counter(f"{scale:.3g}" for scale in scales.values())
    if len(counts) < 2:
        return
    usual = float(counts.most_common(1)[0][0])
    unlike = [
        name
        for name, scale in scales.items()
        if not 1 / UNLIKE < scale / usual < UNLIKE
    ]
    alphas = {float(alpha) for alpha in file.alphas.values() if alpha.numel() == 1}
    all_have_one = len(file.alphas) == len(file.scales)
    if unlike and all_have_one and len(alphas) > 1:
        shown = f"the strength alpha / rank is {scales[unlike[0]]:.3g}, and {usual:g} in most"
        remedy = "See that all layers have the alpha of the training."
        yield finding(
            "alpha_unlike",
            f"In {_count(unlike, len(scales))} {shown}.",
            remedy,
            tuple(unlike),
        )


def _strength_in_header_alone(file: _Strengths) -> Iterator[Diagnostic]:
    if HEADER_METADATA not in file.metadata or file.alphas:
        return
    unlike_one = [scale for scale in file.finite.values() if abs(scale - 1) > 1e-3]
    if unlike_one:
        strength = f"{unlike_one[0]:.3g}"
        message = f"The strength {strength} is in the header alone, which diffusers reads and ComfyUI does not."
        remedy = "For ComfyUI: run.py convert --to comfyui."
        yield finding("alpha_in_header", message, remedy, severity="warning")


def _has_strength(change: LayerDelta) -> bool:
    """Whether alpha gives the strength. The alpha of an OFT is a limit, and the alpha
    of a LoKr with two full factors has no effect."""
    return not ignores_alpha(change.parts) and rank_of(change.parts) > 0


def _lost_by_header(metadata: Mapping[str, str]) -> str:
    """How much stronger a file of this program is than it was trained, in words; empty
    where it is not stronger, or where that is not known. Other programs leave the alpha
    of the training in the header when they move it into the matrices."""
    if is_own(metadata) and _times_too_strong(metadata) not in (None, 1.0):
        return _says(metadata)
    return ""


def is_own(metadata: Mapping[str, str]) -> bool:
    """Whether this program has written the file."""
    try:
        return bool(json.loads(metadata.get("software", "{}"))["name"] == NAME)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _times_too_strong(metadata: Mapping[str, str]) -> float | None:
    """The factor by which the file is too strong without its alphas; None where the header
    does not give it."""
    try:
        return float(metadata["ss_network_dim"]) / float(metadata["ss_network_alpha"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _says(metadata: Mapping[str, str]) -> str:
    times = _times_too_strong(metadata)
    if times is None:
        return "programs take a strength of 1 then, or stop."
    rank = metadata["ss_network_dim"]
    alpha = metadata["ss_network_alpha"]
    return f"its header says alpha {alpha} of rank {rank}, so that it is {times:.3g} times as strong as trained."


def _count(names: Collection[str], of: int) -> str:
    if len(names) == of:
        return f"all {of} layers"
    return f"{len(names)} of {of} layers ({next(iter(names))}...)"
