"""One image through the frozen model, before training, to choose which of its layers multiply in int8.

The network is left out, the noise is keyed and the noise levels are fixed: the choice follows from the model and the
data, not from what was learned so far, so a run that goes on chooses as it did when it began.

Shape suffixes: B batch, C channels, H/W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from toolkit.data.dataloader import LatentBatch
from toolkit.device import to_device
from toolkit.flow.interpolant import at_least_float32, linear_path
from toolkit.interfaces import BatchSpec, DiffusionModel, Network
from toolkit.memory.int8_calibration import (
    LayerErrors,
    choose,
    choose_with_few_patterns,
    errors_to_host,
    observe_errors,
)
from toolkit.memory.quantized_weight import RowwiseQuantized

LEVELS = (0.1, 0.5, 0.9)
"""Noise levels of the passes; the largest error counts."""

Errors = list[LayerErrors]


def first_sample_spec(batches: Sequence[BatchSpec]) -> BatchSpec:
    """The first use of an epoch's order alone, whatever the batch size; batches: all of the epoch."""
    return next(
        BatchSpec(spec.epoch, (item,), (position,))
        for spec in batches
        for item, position in zip(spec.items, spec.positions, strict=True)
        if position == 0
    )


def calibrate_int8(
    model: DiffusionModel,
    network: Network,
    layers: Sequence[RowwiseQuantized],
    batch: LatentBatch,
    noise_BCHW: Tensor,
    from_first: Callable[[Callable[[], Errors]], Errors] = lambda make: make(),
    compiled: bool = False,
) -> Errors:
    """Passes the batch through the model, forward and backward, and gives each of `layers` its choice.

    from_first: of several processes, gives all what rank 0 makes. compiled: blocks are programs, of which there
    are to be few. Returns the errors by layer.
    """
    model.prefetch_timesteps(LEVELS)
    with network.disabled(), observe_errors(layers) as seen, torch.compiler.set_stance("force_eager"):
        for level in LEVELS:
            _pass(model, batch, noise_BCHW, level)
    errors = from_first(lambda: errors_to_host(seen))
    if compiled:
        choose_with_few_patterns(layers, errors, model.blocks())
    else:
        choose(layers, errors)
    return errors


def _pass(model: DiffusionModel, batch: LatentBatch, noise_BCHW: Tensor, level: float) -> None:
    """Gradients reach the layers by way of the noisy image: nothing else asks for one."""
    latents_BCHW = at_least_float32(batch.latents_BCHW)
    t_B = torch.full((len(batch),), level)
    x_t_BCHW, velocity_BCHW = linear_path(latents_BCHW, noise_BCHW, t_B)
    predicted_BCHW = model.predict_velocity(x_t_BCHW.requires_grad_(), t_B, batch.prompts, batch.control_latents)
    (predicted_BCHW - to_device(velocity_BCHW, predicted_BCHW.device)).square().mean().backward()
