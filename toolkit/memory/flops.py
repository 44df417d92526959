"""How many floating-point operations a training step of the published model's kind
takes, by arithmetic.

Imports no torch.

What is counted: the products that tokens go through, attention, and the adapter. Left
out are elementwise work and what is done once per image (modulation): under 1 %. An
8-bit product counts like one of bf16.
"""

from __future__ import annotations

from dataclasses import dataclass

WEIGHTS_PER_TOKEN = 12
"""Weights of a block, in units of D^2: query, key, value and output of attention, and 4
D wide layers up and down. Each stream has its own, and a token goes through those of
its stream."""

BACKWARD_ATTENTION = 2.0
"""Share of what the forward pass takes, without what kernels compute again."""

BACKWARD_ATTENTION_EXECUTED = 2.5
"""With it: flash attention computes the scores again (https://arxiv.org/abs/2307.08691,
section 3.1.2)."""

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
    """Floating-point operations of one forward pass."""

    linear: float
    attention: float
    adapter: float

    @property
    def model(self) -> float:
        """What one training step needs at least, its adapter aside: the frozen weights
        get no gradients. MFU's base."""
        return 2 * self.linear + (1 + BACKWARD_ATTENTION) * self.attention

    def executed(self, level: str, trains_model: bool = False) -> float:
        """What one training step does at this level of checkpointing: HFU's base.
        trains_model: not an adapter."""
        linear, attention = RECOMPUTED[level]
        # What is trained gets gradients beside those of its inputs.
        return (
            (2 + trains_model + linear) * self.linear
            + (1 + attention + BACKWARD_ATTENTION_EXECUTED) * self.attention
            + (3 + linear) * self.adapter
        )


def of_forward(tokens: int, width: int, blocks: int, adapter_weights: int) -> Flops:
    """One sample of so many tokens: target, references and text. adapter_weights: of
    layers that tokens go through."""
    return Flops(
        linear=2.0 * WEIGHTS_PER_TOKEN * width**2 * blocks * tokens,
        attention=4.0 * tokens**2 * width * blocks,
        adapter=1.0
        * adapter_weights
        * tokens,  # multiplied and added, by the tokens of one of both streams
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
    """The share of attention in the time of a micro-step without recomputation, by
    calculation: less where small images leave the GPU waiting for the host.

    tokens: of one image. flops: that training reaches per second.
    """
    work = of_forward(tokens * images, width, blocks, adapter_weights=0)
    attention = (1 + BACKWARD_ATTENTION_EXECUTED) * work.attention / images
    return attention / max(
        2 * work.linear + attention, blocks * KERNELS_PER_BLOCK * LAUNCH_S * flops
    )
