"""How many floating-point operations a training step of the published model's kind takes, by arithmetic.

What is counted: the products that tokens go through, attention, and the adapter. Left out are elementwise work and
what is done once per image (modulation): under 1 %. An 8-bit product counts like one of bf16.

Shape suffixes: S tokens of one sample (target, references, text), D width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.synthetic import ModelSize

WEIGHTS_PER_TOKEN = 12
"""Of a block, in units of D^2: query, key, value and output of attention, and 4 D wide layers up and down. Each stream
has its own, and a token goes through those of its stream."""

BACKWARD_ATTENTION = 2.0
"""Of what the forward pass takes, without what kernels compute again."""

BACKWARD_ATTENTION_EXECUTED = 2.5
"""With it: flash attention makes the scores anew (https://arxiv.org/abs/2307.08691, section 3.1.2)."""

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
    """Of one forward pass."""

    linear: float
    attention: float
    adapter: float

    @property
    def model(self) -> float:
        """What one training step needs at least, its adapter aside: the frozen weights get no gradients. MFU's base."""
        return 2 * self.linear + (1 + BACKWARD_ATTENTION) * self.attention

    def executed(self, level: str) -> float:
        """What one training step does at this level of checkpointing: HFU's base."""
        linear, attention = RECOMPUTED[level]
        # An adapter's matrices get gradients beside those of their inputs.
        return (
            (2 + linear) * self.linear
            + (1 + attention + BACKWARD_ATTENTION_EXECUTED) * self.attention
            + (3 + linear) * self.adapter
        )


def of_forward(size: ModelSize, references: int, rank: int) -> Flops:
    """One sample with so many references of its own size; a LoRA on every linear layer that tokens go through."""
    tokens = (1 + references) * size.tokens + size.text_tokens
    width = size.heads * size.head_dim
    of_adapter = 2 * rank * (4 * 2 * width + 2 * 5 * width)
    return Flops(
        linear=2 * WEIGHTS_PER_TOKEN * width**2 * size.layers * tokens,
        attention=4 * tokens**2 * width * size.layers,
        adapter=of_adapter * size.layers * tokens,
    )
