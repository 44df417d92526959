"""A VAE in bands of rows makes the pixels and latents of the whole image, with a
fraction of the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.live_bytes import LiveBytes
from tests.measured import at_least, at_most
from toolkit.models import vae_bands
from toolkit.models.folder_family import WHOLE_VAE
from toolkit.models.qwen_family import QwenFamily
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image.loading import expect_one_frame
from toolkit.models.qwen_image21.family import FAMILY as FAMILY_21
from toolkit.models.vae_bands import BandedVae, NotLocal, WholeVae, in_bands

SMALL = {
    "base_dim": 8,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
KINDS: dict[str, tuple[Any, dict, int, int, int]] = {
    "qwen": (AutoencoderKLQwenImage, SMALL | {"dim_mult": [1, 2, 4, 4]}, 8, 3, 4),
    "qwen 21": (
        AutoencoderKLQwenImage21,
        SMALL | {"dim_mult": [1, 2, 4, 8, 8], "decoder_base_dim": 12},
        16,
        4,
        4,
    ),
}
"""Class, config, pixels of a latent, channels of images and latents."""


@pytest.fixture(params=KINDS)
def kind(request) -> tuple[Any, int, int, int]:
    cls, config, scale, channels, latent_channels = KINDS[request.param]
    torch.manual_seed(0)
    vae = cls(**config).eval().requires_grad_(False)
    for parameter in vae.parameters():  # norms that are not all ones
        parameter.add_(0.1 * torch.randn_like(parameter))
    return expect_one_frame(vae), scale, channels, latent_channels


@pytest.mark.parametrize(
    ("size", "band_pixels"), [((48, 80), 1), ((208, 16), 400), ((112, 80), 2000)]
)
@torch.no_grad()
def test_bands_give_the_numbers_of_the_whole_image(
    kind, size: tuple[int, int], band_pixels: int, monkeypatch
) -> None:
    vae, scale, channels, latent_channels = kind
    monkeypatch.setattr(vae_bands, "BAND_PIXELS", band_pixels)
    monkeypatch.setattr(vae_bands, "QUERIES", 7)
    height, width = size
    pixels_BPFHW = torch.rand(2, channels, 1, height, width) * 2 - 1
    latents_BCFHW = torch.randn(2, latent_channels, 1, height // scale, width // scale)
    banded = BandedVae(vae)
    expected_BCFHW = vae.encode(pixels_BPFHW).latent_dist.parameters
    found_BCFHW = banded.encode(pixels_BPFHW)
    assert found_BCFHW.shape == expected_BCFHW.shape
    at_most(
        "encoded, largest difference",
        (found_BCFHW - expected_BCFHW).abs().max().item(),
        1e-5,
    )
    expected_BPFHW = vae.decode(latents_BCFHW, return_dict=False)[0]
    assert expected_BPFHW.std() > 0.05, "not all at the ends of the range"
    at_most(
        "decoded, largest difference",
        (banded.decode(latents_BCFHW) - expected_BPFHW).abs().max().item(),
        1e-5,
    )


def test_other_layers_are_not_taken_for_local_ones(kind) -> None:
    vae, *_ = kind
    assert isinstance(in_bands(vae), BandedVae)
    vae.decoder.norm_out = torch.nn.GroupNorm(1, 8)
    with pytest.raises(NotLocal, match="GroupNorm"):
        BandedVae(vae)
    assert isinstance(in_bands(vae), WholeVae)


@torch.no_grad()
def elements_of(vae: Any, work: Any) -> dict[str, float]:
    """Elements that are in memory at most, by phase, for an image of SIDE x SIDE.
    work: the VAE, or one in bands."""
    live, channels, latents = (
        LiveBytes(),
        vae.encoder.conv_in.in_channels,
        vae.config.z_dim,
    )
    scale = 2 ** (len(vae.config.dim_mult) - 1)
    taken = {}
    with live:
        live.move(vae.state_dict().values(), to_host=False)  # not counted below
        for phase, run, shape in (
            ("encoding", work.encode, (1, channels, 1, SIDE, SIDE)),
            ("decoding", work.decode, (1, latents, 1, SIDE // scale, SIDE // scale)),
        ):
            live.phase(phase)
            before = live.device
            run(torch.empty(shape))
            taken[phase] = (live.phases[phase].device - before) / 4
    return taken


SIDE = 512
"""Of an image of four bands."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "cls"),
    [(FAMILY, AutoencoderKLQwenImage), (FAMILY_21, AutoencoderKLQwenImage21)],
    ids=["qwen", "qwen 21"],
)
def test_the_memory_is_planned_and_a_fraction(family: QwenFamily, cls: Any) -> None:
    """With the widths of the published models."""
    facts = family.footprint(Path("not here"))
    with FakeTensorMode():
        vae = expect_one_frame(cls())
        whole, banded = elements_of(vae, vae), elements_of(vae, BandedVae(vae))
    for phase, planned in (("encoding", facts.encoding), ("decoding", facts.decoding)):
        share = banded[phase] / planned(SIDE**2)
        at_most(f"{phase}, taken / planned", share, 1.0)
        at_least(f"{phase}, taken / planned", share, 0.6)
        at_most(f"{phase}, in bands / whole", banded[phase] / whole[phase], 0.2)


@pytest.mark.parametrize("band_pixels", [1, 10**9])
@torch.no_grad()
def test_an_odd_row_at_the_end_is_left_out_as_in_the_whole_image(
    band_pixels: int, monkeypatch
) -> None:
    """33 rows become 17, 9, and 5: each time with a row of zeros, or without the last
    one."""
    monkeypatch.setattr(vae_bands, "BAND_PIXELS", band_pixels)
    vae = expect_one_frame(
        AutoencoderKLQwenImage(**SMALL, dim_mult=[1, 2, 4, 4]).eval()
    )
    for height, width in ((33, 47), (17, 16), (30, 9)):
        pixels_BPFHW = torch.rand(1, 3, 1, height, width) * 2 - 1
        expected_BCFHW = vae.encode(pixels_BPFHW).latent_dist.parameters
        found_BCFHW = BandedVae(vae).encode(pixels_BPFHW)
        assert found_BCFHW.shape == expected_BCFHW.shape
        at_most(
            "encoded, largest difference",
            (found_BCFHW - expected_BCFHW).abs().max().item(),
            1e-5,
        )


@pytest.mark.slow
@torch.no_grad()
def test_the_memory_of_a_whole_vae_is_planned() -> None:
    """With the widths of FLUX's, which several families have."""
    live, images = LiveBytes(), {}
    with FakeTensorMode(), live:
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=16,
        )
        live.move(vae.state_dict().values(), to_host=False)
        for phase, run, shape in (
            ("encoding", vae.encode, (1, 3, SIDE, SIDE)),
            ("decoding", vae.decode, (1, 16, SIDE // 8, SIDE // 8)),
        ):
            live.phase(phase)
            before = live.device
            run(torch.empty(shape))
            taken = (live.phases[phase].device - before) / 4
            images[phase] = taken / (SIDE**2 * 128)
    for phase, planned in zip(images, WHOLE_VAE, strict=False):
        at_most(f"{phase}, taken / planned", images[phase] / planned, 1.0)
        at_least(f"{phase}, taken / planned", images[phase] / planned, 0.95)
