"""Types of numbers, and the bytes that a weight of each type takes.

The tables list the dtypes of weights and the types of quantized weights
(`model.qtype`). Imports no torch: the config, the plans and
`toolkit/memory/quantization.py` read the same tables.
"""

from __future__ import annotations

from typing import Literal

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
"""By the names of floating-point types."""

UINT_BITS = {f"uint{bits}": bits for bits in range(2, 8)}
"""Names of unsigned types -> bits of a weight."""

QTYPE_BYTES = {
    "int8": 1.0,
    "int4": 0.53,
    "int2": 0.28,
    "float8": 1.0,
    "fp8_scaled": 1.0625,
    **{name: bits / 8 + 3 / 64 for name, bits in UINT_BITS.items()},
}
"""By `model.qtype`: bytes per weight; int4 and int2 with optimum-quanto's scale and
shift per group of 128 weights, fp8_scaled with a float32 scale per 64, the unsigned
ones with a scale and a zero point per 64."""

QTYPE_ERRORS = {
    "int2": 0.5,
    "uint2": 0.46,
    "uint3": 0.195,
    "int4": 0.1,
    "uint4": 0.091,
    "uint5": 0.044,
}
"""Types whose error is reported -> relative error of normally distributed weights."""

QTYPES = tuple(QTYPE_BYTES)
"""All of `model.qtype`."""

FP8_QTYPES = ("float8", "fp8_scaled")
"""Those whose codes are E4M3."""

QuantizedProducts = Literal["int8", "fp8"]
"""`model.quantized_products`, where it is on."""

TYPES_OF_PRODUCTS = {"int8": "int8", "fp8": "float8"}
"""`model.quantized_products` -> `model.qtype` with such codes and a scale per output."""

FILE_CODES = {**dict.fromkeys(FP8_QTYPES, "F8_E4M3"), "int8": "I8"}
"""`model.qtype` -> the number type of a safetensors file whose codes may stay as they
are."""

STORED_CODES = "stored_codes"
"""Attribute of a linear layer whose weight was read from a file in codes: the codes [O,
I]; their float32 scales, one [1, 1], one of each row [O, 1] or of N blocks along it [O,
N]; the inputs of a group that is rotated (`toolkit.rotation`), 0: none. Quantizing
takes them in place of the weight."""
