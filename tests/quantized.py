"""What programs write as `quantization_config` into config.json, by the words that name
it; folders that have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SDNQ = {
    "quant_method": "sdnq",
    "sdnq_version": "0.2.8",
    "weights_dtype": "uint4",
    "group_size": 0,
    "is_integer": True,
}
TORCHAO = {
    "quant_method": "torchao",
    "modules_to_not_convert": None,
    "quant_type": {
        "default": {
            "_type": "Int8WeightOnlyConfig",
            "_version": 2,
            "_data": {
                "group_size": None,
                "granularity": {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}},
            },
        }
    },
}
BITSANDBYTES = {
    "quant_method": "bitsandbytes",
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_type": "nf4",
    "load_in_4bit": True,
    "load_in_8bit": False,
}
EIGHT_BITS = {
    **BITSANDBYTES,
    "bnb_4bit_quant_type": "fp4",
    "load_in_4bit": False,
    "load_in_8bit": True,
}

QUANTIZED: dict[str, dict[str, Any]] = {
    "sdnq (uint4)": SDNQ,
    "torchao (Int8WeightOnlyConfig)": TORCHAO,
    "bitsandbytes (nf4)": BITSANDBYTES,
    "bitsandbytes (int8)": EIGHT_BITS,
    "quanto (int8)": {
        "quant_method": "quanto",
        "modules_to_not_convert": None,
        "weights_dtype": "int8",
    },
    "quanto (float8)": {
        "quant_method": "quanto",
        "weights": "float8",
        "activations": None,
    },
    "modelopt (FP8)": {
        "quant_method": "modelopt",
        "quant_type": "FP8",
        "weight_only": True,
    },
    "auto-round (4 bits)": {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 128,
        "sym": True,
    },
    "awq (4 bits)": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "format": "gemm",
        "version": "gemm",
    },
    "hqq (2 bits)": {"quant_method": "hqq", "nbits": 2},
    "compressed-tensors (float-quantized)": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
    },
    "gguf": {
        "quant_method": "gguf",
        "compute_dtype": "torch.float32",
        "pre_quantized": True,
    },
    "nunchaku_lite": {
        "quant_method": "nunchaku_lite",
        "svdq_w4a4": {"precision": "nvfp4", "group_size": 16},
    },
}
"""Method and number type -> the entry. Written by sdnq 0.2.8, torchao 0.18.0 and
optimum-quanto 0.2.7 through diffusers 0.42.1 (shortened where their lists are long); of
the others `to_dict` and docstrings in diffusers 0.42.1 and transformers 5.24.0, whose
GPU kernels are not needed for it."""


def mark(config: Path, said: Any = SDNQ) -> str:
    """Writes `quantization_config` into a config.json. Returns the file, as messages
    begin with it."""
    contents = json.loads(config.read_text())
    config.write_text(json.dumps(contents | {"quantization_config": said}))
    return f"{config}: "
