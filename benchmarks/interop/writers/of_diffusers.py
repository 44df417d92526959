"""Files of diffusers: both of its savers, with the settings of the adapter in the
header and without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import nn

from benchmarks.interop.files import (
    ALPHA,
    RANK,
    Changes,
    Draws,
    WrittenFile,
    changes_of,
    without_wrappers,
)
from benchmarks.interop.models import TinyModel, linear_weights

VERSION = f"diffusers {version('diffusers')}"

KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoRA", {}),
    "alpha_is_rank": ("LoRA, alpha = rank", {"lora_alpha": RANK}),
    "rslora": ("rsLoRA", {"use_rslora": True}),
    "dora": ("DoRA", {"use_dora": True}),
    "pissa": ("LoRA, pissa", {"init_lora_weights": "pissa"}),
    "olora": ("LoRA, olora", {"init_lora_weights": "olora"}),
    "regex_alpha": (
        "LoRA, alpha_pattern by a regular expression",
        {"alpha_pattern": {r".*attn\.to_k": 8}},
    ),
    "one_alpha": (
        "LoRA, alpha = rank, alpha_pattern {to_k: 8}",
        {"lora_alpha": RANK, "alpha_pattern": {"to_k": 8}},
    ),
    "ranks": (
        "LoRA, several ranks and alphas",
        {
            "rank_pattern": {"to_q": 8, "to_v": 2},
            "alpha_pattern": {"to_q": 1, "to_v": 6},
        },
    ),
    "lora_bias": ("LoRA, lora_bias", {"lora_bias": True}),
}
"""Name -> title, and settings that differ from rank 4, alpha 2."""

BARE = ("lora", "rslora", "ranks")
"""Kinds that are also saved without the header, and by the transformer."""


def write(model: TinyModel, folder: Path) -> Iterator[WrittenFile]:
    """The files of the pipeline's saver and of the transformer's."""
    has_bias = any(
        name.endswith("attn.to_q.bias") for name in model.build().state_dict()
    )
    for name, (what, settings) in KINDS.items():
        if name == "lora_bias" and not has_bias:
            continue
        trained, meant = train(model, name, settings)
        yield _by_pipeline(
            model, trained, meant, folder / name, name, what, has_header=True
        )
        if name in BARE:
            yield _by_pipeline(
                model,
                trained,
                meant,
                folder / f"{name}_bare",
                name,
                what,
                has_header=False,
            )
            yield _by_transformer(
                model, trained, meant, folder / f"{name}_adapter", name, what
            )
    yield _loaded_again(model, folder / "mixed")


def train(
    model: TinyModel, name: str, settings: Mapping[str, Any]
) -> tuple[nn.Module, Changes]:
    """A transformer with a drawn adapter, and the change that it makes to a fresh
    one."""
    transformer = model.build()
    before = linear_weights(transformer)
    torch.manual_seed(0)
    transformer.add_adapter(
        LoraConfig(
            **{
                "r": RANK,
                "lora_alpha": ALPHA,
                "target_modules": list(model.targets),
                **settings,
            }
        )
    )
    draws = Draws(model.title, "diffusers", name)
    draws.fill(transformer, ".lora_")
    if settings.get("use_dora"):
        start_magnitudes(transformer, draws)
    return transformer, fused_change(transformer, before)


@torch.no_grad()
def start_magnitudes(transformer: nn.Module, draws: Draws) -> None:
    """Magnitudes near the norms of the weight, as training would leave them."""
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            norms_O = module.get_base_layer().weight.norm(dim=1)
            magnitude = module.lora_magnitude_vector["default"].weight
            magnitude.copy_(norms_O * (1 + draws.normal(len(norms_O), std=0.1)))


def fused_change(transformer: nn.Module, before: Changes) -> Changes:
    """The change against the weights `before`; the transformer stays as it is."""
    weights = without_wrappers(transformer)
    transformer.fuse_lora()
    after = without_wrappers(transformer)
    transformer.unfuse_lora()
    own = transformer.state_dict()
    for key in own:
        plain = key.replace(".base_layer", "")
        if "lora_" not in key and plain in weights:
            own[key].copy_(weights[plain])
    return changes_of(after, before)


def _by_pipeline(
    model: TinyModel,
    trained: nn.Module,
    meant: Changes,
    folder: Path,
    name: str,
    what: str,
    has_header: bool,
) -> WrittenFile:
    pipeline = getattr(diffusers, model.pipeline)
    header = _collate_lora_metadata({"transformer": trained}) if has_header else {}
    pipeline.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(trained), **header
    )
    path = folder / "pytorch_lora_weights.safetensors"
    said = (
        f"save_lora_weights: {what}"
        if has_header
        else f"save_lora_weights without metadata: {what}"
    )
    full_name = f"diffusers_{name}" if has_header else f"diffusers_{name}_bare"
    return WrittenFile(
        full_name,
        model.title,
        VERSION,
        said,
        path,
        meant,
        tuple(model.layers()),
        has_header,
    )


def _by_transformer(
    model: TinyModel,
    trained: nn.Module,
    meant: Changes,
    folder: Path,
    name: str,
    what: str,
) -> WrittenFile:
    trained.save_lora_adapter(folder)
    path = folder / "pytorch_lora_weights.safetensors"
    said = f"save_lora_adapter: {what}"
    return WrittenFile(
        f"diffusers_{name}_adapter",
        model.title,
        VERSION,
        said,
        path,
        meant,
        tuple(model.layers()),
    )


def _loaded_again(model: TinyModel, folder: Path) -> WrittenFile:
    """A file of several ranks and alphas that diffusers loaded from another program and
    saves again: its patterns."""
    transformer = model.build()
    before = linear_weights(transformer)
    draws = Draws(model.title, "diffusers", "mixed")
    tensors: dict[str, torch.Tensor] = {}
    alphas: dict[str, float] = {}
    for index, layer in enumerate(model.layers()):
        rank = (4, 4, 8, 2)[index % 4]
        outputs, inputs = before[f"{layer}.weight"].shape
        tensors[f"transformer.{layer}.lora_A.weight"] = draws.normal(rank, inputs)
        tensors[f"transformer.{layer}.lora_B.weight"] = draws.normal(outputs, rank)
        alphas[f"transformer.{layer}.alpha"] = (4.0, 8.0, 1.0, 6.0)[index % 4]
    transformer.load_lora_adapter(
        tensors, prefix="transformer", network_alphas=alphas, adapter_name="default"
    )
    transformer.save_lora_adapter(folder)
    path = folder / "pytorch_lora_weights.safetensors"
    meant = fused_change(transformer, before)
    what = "save_lora_adapter: a LoRA of several ranks and alphas, loaded before"
    return WrittenFile(
        "diffusers_mixed_adapter",
        model.title,
        VERSION,
        what,
        path,
        meant,
        tuple(model.layers()),
    )
