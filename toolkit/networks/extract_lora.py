"""Extracts a plain LoRA from a network of another kind, for programs that only read
LoRAs (`save.also`).

It goes through the layers of a network in training; `svd` finds the LoRA of one layer.
The writer of a run's files calls it, and writes the result. Files that are already
written are converted by a tool, without this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.networks.adapter import LinearAdapterNetwork, dequantized_weight
from toolkit.networks.lora_formats import parse_adapter_tensors
from toolkit.networks.spelling import EXPORTED_PREFIX
from toolkit.networks.svd import extract_lora, extract_lora_from_delta
from toolkit.system.device import DTYPES

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExtractedLora:
    """The tensors of an extracted LoRA file, and its errors.

    >>> alpha = {"diffusion_model.to_q.alpha": torch.tensor(8.0)}
    >>> found = ExtractedLora(alpha, errors={"to_q": 0.1, "to_k": 0.3})
    >>> found.rank, found.worst_layer
    (8, 'to_k')
    """

    tensors: dict[str, Tensor]
    """In the file's dtype, under names that ComfyUI and diffusers load."""

    errors: dict[str, float]
    """Layer -> Frobenius norm of the difference, relative to the layer's delta; 0 for a
    delta of zero."""

    @property
    def rank(self) -> int:
        """The largest rank of a layer. Alpha equals the rank, so that nothing is
        scaled."""
        return int(
            max(
                tensor
                for name, tensor in self.tensors.items()
                if name.endswith(".alpha")
            )
        )

    @property
    def worst_layer(self) -> str:
        """The layer with the largest error."""
        return max(self.errors, key=self.errors.__getitem__)

    @property
    def worst(self) -> float:
        """The largest error."""
        return self.errors[self.worst_layer]

    @property
    def mean(self) -> float:
        """The mean error of all layers."""
        return sum(self.errors.values()) / len(self.errors)


@torch.no_grad()
def extract_network_lora(
    network: LinearAdapterNetwork,
    weights: Mapping[str, Tensor],
    rank: int,
    dtype: str,
    stop_asked: Callable[[], bool] = lambda: False,
) -> ExtractedLora | None:
    """The LoRA of at most `rank`, in `dtype` (a key of DTYPES), that is nearest to the
    change of each layer by `weights`.

    weights: float32 on the CPU, as named by the network's `parameters`. The change of a
    DoRA is the change of the weight that its training sees; a quantized weight is
    dequantized. It works on the CPU, one layer after the other, which can take minutes.
    stop_asked: once it returns True, the result is None.
    """
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for name, change in parse_adapter_tensors(
        network.export(dict(weights)), network.targets, network.__class__.__name__
    ).items():
        if stop_asked():
            return None
        if not change.needs_base:
            up, down, error = extract_lora(change, rank)
        else:
            up, down, error = extract_lora_from_delta(
                change.delta_for(
                    dequantized_weight(network.layers[name].base_layer, CPU)
                ),
                rank,
            )
        stored = up.to(DTYPES[dtype]).contiguous(), down.to(DTYPES[dtype]).contiguous()
        (
            tensors[f"{EXPORTED_PREFIX}{name}.lora_B.weight"],
            tensors[f"{EXPORTED_PREFIX}{name}.lora_A.weight"],
        ) = stored
        # bfloat16 would round some ranks
        tensors[f"{EXPORTED_PREFIX}{name}.alpha"] = torch.tensor(float(len(down)))
        errors[name] = math.hypot(error, _rounding((up, down), stored))
    return ExtractedLora(tensors, errors)


def _rounding(exact: tuple[Tensor, Tensor], stored: tuple[Tensor, Tensor]) -> float:
    """|stored product - exact product| relative to the latter, by the products' small Gram matrices, in float64."""
    (up, down), (stored_up, stored_down) = (
        [matrix.double() for matrix in pair] for pair in (exact, stored)
    )
    norm = _product_norm(up, down)
    difference = _product_norm(
        torch.cat([stored_up - up, up], 1),
        torch.cat([stored_down, stored_down - down], 0),
    )
    return difference / norm if norm else 0.0


def _product_norm(up: Tensor, down: Tensor) -> float:
    """|up @ down| without forming it: the trace of (up^T up)(down down^T)."""
    return math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))
