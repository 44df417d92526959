"""How many floating-point operations a training step of the published model's kind
takes, by arithmetic.

It counts the products that tokens go through, attention, and the adapter. It leaves out
elementwise work and work that is done once per image (modulation): under 1 %. An 8-bit
product counts like one of bf16. Imports no torch, and measures nothing. Called by
`toolkit.plan.run_time` and `toolkit.plan.step_time`, by `estimate` and `block_runner`.
"""

from __future__ import annotations

from dataclasses import dataclass

WEIGHTS_PER_TOKEN = 12
"""Weights of a block, in units of D^2: query, key, value and output of attention, and 4
D wide layers up and down. Each stream has its own weights, and a token goes through the
weights of its stream."""

BACKWARD_ATTENTION = 2.0
"""Operations of attention in the backward pass, per operation of the forward pass,
without the ones that kernels repeat."""

BACKWARD_ATTENTION_EXECUTED = 2.5
"""The same with the repeated ones: flash attention computes the scores again
(https://arxiv.org/abs/2307.08691, section 3.1.2)."""

RECOMPUTED = {
    "none": (0, 0),
    "cheap": (0, 0),
    "keep_attention": (1, 0),
    "full": (1, 1),
    "full_offload": (1, 1),
    "block_offload": (1, 1),
}
"""Level of `train.gradient_checkpointing` -> how often linear layers and attention are
recomputed."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one forward pass.

    >>> work = Flops(linear=1e12, attention=1e11, adapter=0.0)
    >>> f"{work.model:.3g}, {work.executed('full'):.3g}"
    '2.3e+12, 3.45e+12'
    """

    linear: float
    attention: float
    adapter: float

    @property
    def model(self) -> float:
        """The least number of operations of one training step, without its adapter: the
        frozen weights get no gradients. The base of MFU."""
        return 2 * self.linear + (1 + BACKWARD_ATTENTION) * self.attention

    def executed(self, level: str, trains_model: bool = False) -> float:
        """The operations of one training step at this level of checkpointing: the base
        of HFU. trains_model: the model is trained, not an adapter."""
        linear, attention = RECOMPUTED[level]
        # Trained weights get gradients in addition to their inputs.
        return (
            (2 + trains_model + linear) * self.linear
            + (1 + attention + BACKWARD_ATTENTION_EXECUTED) * self.attention
            + (3 + linear) * self.adapter
        )


def of_forward(tokens: int, width: int, blocks: int, adapter_weights: int) -> Flops:
    """The operations for one sample. tokens: of the target, the references and the
    text. adapter_weights: number of weights in layers that tokens go through.

    >>> work = of_forward(4608, width=3072, blocks=60, adapter_weights=0)
    >>> f"{work.linear:.3g}"
    '6.26e+13'
    """
    return Flops(
        linear=2.0 * WEIGHTS_PER_TOKEN * width**2 * blocks * tokens,
        attention=4.0 * tokens**2 * width * blocks,
        adapter=1.0
        * adapter_weights
        * tokens,  # 2 operations, and half of the weights: one stream
    )


EFFICIENCY = 0.4
"""Share of a GPU's operations per second that training reaches with compiled blocks:
0.38 to 0.45 measured on an H100 (docs/measured.md). `toolkit.plan.step_time` has it
part by part."""

KERNELS_PER_BLOCK = 353
"""Kernels that an uncompiled block launches in forward and backward, with a LoRA on all
layers and everything recomputed. Source: benchmarks/bench_kernels.py (bf16; quantized
blocks launch more)."""

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
    work = of_forward(tokens * images, width, blocks, adapter_weights=0)
    attention = (1 + BACKWARD_ATTENTION_EXECUTED) * work.attention / images
    return attention / max(
        2 * work.linear + attention, blocks * KERNELS_PER_BLOCK * LAUNCH_S * flops
    )
