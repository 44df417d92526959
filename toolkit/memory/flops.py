"""How many floating-point operations a training step of the published model's kind takes, by arithmetic, and how many a
GPU does per second. Imports no torch.

What is counted: the products that tokens go through, attention, and the adapter. Left out are elementwise work and
what is done once per image (modulation): under 1 %. An 8-bit product counts like one of bf16.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WEIGHTS_PER_TOKEN = 12
"""Weights of a block, in units of D^2: query, key, value and output of attention, and 4 D wide layers up and down. Each
stream has its own, and a token goes through those of its stream."""

BACKWARD_ATTENTION = 2.0
"""Share of what the forward pass takes, without what kernels compute again."""

BACKWARD_ATTENTION_EXECUTED = 2.5
"""With it: flash attention computes the scores again (https://arxiv.org/abs/2307.08691, section 3.1.2)."""

RECOMPUTED = {
    "none": (0, 0),
    "cheap": (0, 0),
    "keep_attention": (1, 0),
    "full": (1, 1),
    "full_offload": (1, 1),
}
"""Level of `train.gradient_checkpointing` -> how often linear layers and attention are recomputed."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one forward pass."""

    linear: float
    attention: float
    adapter: float

    @property
    def model(self) -> float:
        """What one training step needs at least, its adapter aside: the frozen weights get no gradients. MFU's base."""
        return 2 * self.linear + (1 + BACKWARD_ATTENTION) * self.attention

    def executed(self, level: str, trains_model: bool = False) -> float:
        """What one training step does at this level of checkpointing: HFU's base. trains_model: not an adapter."""
        linear, attention = RECOMPUTED[level]
        # What is trained gets gradients beside those of its inputs.
        return (
            (2 + trains_model + linear) * self.linear
            + (1 + attention + BACKWARD_ATTENTION_EXECUTED) * self.attention
            + (3 + linear) * self.adapter
        )


def of_forward(tokens: int, width: int, blocks: int, adapter_weights: int) -> Flops:
    """One sample of so many tokens: target, references and text. adapter_weights: of layers that tokens go through."""
    return Flops(
        linear=2.0 * WEIGHTS_PER_TOKEN * width**2 * blocks * tokens,
        attention=4.0 * tokens**2 * width * blocks,
        adapter=1.0 * adapter_weights * tokens,  # multiplied and added, by the tokens of one of both streams
    )


BF16_TFLOPS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L40": 181, "L4": 121,
    "A10G": 70, "A10": 125, "RTX 6000 Ada": 364, "RTX A6000": 155, "RTX 5090": 209, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
"""Words of a GPU's name -> 10^12 operations per second of dense products in bfloat16, summed in float32, as NVIDIA's
data sheets and white papers have it. Of several that match the longest counts."""

EFFICIENCY = 0.4
"""Share of it that training reaches with compiled blocks: 0.38 to 0.45 measured on an H100 (docs/measured.md)."""

UNCOMPILED = 0.25
"""The same without compiling: a step of 587 TFLOP took 2.40 s there."""


KERNELS_PER_BLOCK = 353
"""Kernels that an uncompiled block launches in forward and backward, with a LoRA on all layers and everything
recomputed. Source: benchmarks/bench_kernels.py (bf16; quantized blocks launch more)."""

LAUNCH_S = 8e-6
"""Seconds of the host for each of them, autograd included; an assumption. Small images leave a fast GPU waiting."""


HOST_S = 65e-6
"""Seconds of the host for each kernel of a whole training step that is not compiled: 2.40 s for 36,800 on an H100."""

COMPILED_HOST_SHARE = 0.2
"""Share of it with compiled blocks, which launch fewer: the most that is compatible with 0.42 s for a step of the
published model on an H100."""

MEASURED_GPU = "H100"
"""The GPU that these figures are of."""

COMPILE_S = 47
"""Seconds that compiling the blocks takes, the first time on a machine; measured on an H100 with 16 cores."""


@dataclass(frozen=True)
class StepWork:
    """What an optimizer step takes of one process."""

    flops: float
    kernels: int
    """That the host starts where blocks are not compiled."""

    def seconds(self, gpu: str, compiled: bool = True) -> float | None:
        """On a GPU of this name; None where it is not known."""
        reached, host_s = reached_flops(gpu), HOST_S * self.kernels
        if not reached:
            return None
        if compiled:
            return max(self.flops / reached, COMPILED_HOST_SHARE * host_s)
        return max(self.flops / reached * EFFICIENCY / UNCOMPILED, host_s)

    def against_compiling(self, gpu: str, steps: int, compile_s: float = COMPILE_S) -> str:
        """Why compiling the blocks does not pay in a run of so many optimizer steps; empty where it does, and on a GPU
        that is not known. compile_s: seconds that compiling takes here."""
        compiled, eager = self.seconds(gpu), self.seconds(gpu, compiled=False)
        if not compiled or not eager or (saved := steps * (eager - compiled)) >= compile_s:
            return ""
        return (
            f"it takes about {compile_s:.0f} s, and {steps:,} steps of {compiled:.2g} instead of {eager:.2g} s "
            f"(calculated for {gpu}) save {saved:.0f} s"
        )


def reached_flops(gpu: str) -> float | None:
    """Operations per second that training is expected to reach on a GPU of this name; None: not known."""
    words = [known for known in BF16_TFLOPS if re.search(rf"\b{known}\b(?!.*Laptop)", gpu)]
    return EFFICIENCY * 1e12 * BF16_TFLOPS[max(words, key=len)] if words else None


def attention_share(tokens: int, images: int, width: int, blocks: int, flops: float) -> float:
    """The share of attention in the time of a micro-step without recomputation, by calculation: less where small images
    leave the GPU waiting for the host.

    tokens: of one image. flops: that training reaches per second.
    """
    work = of_forward(tokens * images, width, blocks, adapter_weights=0)
    attention = (1 + BACKWARD_ATTENTION_EXECUTED) * work.attention / images
    return attention / max(2 * work.linear + attention, blocks * KERNELS_PER_BLOCK * LAUNCH_S * flops)
