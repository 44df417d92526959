"""Autoencoders of diffusers: made, loaded, measured, and what diffusers reads of what
is saved."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.autoencoders import (
    Autoencoder,
    load_autoencoder,
    make_autoencoder,
    measure_latents,
    write_autoencoder,
)
from tests.extensions.from_scratch.conftest import SMALL
from toolkit.errors import RunError, UserError

CPU = torch.device("cpu")


def section(kind: str, **changes: object) -> AutoencoderConfig:
    return AutoencoderConfig(class_name=kind, config={**SMALL[kind], **changes})


def made(kind: str) -> Autoencoder:
    return make_autoencoder(section(kind), 0, CPU)


def pixels(count: int = 2) -> torch.Tensor:
    return (
        torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )


def as_in_diffusers(model: Autoencoder) -> torch.nn.Module:
    """The same weights in a module that only diffusers has touched."""
    kind = type(model.module)
    module = kind.from_config(dict(model.module.config))
    module.load_state_dict(model.module.state_dict())
    return module


@pytest.mark.parametrize("kind", SMALL)
def test_encode_and_decode_are_those_of_diffusers(kind: str) -> None:
    model, x = made(kind), pixels()
    mean, logvar = model.encode(x)
    scale = section(kind).latent_scale()
    assert mean.shape == (2, 4, 32 // scale, 48 // scale)
    assert (logvar is None) == (kind == "AutoencoderTiny")
    frames = x[:, :, None] if kind == "AutoencoderKLQwenImage" else x
    with torch.no_grad():
        theirs = as_in_diffusers(model)(frames, return_dict=False)[0].view_as(x)
    # diffusers rounds its latents to 8 bits in between
    rounding = 5e-3 if kind == "AutoencoderTiny" else 1e-5
    torch.testing.assert_close(
        model.decode(mean).clamp(-1, 1), theirs.clamp(-1, 1), rtol=1e-4, atol=rounding
    )


def test_one_frame_is_convolved_by_the_last_tap_alone_with_the_gradients_of_diffusers() -> (
    None
):
    ours = made("AutoencoderKLQwenImage")
    theirs = as_in_diffusers(ours)
    x = pixels()
    ours.decode(ours.encode(x)[0]).square().mean().backward()
    latents = theirs.encode(x[:, :, None]).latent_dist.mean
    theirs.decoder(theirs.post_quant_conv(latents)).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.module.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-3, atol=1e-6
        )
        if parameter.ndim == 5:
            assert (
                parameter.grad[:, :, -1].any() and not parameter.grad[:, :, :-1].any()
            )
    layers = {type(layer).__name__ for layer in ours.module.modules()}
    assert "OneFrameConv3d" in layers and "QwenImageCausalConv3d" not in layers
    assert "OneFrameConv3d" not in {type(layer).__name__ for layer in theirs.modules()}


def test_random_weights_have_the_variance_of_a_convolution_over_one_frame() -> None:
    layer = made("AutoencoderKLQwenImage").module.encoder.conv_in
    # of torch's uniform weights: of 3 channels and 3 x 3 pixels, without the 3 frames
    bound = (3 * 3 * 3) ** -0.5
    assert not layer.weight[:, :, :-1].any()
    assert 0.9 * bound < layer.weight[:, :, -1].abs().max() <= bound


def test_several_frames_are_those_of_diffusers() -> None:
    ours = made("AutoencoderKLQwenImage")
    with torch.no_grad():
        for parameter in ours.module.parameters():
            if parameter.ndim == 5:
                # random weights have one tap along time
                parameter[:, :, :-1] = 0.3 * parameter[:, :, -1:]
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            ours.module(video).sample, as_in_diffusers(ours)(video).sample
        )


def test_what_is_decoded_has_a_gradient_outside_of_the_range_too() -> None:
    model = made("AutoencoderKLQwenImage")
    with torch.no_grad():
        model.module.decoder.conv_out.bias.fill_(3)
    output = model.decode(torch.zeros(1, 4, 8, 8))
    output.sum().backward()
    assert output.min() > 1 and model.module.decoder.conv_out.bias.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderKLQwenImage"])
def test_random_weights_begin_with_little_noise_and_depend_on_the_seed(
    kind: str,
) -> None:
    _, logvar = made(kind).encode(pixels())
    assert logvar is not None and abs(float(logvar.detach().mean()) + 4) < 0.5
    again, other = (
        make_autoencoder(section(kind), seed, CPU).module.state_dict()
        for seed in (0, 1)
    )
    same = made(kind).module.state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in again.items())
    assert not all(torch.equal(same[name], tensor) for name, tensor in other.items())


@pytest.mark.parametrize("kind", SMALL)
def test_a_saved_one_is_loaded_by_diffusers_and_again(
    kind: str, tmp_path: Path
) -> None:
    model = made(kind)
    write_autoencoder(tmp_path, model.module.state_dict(), model.config())
    loaded = getattr(diffusers, kind).from_pretrained(tmp_path)
    again = make_autoencoder(
        AutoencoderConfig(name_or_path=str(tmp_path)), 9, CPU
    ).module
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) and torch.equal(
            again.state_dict()[name], tensor
        )


@pytest.mark.parametrize("kind", SMALL)
def test_sampled_latents_normalised_by_what_is_written_have_mean_0_and_deviation_1(
    kind: str,
) -> None:
    """As diffusers' pipelines normalise them: by channel, or by one factor and shift.
    Many samples stand for the distribution; that of random weights with
    `initial_logvar` 0 is mostly noise."""
    model = make_autoencoder(
        AutoencoderConfig(class_name=kind, config=SMALL[kind], initial_logvar=0.0),
        0,
        CPU,
    )
    found = model.normalisation(
        *measure_latents(model.encode, [pixels(1), pixels(2)[1:]])
    )
    mean, logvar = (
        None if part is None else part.detach().double()
        for part in model.encode(pixels(2))
    )
    generator = torch.Generator().manual_seed(0)
    noises = (
        torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        for _ in range(500)
    )
    latents = torch.cat([model.sample(mean, logvar, noise) for noise in noises])
    if "latents_mean" in found:
        mean, std = (
            torch.tensor(found[key]).view(1, -1, 1, 1)
            for key in ("latents_mean", "latents_std")
        )
        normalised = (latents - mean) / std
        torch.testing.assert_close(
            normalised.std((0, 2, 3), correction=0),
            torch.ones(4).double(),
            rtol=0.01,
            atol=0,
        )
    else:
        normalised = (latents - found["shift_factor"]) * found["scaling_factor"]
    assert abs(float(normalised.mean())) < 0.01 and float(
        normalised.std(correction=0)
    ) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", SMALL)
def test_a_loaded_one_normalises_by_what_is_written_and_back(
    kind: str, tmp_path: Path
) -> None:
    model = made(kind)
    latents = model.encode(pixels())[0].detach()
    statistics = measure_latents(model.encode, [pixels()])
    weights = {
        name: tensor.clone() for name, tensor in model.module.state_dict().items()
    }
    write_autoencoder(
        tmp_path, weights, model.config() | model.normalisation(*statistics)
    )
    loaded = load_autoencoder(tmp_path)
    normal = loaded.normalised(latents)
    torch.testing.assert_close(loaded.unnormalised(normal), latents)
    assert normal.mean().abs() < 1e-4


def test_a_dead_channel_is_told() -> None:
    with pytest.raises(RunError, match="constant or not finite"):
        measure_latents(lambda x: (torch.zeros(1, 4, 2, 2), None), [pixels(1)])


def test_arguments_are_those_of_the_class() -> None:
    with pytest.raises(
        UserError,
        match=r"model\.config\.latent_chanels: .*Did you mean 'latent_channels'",
    ):
        make_autoencoder(section("AutoencoderKL", latent_chanels=8), 0, CPU)
    with pytest.raises(
        UserError, match=r"AutoencoderKL cannot be made of it: .*DownBlock"
    ):
        make_autoencoder(
            section("AutoencoderKL", down_block_types=["DownBlock"] * 2), 0, CPU
        )


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    model = made("AutoencoderKL")
    write_autoencoder(tmp_path, model.module.state_dict(), model.config())
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match=str(tmp_path)):
        make_autoencoder(AutoencoderConfig(name_or_path=str(tmp_path)), 0, CPU)
