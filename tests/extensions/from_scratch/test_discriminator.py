"""The patch discriminator: its size, its spectral norm, and when that changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, relu

from extensions.from_scratch import perceptual
from extensions.from_scratch.discriminator import PatchDiscriminator
from extensions.from_scratch.losses_config import LPIPS, VGG_BLOCKS
from extensions.from_scratch.perceptual import SCALE, SHIFT, load_perceptual
from toolkit.errors import UserError, install_command


def largest_singular_values(network: PatchDiscriminator) -> list[float]:
    return [
        torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        for layer in network.layers
    ]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_image_gives_one_judgement(layers: int) -> None:
    network, side = (
        PatchDiscriminator(4, layers, 0),
        PatchDiscriminator.smallest(layers),
    )
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 1)
    with pytest.raises(RuntimeError):
        network(torch.zeros(2, 3, side - 1, side))


def test_channels_decide_its_width_and_the_seed_its_weights() -> None:
    weights = [layer.weight for layer in PatchDiscriminator(4, 5, 0).layers]
    assert [weight.shape[0] for weight in weights] == [4, 8, 16, 32, 32, 32, 1]
    again, other = PatchDiscriminator(4, 5, 0), PatchDiscriminator(4, 5, 1)
    assert torch.equal(again.layers[0].weight, weights[0]) and not torch.equal(
        other.layers[0].weight, weights[0]
    )


def test_a_patch_of_the_default_sees_70_pixels() -> None:
    pixels = torch.zeros(1, 3, 142, 142, requires_grad=True)
    judged = PatchDiscriminator(4, 3, 0)(pixels)
    judged[0, judged.shape[1] // 2].backward()
    assert pixels.grad is not None
    rows = pixels.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70


def test_layers_keep_a_spectral_norm_of_one_as_they_are_trained() -> None:
    network = PatchDiscriminator(4, 2, 0)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        (-network(torch.randn(4, 3, 16, 16, generator=draws)).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        network.after_step(torch.tensor(True))
    assert largest_singular_values(network) == pytest.approx([1.0] * 4, rel=0.05)


def test_its_vectors_change_once_per_step_that_is_taken_and_never_in_a_forward_pass() -> (
    None
):
    network = PatchDiscriminator(4, 2, 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {name: vector.clone() for name, vector in network.vectors().items()}
    network(torch.randn(1, 3, 16, 16))
    network.after_step(torch.tensor(False))
    assert all(
        torch.equal(vector, before[name]) for name, vector in network.vectors().items()
    )
    network.after_step(torch.tensor(True))
    assert not all(
        torch.equal(vector, before[name]) for name, vector in network.vectors().items()
    )


# ------------------------------------------------------------ LPIPS


Weights = dict[str, Tensor]


def vgg16() -> Weights:
    """Random weights under torchvision's names: 13 convolutions, with the classifier
    that is not read."""
    draws, weights, before, index = (
        torch.Generator().manual_seed(0),
        {"classifier.0.bias": torch.zeros(2)},
        3,
        0,
    )
    for block in VGG_BLOCKS:
        for channels in block:
            weights[f"features.{index}.weight"] = (
                torch.randn(channels, before, 3, 3, generator=draws)
                / (9 * before) ** 0.5
            )
            weights[f"features.{index}.bias"] = (
                torch.randn(channels, generator=draws) * 0.1
            )
            before, index = channels, index + 2
        index += 1
    return weights


@pytest.fixture(scope="module")
def backbone() -> Weights:
    return vgg16()


@pytest.fixture(scope="module")
def heads() -> Weights:
    return {
        f"lin{i}.model.1.weight": torch.rand(1, block[-1], 1, 1)
        for i, block in enumerate(VGG_BLOCKS)
    }


@pytest.fixture
def files(
    backbone: Weights, heads: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The backbone's file, beside that of the package."""
    torch.save(heads, tmp_path / "heads.pth")
    monkeypatch.setattr(perceptual, "heads_file", lambda: tmp_path / "heads.pth")
    save_file(backbone, tmp_path / "vgg.safetensors")
    return tmp_path / "vgg.safetensors"


def by_hand(x: Tensor, y: Tensor, backbone: Weights, heads: Weights) -> Tensor:
    """Zhang et al., eq. 1, over the five ends of VGG16's blocks."""
    x, y = (
        (image - torch.tensor(SHIFT)[:, None, None])
        / torch.tensor(SCALE)[:, None, None]
        for image in (x, y)
    )
    total, index = torch.zeros(len(x)), 0
    for number, block in enumerate(VGG_BLOCKS):
        if number:
            x, y, index = max_pool2d(x, 2), max_pool2d(y, 2), index + 1
        for _ in block:
            weight, bias = (
                backbone[f"features.{index}.{part}"] for part in ("weight", "bias")
            )
            x, y, index = (
                *(relu(conv2d(image, weight, bias, padding=1)) for image in (x, y)),
                index + 2,
            )
        difference = x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)
        total += (
            (heads[f"lin{number}.model.1.weight"] * difference**2).sum(1).mean((1, 2))
        )
    return total


@pytest.mark.slow
def test_it_is_the_formula_and_has_a_gradient_for_the_output_alone(
    files: Path, backbone: Weights, heads: Weights
) -> None:
    network = load_perceptual(files)
    draws = torch.Generator().manual_seed(1)
    x, y = (torch.rand(2, 3, 32, 48, generator=draws) * 2 - 1 for _ in range(2))
    found = network(x.requires_grad_(), y)
    torch.testing.assert_close(
        found.detach(), by_hand(x.detach(), y, backbone, heads), rtol=1e-3, atol=1e-5
    )
    assert torch.equal(network(y, y), torch.zeros(2))
    found.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.slow
def test_a_state_dict_of_pytorch_is_read_as_well(
    files: Path, backbone: Weights, tmp_path: Path
) -> None:
    torch.save(backbone, tmp_path / "vgg.pth")
    both = [
        load_perceptual(file).state_dict() for file in (files, tmp_path / "vgg.pth")
    ]
    assert all(torch.equal(both[0][name], tensor) for name, tensor in both[1].items())


@pytest.mark.slow
def test_files_that_are_something_else(
    files: Path, backbone: Weights, tmp_path: Path
) -> None:
    save_file(
        {**backbone, "features.0.weight": torch.zeros(64, 3, 5, 5)},
        tmp_path / "other.safetensors",
    )
    with pytest.raises(
        UserError, match=r"does not hold the weights of VGG16.*vgg16-397923af\.pth"
    ):
        load_perceptual(tmp_path / "other.safetensors")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(
        UserError, match=r"losses\.lpips_backbone: .*text\.pth cannot be read"
    ):
        load_perceptual(tmp_path / "text.pth")


def test_without_the_package_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=re.escape(f"Run: {install_command(LPIPS, '--no-deps')}")
    ):
        perceptual.heads_file()


class Payload:
    """Would run code where it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_nothing_is_unpickled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"features.0.weight": Payload()}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_perceptual(tmp_path / "vgg.pth")
    assert "unpickled" not in capsys.readouterr().out
