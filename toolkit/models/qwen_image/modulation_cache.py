"""Caches the frozen part of each block's modulation per timestep, so that a third of
the weights can stay on the CPU.

`img_mod` and `txt_mod` depend on the timestep only, so their frozen outputs can be
cached. The timesteps of a run are known in advance (`prefetch_timesteps`). Their
outputs are computed from weights in CPU memory, which are streamed to the device layer
by layer. A timestep that was not prefetched is computed on use, which is slower and has
the same result.

Rows are always computed in chunks of `CHUNK`, so that their bits do not depend on the
other rows. They differ from a matmul of a single row by rounding.

A cache cannot be used where the modulation itself is trained. The streaming comes from
the caller. Made by `model.QwenImageModel.enable_modulation_cache`.

Shape suffixes: B batch rows, D model width, M = 12 D both modulations of a block, N
rows computed together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from toolkit.contracts.model import BlockForward, WeightStreaming
from toolkit.files.mapped import read_in
from toolkit.models.families import MOST_ROWS
from toolkit.models.qwen_image.forward import (
    BlockConditioning,
    ImageTextStreams,
    RunIndexed,
    timestep_embedding,
)
from toolkit.models.qwen_image.loading import TABULATED
from toolkit.system.device import to_device

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

CHUNK = 64
"""Rows that are computed together."""


class ModulationCacheUnsupportedError(Exception):
    """The modulation of this model cannot be cached; the message has the reason."""


class Modulation(nn.Module):
    """Replaces `img_mod` or `txt_mod`. The cached rows come with the embedding, and the
    delta of an adapter is computed.

    >>> image_modulation = Modulation(adapter=None, width=4, stream=0)
    >>> image_modulation(torch.zeros(1, 4 + 12 * 4)).shape
    torch.Size([1, 24])
    """

    adapter: Any
    """The layer that adapts the frozen one (`toolkit.networks.adapter.AdapterLinear`),
    or None."""

    def __init__(self, adapter: nn.Module | None, width: int, stream: int) -> None:
        """adapter: see above. width: D. stream: 0 image, 1 text."""
        super().__init__()
        self.adapter = adapter
        self.width = width
        self.place = slice((1 + 6 * stream) * width, (7 + 6 * stream) * width)

    def forward(self, extended_BE: Tensor) -> Tensor:
        """extended_BE: the embedding [B, D], then the rows of both streams [B, M].
        Returns [B, 6 D]."""
        rows_B = extended_BE[:, self.place]
        return (
            self.adapter.forward_with_base_output(
                rows_B, silu(extended_BE[:, : self.width])
            )
            if self.adapter
            else rows_B
        )


class ModulationCache:
    """Outputs of both modulations of every block, for prefetched and used timesteps.

    Example::

        cache = ModulationCache(transformer, device, dtype, streaming)
        cache.prefetch_timesteps([0.25, 0.5])
        velocity_BSP = forward(transformer, cache.wrap(run), tokens_BSP, *inputs)
    """

    def __init__(
        self,
        model: QwenImageTransformer2DModel,
        device: torch.device,
        dtype: torch.dtype,
        streaming: WeightStreaming,
    ) -> None:
        """Moves the frozen modulation layers of `model` to the CPU. Its adapters must
        be attached before.

        streaming: runs these layers with weights that wait in CPU memory; not used on
        the CPU.

        Raises ModulationCacheUnsupportedError, with nothing changed, where the frozen
        output depends on more than the timestep.
        """
        check_modulation_frozen(model)
        self._model = model
        self._device = device
        self._dtype = dtype
        self._layers = [
            [self._take(block, stream) for stream in range(2)]
            for block in model.transformer_blocks
        ]
        self._run: BlockForward = _run_here
        if self.is_elsewhere():
            self._run = streaming(
                [layer for layers in self._layers for layer in layers], device
            )(self._run)
        self._rows: dict[float, list[Tensor]] = {}
        """Level in the model's dtype -> its rows [M] of each block. The least recently
        used level is first."""

    def _take(self, block: nn.Module, stream: int) -> nn.Module:
        """Replaces the layer of one stream; returns its frozen layer, moved to the
        CPU."""
        layer = getattr(block, TABULATED[stream])[1]
        adapter = layer if hasattr(layer, "base_layer") else None
        base = adapter.base_layer if adapter is not None else layer
        if adapter is not None:
            adapter.base_layer = nn.Identity()
            adapter.to(self._device)
        width = base.in_features
        setattr(
            block,
            TABULATED[stream],
            Modulation(adapter, width, stream).to(self._device),
        )
        frozen: nn.Module = base.to("cpu")
        return frozen

    def prefetch_timesteps(self, levels: Iterable[float]) -> None:
        """Computes missing outputs for these timesteps in [0, 1], and for t = 0 where
        control images have it. Drops the least recently used other timesteps if
        necessary."""
        levels = [*levels, *[0.0] * self._model.zero_cond_t]
        wanted = dict.fromkeys(torch.tensor(levels).to(self._dtype).tolist())
        for level in wanted:
            if level in self._rows:
                self._rows[level] = self._rows.pop(level)
        missing = [level for level in wanted if level not in self._rows]
        for begin in range(0, len(missing), CHUNK):
            self.compute(missing[begin : begin + CHUNK])
        for level in [level for level in self._rows if level not in wanted][
            : max(0, len(self._rows) - MOST_ROWS)
        ]:
            del self._rows[level]

    @torch.no_grad()
    def compute(self, levels: Sequence[float]) -> None:
        """Caches the rows of at most CHUNK noise levels."""
        padded = [*levels, *[0.0] * (CHUNK - len(levels))]
        t_N = to_device(torch.tensor(padded), self._device, self._dtype)
        # only the dtype of its last argument is used
        embedded_ND = silu(timestep_embedding(self._model, t_N, t_N))
        for level in levels:
            self._rows[level] = []
        for layers in self._layers:
            rows_NM = torch.cat(
                [self._run(layer, embedded_ND)[0] for layer in layers], dim=1
            )
            for place, level in enumerate(levels):
                # a view would keep the whole chunk
                self._rows[level].append(rows_NM[place].clone())

    def is_elsewhere(self) -> bool:
        """Whether the layers have to be brought to the device."""
        return self._device.type != "cpu"

    def wrap(self, run: RunIndexed) -> RunIndexed:
        """Returns `run` with the cached rows of each block appended to the timestep
        embedding."""

        def run_with_rows(
            index: int,
            block: nn.Module,
            streams: ImageTextStreams,
            conditions: BlockConditioning,
        ) -> ImageTextStreams:
            if index == 0 and not self._rows.keys() >= {*conditions.levels}:
                self.prefetch_timesteps(conditions.levels)
            rows_BM = torch.stack(
                [self._rows[level][index] for level in conditions.levels]
            )
            temb_BD = torch.cat([conditions.temb_BD, rows_BM], dim=1)
            return run(index, block, streams, replace(conditions, temb_BD=temb_BD))

        return run_with_rows


def _run_here(layer: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    read_in(*layer.parameters(), *layer.buffers())
    return (layer(*inputs),)


def check_modulation_frozen(model: QwenImageTransformer2DModel) -> None:
    """Raises ModulationCacheUnsupportedError when a trained parameter changes the
    frozen part of the modulation."""
    if any(p.requires_grad for p in model.time_text_embed.parameters()):
        raise ModulationCacheUnsupportedError(
            "the embedding of the noise level is trained"
        )
    for block in model.transformer_blocks:
        for stream in TABULATED:
            layer = getattr(block, stream)[1]
            if hasattr(layer, "base_layer"):
                if layer.needs_base:
                    raise ModulationCacheUnsupportedError(
                        "this kind of network computes with the frozen weights of img_mod and txt_mod"
                    )
                layer = layer.base_layer
            if any(p.requires_grad for p in layer.parameters()):
                raise ModulationCacheUnsupportedError(
                    "img_mod and txt_mod are trained themselves"
                )
