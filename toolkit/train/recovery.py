"""Makes accuracy-recovery adapters: for each quantized layer the LoRA that is nearest
to the error of the quantization.

With a weight W, the quantized Q and a diagonal S, up down of rank R minimises |(W - Q -
up down) S|_F where it is the truncated SVD of (W - Q) S, its right factor divided by S
(Eckart and Young 1936). Without data S is 1. With them S_ii = sqrt(E[x_i^2]) over the
layer's inputs x: the squared error is then the error of the layer's outputs, if its
inputs are uncorrelated. Source: Zhang et al. 2024, "QERA", arXiv:2410.06040
(QERA-approx).

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.

`base_model` makes an adapter for `auto`; a tool makes one that can be published.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.config.sections.model import AUTO_RANK, ModelConfig
from toolkit.files.tensor_cache import key_of
from toolkit.files.writing import sha256_of
from toolkit.memory.quantization import LowRank, QuantizedWeight
from toolkit.models.families import family_for
from toolkit.models.loading import part_hash
from toolkit.networks.save import write_safetensors_verified
from toolkit.networks.spelling import EXPORTED_PREFIX
from toolkit.networks.svd import extract_lora_from_delta

LEAST_SCALE = 1e-4
"""Smallest S_ii relative to the largest: an input that was always 0 may not be so on
other images."""


class LayerError(NamedTuple):
    """|(W - Q) S| / |W S| of the quantized weight alone, and with the adapter.

    >>> LayerError(plain=0.08, recovered=0.03).recovered
    0.03
    """

    plain: float
    recovered: float


class RecoveryMaker:
    """Makes the delta of one layer after another, while a model is loaded
    (`quantizer(make=...)`).

    Example::

        maker = RecoveryMaker(rank=16)
        model = load_base_model(section.model, device, dtype, make=maker)
        model.network_module  # loads the transformer, and makes the deltas
        maker.write(Path("recovery.safetensors"), {"qtype": "uint4"})
    """

    def __init__(
        self,
        rank: int,
        moments: Mapping[str, Tensor] | None = None,
        expected: int = 0,
        complete: Callable[[RecoveryMaker], None] | None = None,
    ) -> None:
        """moments: layer -> E[x_i^2] of its inputs [I]. complete: called once
        `expected` layers are made."""
        self.rank = rank
        self.low_rank: dict[str, LowRank] = {}
        """Full layer name -> (up, down) on the CPU, in the dtype of the weight."""
        self.errors: dict[str, LayerError] = {}
        self._moments = moments or {}
        self._expected = expected
        self._complete = complete

    @torch.no_grad()
    def __call__(
        self, name: str, weight_OI: Tensor, quantized: QuantizedWeight
    ) -> LowRank:
        """The delta of a layer, in the dtype of its weight."""
        exact_OI = weight_OI.float()
        lost_OI = exact_OI - quantized.dequantize().float()
        scale_I = torch.ones(lost_OI.shape[1], device=lost_OI.device)
        if name in self._moments:
            scale_I = self._moments[name].to(lost_OI.device).sqrt()
            scale_I = scale_I.clamp_min(LEAST_SCALE * float(scale_I.max()) or 1.0)
        up_OR, down_RI, _ = extract_lora_from_delta(lost_OI * scale_I, self.rank)
        pair = (
            up_OR.to(weight_OI.dtype).contiguous(),
            (down_RI / scale_I).to(weight_OI.dtype).contiguous(),
        )
        norm = max(float((exact_OI * scale_I).norm()), torch.finfo(torch.float32).tiny)
        left_OI = lost_OI - pair[0].float() @ pair[1].float()
        self.errors[name] = LayerError(
            float((lost_OI * scale_I).norm()) / norm,
            float((left_OI * scale_I).norm()) / norm,
        )
        self.low_rank[name] = pair[0].cpu(), pair[1].cpu()
        if self._complete and len(self.low_rank) == self._expected:
            self._complete(self)
        return pair

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Writes the file that `model.accuracy_recovery_adapter` reads. Raises RunError
        where it cannot be written."""
        tensors = {}
        for name, (up_OR, down_RI) in self.low_rank.items():
            tensors[f"{EXPORTED_PREFIX}{name}.lora_A.weight"] = down_RI
            tensors[f"{EXPORTED_PREFIX}{name}.lora_B.weight"] = up_OR
            tensors[f"{EXPORTED_PREFIX}{name}.alpha"] = torch.tensor(
                float(len(down_RI))
            )
        errors = {
            name: [round(number, 6) for number in error]
            for name, error in self.errors.items()
        }
        write_safetensors_verified(
            path,
            tensors,
            {"rank": str(self.rank), "errors": json.dumps(errors), **metadata},
        )

    def by_kind(self) -> dict[str, LayerError]:
        """The mean errors of the layers of the same name in all blocks. The name is
        without its first part and without numbers."""
        kinds = defaultdict(list)
        for name, error in self.errors.items():
            parts = [part for part in name.split(".")[1:] if not part.isdigit()]
            kinds[".".join(parts)].append(error)
        return {
            kind: LayerError(
                fmean(error.plain for error in errors),
                fmean(error.recovered for error in errors),
            )
            for kind, errors in kinds.items()
        }


def auto_file(model: ModelConfig, dtype: torch.dtype, cache: Path) -> Path:
    """Where the adapter that `auto` makes for a model is kept: its name says what it
    was made from.

    The name has the `qtype` and a hash of the model's weights, of `base_loras`, of the
    rank and of the dtype. Files are hashed for it; the adapter itself need not exist.
    """
    family = family_for(model)
    key = key_of(
        weights=part_hash(model, family.trained_part),
        merged=[
            [sha256_of(Path(lora.path).expanduser()), lora.multiplier]
            for lora in model.base_loras
        ],
        qtype=model.qtype,
        rank=AUTO_RANK,
        dtype=str(dtype),
    )
    return cache / "ara" / f"{model.qtype}_{key}.safetensors"
