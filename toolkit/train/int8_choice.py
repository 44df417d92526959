"""One image through the frozen model, before training, to choose which of its layers multiply in int8.

The network is left out, the noise is keyed and the noise levels are fixed: the choice follows from the model and the
data, not from what was learned so far, so a run that goes on chooses as it did when it began.

Shape suffixes: B batch, C channels, H/W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from toolkit.contracts import BatchSpec, ModelAdapter, Network
from toolkit.data.batches import LatentBatch
from toolkit.device import to_device
from toolkit.flow.path import at_least_float32, linear_path
from toolkit.memory.int8_probe import Error, choose, choose_alike, fetched, watched
from toolkit.memory.stored import RowScaled

LEVELS = (0.1, 0.5, 0.9)
"""Noise levels of the passes; the largest error counts."""

Errors = list[Error]


def first_use(batches: Sequence[BatchSpec]) -> BatchSpec:
    """The first use of an epoch's order alone, whatever the batch size; batches: all of the epoch."""
    return next(
        BatchSpec(spec.epoch, (item,), (position,))
        for spec in batches
        for item, position in zip(spec.items, spec.positions, strict=True)
        if position == 0
    )


def choose_int8(
    adapter: ModelAdapter,
    network: Network,
    layers: Sequence[RowScaled],
    batch: LatentBatch,
    noise_BCHW: Tensor,
    from_first: Callable[[Callable[[], Errors]], Errors] = lambda make: make(),
    compiled: bool = False,
) -> Errors:
    """Passes the batch through the model, forward and backward, and gives each of `layers` its choice.

    from_first: of several processes, gives all what the first one makes. compiled: blocks are programs, of which there
    are to be few. Returns the errors by layer.
    """
    adapter.announce(LEVELS)
    with network.left_out(), watched(layers) as seen, torch.compiler.set_stance("force_eager"):
        for level in LEVELS:
            _pass(adapter, batch, noise_BCHW, level)
    errors = from_first(lambda: fetched(seen))
    if compiled:
        choose_alike(layers, errors, adapter.blocks())
    else:
        choose(layers, errors)
    return errors


def _pass(adapter: ModelAdapter, batch: LatentBatch, noise_BCHW: Tensor, level: float) -> None:
    """Gradients reach the layers by way of the noisy image: nothing else asks for one."""
    latents_BCHW = at_least_float32(batch.latents_BCHW)
    t_B = torch.full((len(batch),), level)
    x_t_BCHW, velocity_BCHW = linear_path(latents_BCHW, noise_BCHW, t_B)
    predicted_BCHW = adapter.predict_velocity(x_t_BCHW.requires_grad_(), t_B, batch.prompts, batch.references)
    (predicted_BCHW - to_device(velocity_BCHW, predicted_BCHW.device)).square().mean().backward()
