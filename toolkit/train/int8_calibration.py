"""W8A8 calibration: one image through the frozen model before training chooses the layers with int8 matmuls.

The network is disabled, the noise is keyed and the timesteps are fixed. The choice depends on the model and the data
only, not on the trained weights, so a resumed run makes the same choice.

Shape suffixes: B batch, C channels, H/W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from toolkit.contracts.data import BatchSpec
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network import Network
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.flow.loss import at_least_float32, linear_path
from toolkit.memory.int8_calibration import (
    LayerErrors,
    choose,
    choose_with_few_patterns,
    errors_to_host,
    observe_errors,
)
from toolkit.memory.quantization import RowwiseQuantized
from toolkit.system.device import to_device

LEVELS = (0.1, 0.5, 0.9)
"""Timesteps of the passes; the largest error counts."""

Errors = list[LayerErrors]


def first_sample_spec(batches: Sequence[BatchSpec]) -> BatchSpec:
    """The first sample in an epoch's order, as a batch of one, whatever the batch size. batches: all of the epoch."""
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
    from_first: Callable[[Callable[[], Errors]], Errors] = lambda compute: compute(),
    compiled: bool = False,
) -> Errors:
    """Runs the batch forward and backward through the model and sets the int8 matmuls of each layer.

    from_first: `ProcessGroup.run_on_rank0_and_broadcast`. compiled: blocks are compiled, so few
    different choices per block are wanted. Returns the errors by layer.
    """
    model.prefetch_timesteps(LEVELS)
    with network.disabled(), observe_errors(layers) as observed, torch.compiler.set_stance("force_eager"):
        for timestep in LEVELS:
            t_B = torch.full((len(batch),), timestep)
            x_t_BCHW, velocity_BCHW = linear_path(at_least_float32(batch.latents_BCHW), noise_BCHW, t_B)
            x_t_BCHW.requires_grad_()  # nothing else here does
            predicted_BCHW = model.predict_velocity(x_t_BCHW, t_B, batch.prompts, batch.control_latents)
            (predicted_BCHW - to_device(velocity_BCHW, predicted_BCHW.device)).square().mean().backward()
    errors = from_first(lambda: errors_to_host(observed))
    if compiled:
        choose_with_few_patterns(layers, errors, model.blocks())
    else:
        choose(layers, errors)
    return errors
