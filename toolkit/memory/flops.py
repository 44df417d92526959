"""How many floating-point operations a training step of the published model's kind
takes, by arithmetic.

It counts the products that tokens go through, attention, and the adapter. It leaves out
elementwise work and work that is done once per image (modulation): under 1 %. An 8-bit
product counts like one of bf16. Imports no torch, and measures nothing. Called by
`toolkit.plan.run_time` and `toolkit.plan.step_time`, by `estimate` and `block_runner`.
"""

from __future__ import annotations

WEIGHTS_PER_TOKEN = 12
"""Weights of a block, in units of D^2: query, key, value and output of attention, and 4
D wide layers up and down. Each stream has its own weights, and a token goes through the
weights of its stream."""

BACKWARD_ATTENTION_EXECUTED = 2.5
"""Operations of attention in the backward pass, per operation of the forward pass:
flash attention computes the scores again (https://arxiv.org/abs/2307.08691, section
3.1.2)."""

RECOMPUTED = {
    "none": (0, 0),
    "cheap": (0, 0),
    "keep_attention": (1, 0),
    "offload_attention": (1, 0),
    "full": (1, 1),
    "full_offload": (1, 1),
    "block_offload": (1, 1),
}
"""Level of `train.gradient_checkpointing` -> how often linear layers and attention are
recomputed."""


EFFICIENCY = 0.4
"""Share of a GPU's operations per second that training reaches with compiled blocks:
0.38 to 0.45 measured on an H100 (docs/measured.md). `toolkit.plan.step_time` has it
part by part."""

KERNELS_PER_BLOCK = {
    "": 353,
    **dict.fromkeys(("int8", "float8"), 433),
    "fp8_scaled": 473,
    **dict.fromkeys(("int4", "int2", "uint4", "uint2"), 513),
    **dict.fromkeys(("uint3", "uint5", "uint6"), 633),
    "uint7": 753,
    "fp8 products": 853,
    "int8 products": 893,
}
"""`model.qtype` ("": not quantized), or the kind of `model.quantized_products` ->
kernels that an uncompiled block launches in forward and backward, with a LoRA on all
layers and everything recomputed. Source: benchmarks/bench_kernels.py."""

LAUNCH_S = 8e-6
"""Seconds of the host for each of them, autograd included; an assumption. Small images
leave a fast GPU waiting."""


def attention_share(
    tokens: int, images: int, width: int, blocks: int, flops: float
) -> float:
    """The calculated share of attention in the time of a micro-step without
    recomputation. It is smaller where small images leave the GPU waiting for the host.

    tokens: of one image. flops: that training reaches per second.
    """
    linear = 2.0 * WEIGHTS_PER_TOKEN * width**2 * blocks * tokens * images
    attention = 4.0 * tokens**2 * width * blocks * images
    attention *= 1 + BACKWARD_ATTENTION_EXECUTED
    host_s = blocks * KERNELS_PER_BLOCK[""] * LAUNCH_S
    return attention / max(2 * linear + attention, host_s * flops)
