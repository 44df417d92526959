"""A linear layer whose weight is quantized and never trained."""

from __future__ import annotations

from torch import Tensor, nn

from toolkit.memory.quantized_weight import QuantizedLinearFn, QuantizedWeight


class QuantizedLinear(nn.Linear):
    """Replaces an `nn.Linear`; adapters attach to it in the same way.

    `weight` is a QuantizedWeight: it has a shape, a dtype and a device, dequantizes, and can be handed to
    `functional.linear`.
    """

    def __init__(self, weight: QuantizedWeight, bias_O: nn.Parameter | None) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate a full weight
        self.out_features, self.in_features = weight.shape
        self.weight = weight  # type: ignore[assignment]  # it has all that adapters need of a weight
        self.register_parameter("bias", bias_O)
        self.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        return QuantizedLinearFn.apply(input, self.weight, self.bias)
