"""Max-norm regularisation: limits the norm of the delta of each adapted layer.

Source: kohya-ss, sd-scripts and musubi-tuner, `apply_max_norm_regularization`: after each optimizer step a delta whose
Frobenius norm is above the limit is scaled down to it, with the factor shared evenly by the matrices of the layer.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def apply_max_norm_(
    norms: Sequence[Tensor], matrices: Sequence[Sequence[Tensor]], most: float, step_ok: Tensor
) -> dict[str, Tensor]:
    """Scales the matrices of each layer so that no norm is above `most`; no-op where `step_ok` (0-dim bool) is false.

    norms: of the delta of each layer, 0-dim. matrices: of each layer those whose product is the delta.
    Returns how many layers were scaled, and mean and largest norm after it; does not wait for the device.
    """
    before = torch.stack(list(norms))
    above = (before > most) & step_ok.to(before.device)
    ratio = torch.where(above, most / before, 1.0)
    shares = {n: (ratio ** (1 / n)).unbind() for n in {len(parts) for parts in matrices}}
    factors = [shares[len(parts)][index] for index, parts in enumerate(matrices) for _ in parts]
    torch._foreach_mul_([matrix for parts in matrices for matrix in parts], factors)
    after = before * ratio
    return {
        "max_norm/keys_scaled": above.sum(),
        "max_norm/average_key_norm": after.mean(),
        "max_norm/max_key_norm": after.max(),
    }


def product_norm(up_OR: Tensor, down_RI: Tensor) -> Tensor:
    """|up down| without forming the product: the sum over (up^T up) * (down down^T) is its square."""
    square = ((up_OR.T @ up_OR) * (down_RI @ down_RI.T)).sum()
    return square.clamp(min=0).sqrt()  # rounding may leave a zero slightly below
