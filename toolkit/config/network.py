"""`network`: the adapter that is trained."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from toolkit.config.base import StrictModel
from toolkit.config.choices import PathText, Texts, as_list, mistake, one_of, schema_of_list
from toolkit.config.node import Node
from toolkit.config.report import Report

KINDS = ("lora", "dora", "loha", "lokr")
"""`network.type`: what can be trained."""


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise mistake(f"{text!r} is no regular expression: {error}.") from error
    return text


def _factor(value: int) -> int:
    if value == 0:
        raise mistake("0 is no factor. Give -1 (balanced) or a number above 0.")
    return value


Patterns = Annotated[
    tuple[Annotated[str, AfterValidator(_pattern)], ...], BeforeValidator(as_list), schema_of_list({"type": "string"})
]
"""One regular expression or a list of them."""


class NetworkKwargs(StrictModel):
    """`network.network_kwargs`: which layers carry the adapter."""

    algo: Annotated[
        Literal["lora", "loha", "lokr"],
        *one_of(
            "lora",
            "loha",
            "lokr",
            spellings={"locon": "lora"},
            later="full ia3 dylora glora norms oft boft diag-oft glokr abba tlora",
        ),
    ] = "lora"
    """With `type: lycoris` the kind of adapter, under LyCORIS' names."""

    only_if_contains: Texts = ()
    """Adapt only layers whose dotted name contains one of these texts; empty: all."""

    ignore_if_contains: Texts = ()
    """Leave out layers whose dotted name contains one of these texts."""

    unsupported: ClassVar = {
        "full_if_contains": (),
        "lokr_full_rank": (True,),
        "transformer_only": (True,),
    }


class NetworkConfig(StrictModel):
    """`network`: the adapter that is trained and its size."""

    type: Annotated[
        Literal["lora", "dora", "loha", "lokr"],
        *one_of(*KINDS, spellings={"lycoris": "lora"}, later="locon full fullrank lorm"),
    ] = "lora"
    """Kind of adapter; `lycoris`: the one that `network_kwargs.algo` names. LoRA files load in ComfyUI and diffusers,
    the others in ComfyUI only."""

    linear: int = Field(default=16, ge=1)
    """Rank r of each adapted layer; the file grows in proportion."""

    linear_alpha: float = Field(
        default_factory=lambda given: float(given.get("linear", 16)),
        ge=0,
        json_schema_extra={"default": "linear"},
    )
    """The adapter is scaled by linear_alpha / linear. 0: it has no effect (one warning). LoKr layers with a whole
    second factor are not scaled."""

    dropout: float = Field(default=0.0, ge=0, le=1)
    """Probability that an input of the adapter is zeroed during training; 0: off."""

    rank_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a rank of the adapter (LoHa, LoKr: an output) is left out for one image in training; 0: off."""

    module_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that the adapter of a layer is left out of one call in training; 0: off."""

    factor: Annotated[int, AfterValidator(_factor)] = Field(default=-1, ge=-1)
    """LoKr: size of the first factor of inputs and of outputs (the nearest divisor not above it); -1: as near to
    the second factor as can be. Larger means fewer weights, up to the balance."""

    lokr_full_rank: bool = False
    """LoKr: keep the second factor whole whatever `linear` is; without it, it is whole only where `linear` would
    save nothing."""

    include_patterns: Patterns = ()
    """Regular expressions that match whole layer names: these layers are adapted, even if an exclude pattern
    matches too. Without exclude patterns no others are."""

    exclude_patterns: Patterns = ()
    """Regular expressions that match whole layer names: these layers are not adapted."""

    pretrained_lora_path: PathText | None = None
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
        "lokr_factor": "factor",
    }
    no_effect: ClassVar = {
        "split_multistage_loras": "Qwen-Image has one stage",
        "old_lokr_format": "LoKr files are written in the current form only",
    }
    unsupported: ClassVar = {
        "conv": (0,),
        "conv_alpha": (0,),
        "scale_weight_norms": (0,),
        "loraplus_lr_ratio": (0, 1),
        "network_args": (),
        "network_module": ("networks.lora_qwen_image",),
        "transformer_only": (True,),
        "all_layers": (False,),
        "layer_offloading": (False,),
    }

    def size(self) -> str:
        """What decides the size of the adapter on a layer, in words."""
        if self.type != "lokr":
            return f"rank {self.linear}"
        factor = "balanced" if self.factor == -1 else f"factor {self.factor}"
        return f"{factor}, second factor whole" if self.lokr_full_rank else f"{factor}, rank {self.linear}"

    @classmethod
    def reshape(cls, entries: dict[str, Node], report: Report) -> dict[str, Node]:
        """`type: lycoris` becomes the kind that `network_kwargs.algo` names."""
        kwargs = entries.get("network_kwargs")
        algo = kwargs.child("algo") if kwargs else None
        if algo is not None and not algo.is_blank:
            kind, named = _name(entries.get("type")), _name(algo)
            if kind == "lycoris" and named in KINDS:
                entries["type"] = replace(algo, value=named)
            elif kind != "lycoris" and named not in ("lora", "locon", kind):
                report.mistake(algo, "applies to 'type: lycoris' only. Say it by network.type.", at_key=True)
        for key in ("factor", "lokr_factor"):
            if key in entries and entries[key].value != -1 and _name(entries.get("type")) != "lokr":
                report.warn(entries[key], "has no effect: it concerns LoKr only.")
        return entries


def _name(node: Node | None) -> str:
    """The kind a node names; without one the default."""
    return str(node.value).strip().lower() if node else "lora"
