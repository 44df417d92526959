"""A section's settings as what decides the memory of a step: for its plan, and for `gradient_checkpointing: auto`.

Imports no torch.
"""

from __future__ import annotations

from typing import Any

from extensions.sd_trainer.counted import Trained, count_trained
from toolkit.memory.activations import Work
from toolkit.models.footprint import Footprint
from toolkit.number_types import DTYPE_BYTES, INT8_SIDE
from toolkit.parallel import place_of
from toolkit.train.windows import cut_into

FLOAT = 4
"""Bytes of a number in float32."""

WHOLE_BLOCKS = 2
"""Blocks of which the weights are gathered at a time, with `train.parallel: fsdp`: one runs, the next one comes."""

STEPPING_COPIES = 4
"""Of the largest weight, in float32, by what `full_bf16` and Adafactor allocate; the others make one or none."""

STEPS_IN_PLACE = frozenset({"adamw", "adam", "sgd"})
"""Optimizers whose step makes no copies: torch's fused ones, and SGD."""


def work_of(section: Any, facts: Footprint, trained: Trained, tokens: int, on_card: bool) -> Work:
    """A step of one process with so many tokens in its largest batch. trained: `trained_here(section)`."""
    model, train = section.model, section.train
    number, own = DTYPE_BYTES[train.dtype], trained_bytes(section)
    waits = micro_batches(train) > 1
    fused = train.fused_backward_pass and not waits
    int8 = _multiplies_in_int8(model, facts, on_card)
    return Work(
        tokens=tokens,
        width=facts.width,
        blocks=facts.blocks,
        number_bytes=number,
        kind=section.network.type,
        dropout=bool(section.network.dropout),
        largest_layer=facts.largest_of_tokens,
        expanded=0 if int8 else _expanded(model, train.dtype, number),
        casts=0 if own == number or sharers(train) > 1 else trained.weights * number // facts.blocks,
        int8_products=int8,
        gradients=own * (trained.largest if fused else trained.weights),
        gradients_wait=waits,
    )


def copies_of_a_step(train: Any, trained: Trained) -> int:
    """Bytes of float32 copies while an optimizer steps one weight after the other."""
    in_place = train.optimizer in STEPS_IN_PLACE and not train.full_bf16
    return 0 if in_place else STEPPING_COPIES * FLOAT * trained.largest


def copies_within_backward(train: Any, trained: Trained) -> int:
    """Those of them that are there beside the activations."""
    return copies_of_a_step(train, trained) if train.fused_backward_pass else 0


def sharers(train: Any) -> int:
    """Processes that share the blocks of the model out."""
    return place_of().size if train.parallel == "fsdp" else 1


def whole_blocks(section: Any, facts: Footprint) -> tuple[int, int]:
    """Bytes of blocks that are whole although they are shared out: of their weights, and of the gradients of one, as
    they come, to be added up, and added up."""
    if sharers(section.train) == 1:
        return 0, 0
    number, block = DTYPE_BYTES[section.train.dtype], facts.linears // facts.blocks
    return WHOLE_BLOCKS * block * number, block * (number + 2 * FLOAT) * section.network.trains_model


def trained_here(section: Any) -> Trained:
    """What one process trains."""
    return count_trained(section, sharers(section.train))


def trained_bytes(section: Any) -> int:
    """Of a trained weight, and of its gradient: adapters are always float32."""
    return DTYPE_BYTES[section.weights_dtype()] if section.network.trains_model else FLOAT


def images_at_once(train: Any) -> int:
    """Images of the largest batch that one process computes."""
    return -(-train.batch_size // cut_into(train.gradient_accumulation, place_of().size))


def micro_batches(train: Any) -> int:
    """Batches of an optimizer step that one process computes."""
    processes = place_of().size
    parts = min(cut_into(train.gradient_accumulation, processes), train.batch_size)
    return -(-train.gradient_accumulation * parts // processes)


def _multiplies_in_int8(model: Any, facts: Footprint, on_card: bool) -> bool:
    if not model.quantize or model.qtype != "int8":
        return False
    wide_enough = not on_card and facts.width >= INT8_SIDE
    return wide_enough if model.int8_matmul == "auto" else model.int8_matmul


def _expanded(model: Any, dtype: str, number: int) -> int:
    """Bytes per weight of the copies that a quantized layer has while it is used: see the classes of `stored`."""
    if not model.quantize:
        return 0
    if model.qtype in ("int4", "int2"):
        return number + 1  # the codes, unpacked
    if model.qtype == "fp8_scaled":
        return number + FLOAT
    return 2 * number if dtype == "float16" else number
