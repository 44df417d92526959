"""The patch discriminator: its size, its spectral norm, and when that changes."""

from __future__ import annotations

import pytest
import torch

from extensions.from_scratch.discriminator import PatchDiscriminator


def largest_singular_values(network: PatchDiscriminator) -> list[float]:
    return [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in network.layers]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_image_gives_one_judgement(layers: int) -> None:
    network, side = PatchDiscriminator(4, layers, 0), PatchDiscriminator.smallest(layers)
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 1)
    with pytest.raises(RuntimeError):
        network(torch.zeros(2, 3, side - 1, side))


def test_channels_decide_its_width_and_the_seed_its_weights() -> None:
    weights = [layer.weight for layer in PatchDiscriminator(4, 5, 0).layers]
    assert [weight.shape[0] for weight in weights] == [4, 8, 16, 32, 32, 32, 1]
    again, other = PatchDiscriminator(4, 5, 0), PatchDiscriminator(4, 5, 1)
    assert torch.equal(again.layers[0].weight, weights[0]) and not torch.equal(other.layers[0].weight, weights[0])


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


def test_its_vectors_change_once_per_step_that_is_taken_and_never_in_a_forward_pass() -> None:
    network = PatchDiscriminator(4, 2, 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {name: vector.clone() for name, vector in network.vectors().items()}
    network(torch.randn(1, 3, 16, 16))
    network.after_step(torch.tensor(False))
    assert all(torch.equal(vector, before[name]) for name, vector in network.vectors().items())
    network.after_step(torch.tensor(True))
    assert not all(torch.equal(vector, before[name]) for name, vector in network.vectors().items())
