"""`type: scale`: writes a LoRA file with a strength for each group of blocks.

The strengths are multiplied into one factor of each change, without rounding. How
entries such as `0-9:0.5` are read is in `shared/blocks`. Changes that depend on the
model's weights cannot be scaled. `process` exports the class for the table of tools.
"""

from __future__ import annotations

import logging

from extensions.tools.lora_tools.config import ScaleConfig
from extensions.tools.lora_tools.files import (
    read_lora,
    refuse_what_needs_the_base,
    write_lora,
)
from extensions.tools.shared.blocks import read_blocks, strength_in
from jobs.process import BaseExtensionProcess
from toolkit.errors import UserError
from toolkit.networks.lora_formats import read_tensors
from toolkit.networks.programs import split_key
from toolkit.networks.targets import block_in

logger = logging.getLogger(__name__)

SCALED = (
    *(".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight"),
    *(".lora.up.weight", ".lora_B.bias"),
    *(".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".diff", ".diff_b"),
)
"""Endings of the keys that a strength is multiplied into: one factor of each change,
and changes of biases."""

STRENGTHS = "block_strengths"
"""Key of the metadata: the entries that the file was scaled by."""


class ScaleProcess(BaseExtensionProcess):
    """Multiplies in float32. A tensor whose dtype cannot hold the product exactly
    becomes float32.

    Example::

        python run.py scale a.safetensors half.safetensors --blocks 0-9:0.5 12:0
    """

    section: ScaleConfig

    def run(self) -> None:
        """Raises UserError for a change that depends on the model's weights, and for
        blocks that the file lacks."""
        super().run()
        section, blocks = self.section, read_blocks(self.section.blocks)
        file = read_lora(section.input, section.model_folder())
        for name, change in file.changes.items():
            refuse_what_needs_the_base(name, change)
        tensors, metadata = read_tensors(file.path)
        known = {block for block in map(block_in, tensors) if block is not None}
        for one in blocks:
            if not known & {*range(one.first, one.last + 1)}:
                has = "Its layers are in no blocks."
                if known:
                    has = f"It has blocks {min(known)} to {max(known)}."
                raise UserError(
                    f"blocks: {section.input} changes none of blocks {one.first} to {one.last}. {has}"
                )
        of_keys = {key: strength_in(key, blocks) for key in tensors}
        strengths = {key: of_keys[key] for key in of_keys if of_keys[key] != 1}
        scaled = {key for key in strengths if key.endswith(SCALED)}
        left = {split_key(key)[0] for key in strengths}
        left -= {split_key(key)[0] for key in scaled}
        if left:
            raise UserError(
                f"{section.input}: {min(left)} is in a form that is not scaled. Convert the file first."
            )
        for key in scaled:
            exact = tensors[key].float() * strengths[key]
            stored = exact.to(tensors[key].dtype)
            tensors[key] = stored if stored.float().equal(exact) else exact
        entries = " ".join(section.blocks)
        before = metadata.get(STRENGTHS)
        metadata[STRENGTHS] = f"{before}; {entries}" if before else entries
        write_lora(section.output_path(), tensors, metadata)
        logger.info(
            f"{section.output}: {len(scaled)} of {len(tensors)} tensors scaled ({entries})"
        )
