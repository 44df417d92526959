"""`network`: the adapter that is trained."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from toolkit.config.base import StrictModel
from toolkit.config.choices import Texts, one_of


class NetworkKwargs(StrictModel):
    """`network.network_kwargs`: which layers carry the adapter."""

    only_if_contains: Texts = ()
    """Adapt only layers whose dotted name contains one of these texts; empty: all."""

    ignore_if_contains: Texts = ()
    """Leave out layers whose dotted name contains one of these texts."""

    unsupported: ClassVar = {
        "full_if_contains": (),
        "algo": ("lora",),
        "lokr_full_rank": (True,),
        "transformer_only": (True,),
    }


class NetworkConfig(StrictModel):
    """`network`: the adapter that is trained and its size."""

    type: Annotated[Literal["lora"], *one_of("lora", later="dora loha lokr lycoris locon full fullrank")] = "lora"
    """Kind of adapter."""

    linear: int = Field(default=16, ge=1)
    """Rank r of each adapted layer; the file grows in proportion."""

    linear_alpha: float = Field(
        default_factory=lambda given: float(given.get("linear", 16)),
        ge=0,
        json_schema_extra={"default": "linear"},
    )
    """The adapter is scaled by linear_alpha / linear. 0: it has no effect (one warning)."""

    dropout: float = Field(default=0.0, ge=0, le=1)
    """Probability that an input of the adapter is zeroed during training; 0: off."""

    pretrained_lora_path: str | None = None
    """A LoRA file (.safetensors) that training starts from when there is nothing to resume."""

    network_kwargs: NetworkKwargs = Field(default_factory=NetworkKwargs)
    """Which layers carry the adapter."""

    aliases: ClassVar = {
        "rank": "linear",
        "network_dim": "linear",
        "alpha": "linear_alpha",
        "network_alpha": "linear_alpha",
        "network_dropout": "dropout",
        "network_weights": "pretrained_lora_path",
    }
    no_effect: ClassVar = {
        "split_multistage_loras": "Qwen-Image has one stage",
        "old_lokr_format": "it concerns LoKr files only",
    }
    unsupported: ClassVar = {
        "conv": (0,),
        "conv_alpha": (0,),
        "rank_dropout": (0,),
        "module_dropout": (0,),
        "scale_weight_norms": (0,),
        "loraplus_lr_ratio": (0, 1),
        "include_patterns": (),
        "exclude_patterns": (),
        "factor": (-1,),
        "lokr_factor": (-1,),
        "lokr_full_rank": (True,),
        "network_args": (),
        "network_module": ("networks.lora_qwen_image",),
        "transformer_only": (True,),
        "all_layers": (False,),
        "layer_offloading": (False,),
    }
