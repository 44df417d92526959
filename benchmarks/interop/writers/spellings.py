"""Plain files in the spelling of a program: alpha / rank times B A by definition, and
so for LoHa and LoKr.

The programs' trainers need a GPU or cannot be imported alone; the form of their files
is known, so it is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.interop.files import ALPHA, RANK, Draws, WrittenFile
from benchmarks.interop.models import TinyModel, linear_weights
from toolkit.contracts.model import ROWS_OF

AB = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
OLD = (".lora.down.weight", ".lora.up.weight")


@dataclass(frozen=True)
class Form:
    """How keys are spelled, and where the strength is."""

    writer: str
    what: str
    prefix: str
    matrices: tuple[str, str] = AB
    is_flat: bool = False
    alpha: str = "stored"
    """stored: a key for each layer; folded: in B, no key; rank: in B, and the key holds
    the rank; none: no key, and the strength is 1."""

    kind: str = "lora"

    def stem(self, layer: str) -> str:
        return self.prefix + (layer.replace(".", "_") if self.is_flat else layer)


FORMS: Mapping[str, Form] = {
    "musubi": Form(
        "musubi-tuner 0.3.4", "LoRA, alpha stored", "lora_unet_", DOWN_UP, True
    ),
    "musubi_rank": Form(
        "musubi-tuner 0.3.4", "LoRA, alpha = rank", "lora_unet_", DOWN_UP, True, "rank"
    ),
    "musubi_loha": Form(
        "musubi-tuner 0.3.4", "LoHa", "lora_unet_", DOWN_UP, True, kind="loha"
    ),
    "musubi_lokr": Form(
        "musubi-tuner 0.3.4", "LoKr", "lora_unet_", DOWN_UP, True, kind="lokr"
    ),
    "kohya_none": Form(
        "kohya", "LoRA without alpha", "lora_unet_", DOWN_UP, True, "none"
    ),
    "kohya_dora": Form(
        "kohya", "DoRA of columns", "lora_unet_", DOWN_UP, True, kind="dora"
    ),
    "onetrainer": Form(
        "OneTrainer", "LoRA, alpha stored", "lora_transformer_", DOWN_UP, True
    ),
    "aitk": Form(
        "ai-toolkit", "LoRA, alpha folded", "diffusion_model.", alpha="folded"
    ),
    "aitk_stored": Form("ai-toolkit", "LoRA, alpha stored", "diffusion_model."),
    "aitk_lokr": Form("ai-toolkit", "LoKr", "diffusion_model.", kind="lokr"),
    "comfyui": Form(
        "ComfyUI's names",
        "diffusion_model., down/up, alpha stored",
        "diffusion_model.",
        DOWN_UP,
    ),
    "comfyui_dora": Form(
        "ComfyUI's names", "DoRA of columns", "diffusion_model.", DOWN_UP, kind="dora"
    ),
    "comfyui_bias": Form(
        "ComfyUI's names", "LoRA and diff_b", "diffusion_model.", DOWN_UP, kind="bias"
    ),
    "comfyui_fused": Form(
        "ComfyUI's names", "gate_up as one layer", "diffusion_model.", kind="fused"
    ),
    "transformer": Form(
        "transformer.", "lora_A/B, alpha folded", "transformer.", alpha="folded"
    ),
    "transformer_stored": Form(
        "transformer.", "lora_A/B, alpha stored", "transformer."
    ),
    "transformer_old": Form(
        "transformer.",
        ".lora.down/up, alpha folded",
        "transformer.",
        OLD,
        alpha="folded",
    ),
    "transformer_loha": Form("transformer.", "LoHa", "transformer.", kind="loha"),
    "transformer_lokr": Form("transformer.", "LoKr", "transformer.", kind="lokr"),
    "lycoris_names": Form("lycoris_", "LoRA, alpha stored", "lycoris_", DOWN_UP, True),
    "bare": Form("no prefix", "lora_A/B, alpha stored", ""),
    "bare_rank": Form("no prefix", "lora_A/B, folded, alpha = rank", "", alpha="rank"),
    "bare_folded": Form("no prefix", "lora_A/B, folded, no alpha", "", alpha="folded"),
    "bare_default": Form(
        "no prefix", ".default, folded, no alpha", "", DEFAULT, alpha="folded"
    ),
    "bare_default_rank": Form(
        "no prefix", ".default, folded, alpha = rank", "", DEFAULT, alpha="rank"
    ),
    "bare_default_stored": Form("no prefix", ".default, alpha stored", "", DEFAULT),
    "bare_default_dora": Form(
        "no prefix",
        ".default, folded, DoRA of columns",
        "",
        DEFAULT,
        alpha="folded",
        kind="dora",
    ),
    "bare_dora": Form(
        "no prefix",
        "lora_A/B, folded, alpha = rank, DoRA of columns",
        "",
        alpha="rank",
        kind="dora",
    ),
    "bare_down_up": Form("no prefix", "down/up, alpha stored", "", DOWN_UP),
    "bare_loha": Form("no prefix", "LoHa", "", kind="loha"),
    "bare_lokr": Form("no prefix", "LoKr", "", kind="lokr"),
}


def write(model: TinyModel, folder: Path) -> Iterator[WrittenFile]:
    """A file in each spelling that the model has."""
    weights = linear_weights(model.build())
    for name, form in FORMS.items():
        if not _fits(form, model, weights):
            continue
        draws = Draws(model.title, "spelling", form.kind)
        tensors: dict[str, Tensor] = {}
        meant: dict[str, Tensor] = {}
        for layer in model.layers():
            parts, change_OI = _layer(form, weights[f"{layer}.weight"], draws)
            tensors |= {form.stem(layer) + end: part for end, part in parts.items()}
            meant[f"{layer}.weight"] = change_OI
            if form.kind == "bias":
                bias_O = draws.normal(len(change_OI))
                tensors[f"{form.stem(layer)}.diff_b"] = bias_O
                meant[f"{layer}.bias"] = bias_O
        if form.kind == "fused":
            tensors = _fused(tensors)
        path = folder / f"{name}.safetensors"
        save_file(
            {key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path
        )
        yield WrittenFile(
            f"spelled_{name}",
            model.title,
            form.writer,
            form.what,
            path,
            meant,
            tuple(model.layers()),
        )


def _fits(form: Form, model: TinyModel, weights: Mapping[str, Tensor]) -> bool:
    """Biases need layers that have them, the fused layer a model that has its
    halves."""
    if form.kind == "bias":
        return f"{model.layers()[0]}.bias" in weights
    if form.kind == "fused":
        return any(
            layer.endswith(part)
            for layer in model.layers()
            for parts in ROWS_OF.values()
            for part in parts
        )
    return True


def _layer(
    form: Form, weight_OI: Tensor, draws: Draws
) -> tuple[dict[str, Tensor], Tensor]:
    """End of a key -> tensor, and the change that they mean."""
    outputs, inputs = weight_OI.shape
    if form.kind == "loha":
        return _loha(draws, outputs, inputs)
    if form.kind == "lokr":
        return _lokr(draws, outputs, inputs)
    down_RI, up_OR = draws.normal(RANK, inputs), draws.normal(outputs, RANK)
    scale = 1.0 if form.alpha == "none" else ALPHA / RANK
    change_OI = scale * up_OR @ down_RI
    down, up = form.matrices
    parts = {
        down: down_RI,
        up: up_OR * scale if form.alpha in ("folded", "rank") else up_OR,
    }
    if form.alpha == "stored":
        parts[".alpha"] = torch.tensor(ALPHA)
    if form.alpha == "rank":
        parts[".alpha"] = torch.tensor(float(RANK))
    if form.kind == "dora":
        magnitude_1I = weight_OI.norm(dim=0, keepdim=True) * (
            1 + draws.normal(1, inputs, std=0.1)
        )
        changed_OI = weight_OI + change_OI
        change_OI = (
            changed_OI * (magnitude_1I / changed_OI.norm(dim=0, keepdim=True))
            - weight_OI
        )
        parts[".dora_scale"] = magnitude_1I
    return parts, change_OI


def _loha(draws: Draws, outputs: int, inputs: int) -> tuple[dict[str, Tensor], Tensor]:
    first_OR, first_RI = draws.normal(outputs, RANK), draws.normal(RANK, inputs)
    second_OR, second_RI = draws.normal(outputs, RANK), draws.normal(RANK, inputs)
    change_OI = ALPHA / RANK * (first_OR @ first_RI) * (second_OR @ second_RI)
    parts = {
        ".hada_w1_a": first_OR,
        ".hada_w1_b": first_RI,
        ".hada_w2_a": second_OR,
        ".hada_w2_b": second_RI,
    }
    return {**parts, ".alpha": torch.tensor(ALPHA)}, change_OI


def _lokr(draws: Draws, outputs: int, inputs: int) -> tuple[dict[str, Tensor], Tensor]:
    first, left, right = (
        draws.normal(4, 4),
        draws.normal(outputs // 4, RANK),
        draws.normal(RANK, inputs // 4),
    )
    parts = {
        ".lokr_w1": first,
        ".lokr_w2_a": left,
        ".lokr_w2_b": right,
        ".alpha": torch.tensor(ALPHA),
    }
    return parts, ALPHA / RANK * torch.kron(first, left @ right)


def _fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with the halves of each fused layer as one: their ranks add up, and so
    does alpha."""
    found = dict(tensors)
    for whole, halves in ROWS_OF.items():
        first = halves[0]
        for key in [key for key in tensors if key.endswith(f"{first}{AB[0]}")]:
            stem = key.removesuffix(f"{first}{AB[0]}")
            ups = [found.pop(f"{stem}{half}{AB[1]}") for half in halves]
            downs = [found.pop(f"{stem}{half}{AB[0]}") for half in halves]
            alphas = [found.pop(f"{stem}{half}.alpha") for half in halves]
            found[f"{stem}{whole}{AB[1]}"] = torch.block_diag(*ups)
            found[f"{stem}{whole}{AB[0]}"] = torch.cat(downs)
            found[f"{stem}{whole}.alpha"] = torch.stack(alphas).sum()
    return found
