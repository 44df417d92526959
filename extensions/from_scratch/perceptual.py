"""LPIPS: the distance of two images in the features of VGG16, as people judge it.

The weights of the distance come from the `lpips` package (BSD-2-Clause), which is not
imported: it needs torchvision, and downloads VGG16. This module reads VGG16 from a
local file.

`trainer` loads it for a run, `autoencoder_step` computes the loss with it, and `memory`
uses it without weights. It is never trained.

Source: Zhang et al., arXiv 1801.03924, eq. 1; constants: `lpips` 0.1.4, `ScalingLayer`,
`normalize_tensor`.

Shape suffixes: B batch, C channels, H/W height and width."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from extensions.from_scratch.losses_config import LPIPS, VGG_BLOCKS
from toolkit.errors import UserError, install_command

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation of ImageNet's colours, in [-1, 1]."""

EPSILON = 1e-10
PACKAGE_FILE = "weights/v0.1/vgg.pth"


class PerceptualDistance(nn.Module):
    """The distance per image; its own weights are never trained.

    Example::

        network = load_perceptual(Path("models/vgg16-397923af.pth"))
        distance_B = network(output_B3HW, target_B3HW)
    """

    shift_C11: Tensor
    scale_C11: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift_C11", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale_C11", torch.tensor(SCALE)[:, None, None])
        layers: list[nn.Module] = []
        ends: list[int] = []
        before = 3
        for block in VGG_BLOCKS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for channels in block:
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self._ends = frozenset(ends)
        self.heads = nn.ParameterList()
        for block in VGG_BLOCKS:
            self.heads.append(nn.Parameter(torch.zeros(1, block[-1], 1, 1)))
        self.requires_grad_(False)
        self.eval()

    def forward(self, output_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
        """[B]: the distance of images in [-1, 1]."""
        x_BCHW = (output_B3HW - self.shift_C11) / self.scale_C11
        y_BCHW = (target_B3HW - self.shift_C11) / self.scale_C11
        total_B = torch.zeros(len(output_B3HW), device=output_B3HW.device)
        heads = iter(self.heads)
        for index, layer in enumerate(self.features):
            x_BCHW = layer(x_BCHW)
            y_BCHW = layer(y_BCHW)
            if index in self._ends:
                difference_BCHW = (_unit(x_BCHW) - _unit(y_BCHW)).square()
                total_B = total_B + (next(heads) * difference_BCHW).sum(1).mean((1, 2))
        return total_B


def load_perceptual(backbone: Path) -> PerceptualDistance:
    """The distance with the weights of the `lpips` package. backbone: VGG16's weights,
    with torchvision's names.

    Raises UserError where one of the two cannot be used.
    """
    network = PerceptualDistance()
    weights = {
        name: tensor
        for name, tensor in _read(backbone).items()
        if name.startswith("features.")
    }
    heads = _read(heads_file())
    named = {
        f"heads.{index}": heads.get(f"lin{index}.model.1.weight")
        for index in range(len(VGG_BLOCKS))
    }
    tensors = {
        **weights,
        **{name: tensor for name, tensor in named.items() if tensor is not None},
    }
    expected = {
        name: tensor.shape
        for name, tensor in network.state_dict().items()
        if "_C11" not in name
    }
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise UserError(
            f"losses.lpips_backbone: {backbone} does not hold the weights of VGG16 (features.0.weight and so on). "
            "Give torchvision's vgg16-397923af.pth."
        )
    network.load_state_dict(tensors, strict=False)
    return network


def heads_file() -> Path:
    """The weights within the `lpips` package. Raises UserError when it is not
    installed."""
    spec = find_spec("lpips")
    if spec is None or not spec.submodule_search_locations:
        command = install_command(LPIPS, "--no-deps")
        raise UserError(
            f"losses.lpips: needs the package 'lpips', which is not installed. Run: {command}"
        )
    return Path(spec.submodule_search_locations[0]) / PACKAGE_FILE


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file: safetensors, or a state dict of PyTorch, which is read
    without unpickling code."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        contents = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"losses.lpips_backbone: {file} cannot be read ({reason})."
        ) from error
    return {
        name: tensor for name, tensor in contents.items() if isinstance(tensor, Tensor)
    }


def _unit(features_BCHW: Tensor) -> Tensor:
    """Features scaled to unit length at each pixel."""
    return features_BCHW / (
        features_BCHW.square().sum(1, keepdim=True).sqrt() + EPSILON
    )
