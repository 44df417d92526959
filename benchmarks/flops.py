"""How many floating-point operations a step of the published model's kind takes, by the
numbers of `toolkit/memory/flops.py`. The base of MFU and HFU."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.memory.flops import (
    BACKWARD_ATTENTION_EXECUTED,
    RECOMPUTED,
    WEIGHTS_PER_TOKEN,
)

BACKWARD_ATTENTION = 2.0
"""Operations of attention in the backward pass, per operation of the forward pass,
without the ones that kernels repeat."""


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
