"""How the blocks of a model are run: checkpointing level, block swap, compilation,
attention kernel.

This module chooses the wrappers and their order; each wrapper is in its own module
(`checkpointing`, `offload`, `recompute`, `compiling`, `attention`). It does not run a
step. Trainers and tools make a `BlockRunner` once the network is attached; the training
loop raises its level where the largest batch does not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from toolkit.config.reading.field_types import AUTO_LEVELS, OFFLOADING_LEVELS
from toolkit.config.sections.train import CompileConfig
from toolkit.contracts.model import BlockWrapper, DiffusionModel
from toolkit.memory import attention
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import Programs, compile_wrapper
from toolkit.memory.estimate import StepShape, fastest_level_that_fits
from toolkit.memory.flops import EFFICIENCY, attention_share
from toolkit.memory.offload import BlockSwap, offloading, swapped_blocks
from toolkit.memory.recompute import recomputing
from toolkit.system.device import free_memory, peak_flops

logger = logging.getLogger(__name__)

KEY = "train.gradient_checkpointing"

ATTENTION_COUNTS = 0.1
"""Share of attention in a step's time above which a slower kernel is reported."""


class BlockRunner:
    """Wraps the blocks of a model whose network is attached. `auto` becomes a level in
    `choose_checkpointing`.

    Example::

        runner = BlockRunner(model, device, torch.bfloat16, "auto", swapped=20)
        runner.choose_checkpointing(work, needed=optimizer_bytes)
    """

    def __init__(
        self,
        model: DiffusionModel,
        device: torch.device,
        dtype: torch.dtype,
        level: str = "full",
        swapped: int = 0,
        compile_settings: CompileConfig | None = None,
        trained: bool = False,
        pinned_blocks: int = 0,
    ) -> None:
        """level: of `CHECKPOINTING_LEVELS`, or "auto". swapped: number of blocks whose
        weights stay in CPU memory. compile_settings: None where the blocks are not
        compiled, see `decide_compiling`. trained: whether the blocks themselves are
        trained, without an adapter. pinned_blocks: as in `BlockSwap`."""
        self._model = model
        self._device = device
        self._is_auto = level == "auto"
        self._fitting: Callable[..., str] = lambda levels, compiled, flops: levels[0]
        self._compile = compile_settings
        self.programs = Programs(compile_settings)
        self.programs.on_stop.append(self._run_uncompiled)
        self.programs.increase_checkpointing = self.increase_checkpointing

        blocks = model.blocks()
        offload = [blocks[index] for index in swapped_blocks(swapped, len(blocks))]
        if compile_settings:
            model.prepare_compiling()
        self._swap = (
            BlockSwap(offload, device, trained, pinned_blocks) if offload else None
        )
        self._kernel: list[BlockWrapper] = []
        if device.type == "cuda":
            self._kernel = [attention.with_sdpa_priority(device)]
        self._dtype = dtype
        self.level = AUTO_LEVELS[-1] if self._is_auto else level
        self._wrap()

    @property
    def levels(self) -> Sequence[str]:
        """The levels that `auto` chooses from. On the CPU they have no offload."""
        is_cpu = self._device.type == "cpu"
        return [
            level
            for level in AUTO_LEVELS
            if not (is_cpu and level in OFFLOADING_LEVELS)
        ]

    def warn_of_slow_attention(self, work: StepShape, images: int) -> None:
        """Logs a warning where attention has no fast kernel and takes a good part of a
        step (`ATTENTION_COUNTS`). images: number of images in `work`."""
        if self._device.type != "cuda":
            return
        flops = EFFICIENCY * peak_flops(self._device)
        share = attention_share(
            work.tokens // images, images, work.width, work.blocks, flops
        )
        if share >= ATTENTION_COUNTS and not attention.has_fast_kernel(
            self._device, self._dtype, self._model.head_dim
        ):
            logger.warning(
                f"attention: no flash or cuDNN kernel for {self._dtype} on this device; using a slower one."
            )

    def choose_checkpointing(
        self,
        work: StepShape,
        needed: int,
        gather: Callable[[str], Sequence[str]] = lambda level: [level],
    ) -> None:
        """Chooses the level of `auto`: the fastest whose activations fit into free
        memory. Without compilation the host's time for a step counts too
        (`step_seconds`).

        needed: further bytes that training will allocate, such as optimizer state.
        gather: all-gathers the level over the ranks; all take the one that saves most,
        so that they make the same passes.
        """
        if not self._is_auto:
            return
        free = free_memory(self._device) - needed
        self._fitting = lambda levels, compiled, flops: fastest_level_that_fits(
            levels, free, replace(work, compiled=work.compiled and compiled), flops
        )
        self.level = max(gather(self._fastest(self.levels)), key=AUTO_LEVELS.index)
        logger.info(
            f"{KEY} auto: {self.level} ({max(0, free) / 1e9:.1f} GB free, largest batch {work.tokens} tokens)"
        )
        self._wrap()

    def increase_checkpointing(self) -> bool:
        """Changes `auto` to a level that saves more, the fastest that should fit, and
        logs it; False where none is left. Called when a batch does not fit."""
        if not self._is_auto or self.level == self.levels[-1]:
            return False
        before = self.level
        self.level = self._fastest(self.levels[self.levels.index(self.level) + 1 :])
        logger.info(
            f"{KEY} auto: the largest batch does not fit with {before}; {self.level} instead"
        )
        self._wrap()
        return True

    def _fastest(self, levels: Sequence[str]) -> str:
        compiled = self.programs.used
        is_eager = self._device.type == "cuda" and not compiled
        return self._fitting(
            levels,
            compiled,
            EFFICIENCY * peak_flops(self._device) if is_eager else None,
        )

    def _run_uncompiled(self) -> None:
        """Called once the compiled programs are given up."""
        level = max(self.level, self._fastest(self.levels), key=AUTO_LEVELS.index)
        if self._is_auto and level != self.level:
            logger.info(
                f"{KEY} auto: {level} instead of {self.level}, for uncompiled blocks"
            )
            self.level = level
        self._wrap()

    def _wrap(self) -> None:
        """Innermost first. Block swap is outermost: weights are loaded before the
        forward pass and recomputation."""
        used = self.programs.used
        if self._compile and used:
            compilation = [compile_wrapper(self._compile, self.programs)]
        else:
            compilation = []
        offload: list[BlockWrapper] = [*offloading(self._device, self.level)]
        if self.level == "block_offload":
            offload = [recomputing(self._device)]
        swap = [self._swap] if self._swap else []
        # Checkpointing the last block saves nothing: its activations are needed again
        # at once. With compilation it would have to be compiled separately, which is
        # not worth it. Where a block's activations are too many for the device, the
        # last block's are too.
        all_alike = used or self.level == "block_offload"
        self._model.wrap_blocks(
            [
                *self._kernel,
                checkpoint_wrapper(self.level, self._model.hidden_size),
                *compilation,
                *offload,
                *swap,
            ],
            last_block_wrappers=None if all_alike else [*self._kernel, *swap],
        )
