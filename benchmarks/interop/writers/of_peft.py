"""Files of peft: folders that `save_pretrained` writes, and the same tensors under
another name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import (
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.lora import LoraLayer
from torch import nn

from benchmarks.interop.files import (
    ALPHA,
    CONFIG_FILE,
    RANK,
    WEIGHTS_FILE,
    Changes,
    Draws,
    WrittenFile,
    changes_of,
)
from benchmarks.interop.models import TinyModel, linear_weights

VERSION = f"peft {version('peft')}"

Make = Callable[[list[str]], Any]
"""Ends of the names of layers -> the config of a file."""


def _lora(**settings: Any) -> Make:
    def make(targets: list[str]) -> LoraConfig:
        return LoraConfig(
            **{"r": RANK, "lora_alpha": ALPHA, "target_modules": targets, **settings}
        )

    return make


def _ranks() -> Make:
    """Ranks and alphas by regular expressions, one of them by the end of a name."""

    def make(targets: list[str]) -> LoraConfig:
        return LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            target_modules=targets,
            rank_pattern={r".*\.0\.attn\.to_[qk]": 8, "to_v": 2},
            alpha_pattern={
                r"transformer_blocks\.1\..*": 4,
                "^transformer_blocks.0.attn.to_q": 8,
            },
        )

    return make


def _parts(config_class: type[Any], **settings: Any) -> Make:
    return lambda targets: config_class(target_modules=targets, **settings)


SETTINGS: Mapping[str, tuple[str, Make]] = {
    "lora": ("LoRA", _lora()),
    "rslora": ("rsLoRA", _lora(use_rslora=True)),
    "dora": ("DoRA", _lora(use_dora=True)),
    "patterns": (
        "LoRA, rank_pattern and alpha_pattern with regular expressions",
        _ranks(),
    ),
    "loha": ("LoHa", _parts(LoHaConfig, r=RANK, alpha=ALPHA)),
    "lokr": ("LoKr", _parts(LoKrConfig, r=RANK, alpha=ALPHA, decompose_factor=4)),
    "lokr_whole": (
        "LoKr, two whole factors",
        _parts(LoKrConfig, r=64, alpha=ALPHA, decompose_factor=4),
    ),
    "lokr_both": (
        "LoKr, both factors low-rank",
        _parts(LoKrConfig, r=RANK, alpha=ALPHA, decompose_both=True),
    ),
    "pissa": ("LoRA, init_lora_weights: pissa", _lora(init_lora_weights="pissa")),
    "olora": ("LoRA, init_lora_weights: olora", _lora(init_lora_weights="olora")),
    "gaussian": (
        "LoRA, init_lora_weights: gaussian",
        _lora(init_lora_weights="gaussian"),
    ),
    "orthogonal": (
        "LoRA, init_lora_weights: orthogonal",
        _lora(init_lora_weights="orthogonal"),
    ),
    "mica": ("LoRA, init_lora_weights: mica", _lora(init_lora_weights="mica")),
    "eva": ("LoRA, init_lora_weights: eva", _lora(init_lora_weights="eva")),
    "lora_bias": ("LoRA, lora_bias", _lora(lora_bias=True)),
    "oft": ("OFT", _parts(OFTConfig, r=0, oft_block_size=8)),
    "oft_coft": (
        "OFT, coft",
        _parts(OFTConfig, r=0, oft_block_size=8, coft=True, eps=0.5),
    ),
    "oft_shared": (
        "OFT, block_share",
        _parts(OFTConfig, r=0, oft_block_size=8, block_share=True),
    ),
    "oft_cayley": (
        "OFT, exact inverse",
        _parts(OFTConfig, r=0, oft_block_size=8, use_cayley_neumann=False),
    ),
    "boft": ("BOFT", _parts(BOFTConfig, boft_block_size=4, boft_n_butterfly_factor=2)),
    "ia3": ("IA3", _parts(IA3Config, feedforward_modules=[])),
    "vera": ("VeRA", _parts(VeraConfig, r=RANK)),
}

SMALL = ("oft", "boft")
"""Kinds whose parameters are angles: drawn small."""

NO_BIAS = ("lora_bias",)
"""Kinds that need a model with biases."""

ONE_SHAPE = ("vera",)
"""Kinds whose layers share matrices: on layers of one shape alone."""


def write(model: TinyModel, folder: Path) -> Iterator[WrittenFile]:
    """The files of each kind that this peft can make on the model."""
    has_bias = any(
        name.endswith("attn.to_q.bias") for name in model.build().state_dict()
    )
    for name, (what, make) in SETTINGS.items():
        if name in NO_BIAS and not has_bias:
            continue
        yield _written(model, folder / name, name, what, make)
    yield from _renamed(model, folder)


def _written(
    model: TinyModel, folder: Path, name: str, what: str, make: Make
) -> WrittenFile:
    targets = [
        target for target in model.targets if name not in ONE_SHAPE or "attn" in target
    ]
    layers = [layer for layer in model.layers() if layer.endswith(tuple(targets))]
    torch.manual_seed(0)
    wrapped = get_peft_model(model.build(), make(targets))
    draws = Draws(model.title, "peft", name)
    is_small = name.startswith(SMALL)
    for part in (".lora_", ".hada_", ".lokr_", ".oft_", ".boft_R", ".ia3_", ".vera_"):
        draws.fill(wrapped, part, std=0.05 if is_small else 0.3)
    if name in ("dora",):
        _start_magnitudes(wrapped, draws)
    wrapped.save_pretrained(folder)
    meant = _meant(model, folder)
    return WrittenFile(
        f"peft_{name}",
        model.title,
        VERSION,
        what,
        folder / WEIGHTS_FILE,
        meant,
        tuple(layers),
    )


@torch.no_grad()
def _start_magnitudes(wrapped: nn.Module, draws: Draws) -> None:
    """Magnitudes near the norms of the weight, as training would leave them."""
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            magnitude = module.lora_magnitude_vector["default"].weight
            norms_O = module.get_base_layer().weight.norm(dim=1)
            magnitude.copy_(norms_O * (1 + draws.normal(len(norms_O), std=0.1)))


def _meant(model: TinyModel, folder: Path) -> Changes:
    """What peft itself makes of the folder on a fresh model."""
    base = model.build()
    before = linear_weights(base)
    torch.manual_seed(0)
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
    return changes_of(dict(merged.state_dict()), before)


def _renamed(model: TinyModel, folder: Path) -> Iterator[WrittenFile]:
    """The plain LoRA by a name of the user's own, with its settings beside it and
    without."""
    for name, what in (
        ("renamed", "LoRA renamed, adapter_config.json beside it"),
        ("alone", "LoRA renamed, alone"),
    ):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        path = place / "my_char.safetensors"
        shutil.copy(folder / "lora" / WEIGHTS_FILE, path)
        if name == "renamed":
            shutil.copy(folder / "lora" / CONFIG_FILE, place / CONFIG_FILE)
        meant = _meant(model, folder / "lora")
        layers = tuple(model.layers())
        in_file = name == "renamed"
        yield WrittenFile(
            f"peft_{name}", model.title, VERSION, what, path, meant, layers, in_file
        )
