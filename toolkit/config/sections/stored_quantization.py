"""Which program quantized a part of a model folder: `quantization_config` in the part's
config.json. Imports no torch.

Each library stores quantized weights under names and shapes of its own, and none of
them is read. Sources: diffusers 0.42.1, quantizers/quantization_config.py; transformers
5.24.0, utils/quantization_config.py and quantizers/auto.py; folders that sdnq 0.2.8,
torchao 0.18.0 and optimum-quanto 0.2.7 wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "quantization_config"

UNNAMED = f"a method that its {KEY} does not name"

TYPE_KEYS = ("weights_dtype", "weights", "quant_type", "fmt")
"""Keys whose text is the number type: sdnq and diffusers' quanto, transformers' quanto,
modelopt, fp8."""

BIT_KEYS = ("bits", "nbits")
"""Keys with the number of bits: awq, gptq, auto-round and MLX; hqq."""


def quantized_by(config: Mapping[str, Any]) -> str:
    """Method and number type of a part's quantized weights, such as `sdnq (uint4)`;
    empty: they are not quantized.

    config: the contents of the part's config.json. transformers also looks into the
    config of the language model.
    """
    text_config = config.get("text_config")
    of_text = text_config.get(KEY) if isinstance(text_config, dict) else None
    settings = config.get(KEY) or of_text
    if not settings:
        return ""
    if not isinstance(settings, dict):
        return UNNAMED
    number_type = _number_type(settings)
    return _method(settings) + (f" ({number_type})" if number_type else "")


def _method(settings: Mapping[str, Any]) -> str:
    """The method's name; bitsandbytes is known by its switches in files that do not
    name it."""
    name = settings.get("quant_method")
    if isinstance(name, str) and name:
        return name
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return UNNAMED


def _number_type(settings: Mapping[str, Any]) -> str:
    """The number type of the weights, as the method calls it; empty: the config does
    not say it in a known key."""
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type", "4 bits"))
    if settings.get("load_in_8bit"):
        return "int8"
    for key in TYPE_KEYS:
        if isinstance(settings.get(key), str):
            return str(settings[key])
    for key in BIT_KEYS:
        if isinstance(settings.get(key), int):
            return f"{settings[key]} bits"
    layout = settings.get("format")  # compressed-tensors
    return (
        layout if isinstance(layout, str) else _torchao_type(settings.get("quant_type"))
    )


def _torchao_type(quant_type: Any) -> str:
    """The class of torchao's configuration, such as Int8WeightOnlyConfig: its number
    type is part of the name."""
    default = quant_type.get("default") if isinstance(quant_type, dict) else None
    name = default.get("_type") if isinstance(default, dict) else None
    return name if isinstance(name, str) else ""
