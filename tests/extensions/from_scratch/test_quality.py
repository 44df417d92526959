"""PSNR and SSIM by hand, and at their ends."""

from __future__ import annotations

import pytest
import torch

from extensions.from_scratch.quality import psnr, ssim


def test_psnr_of_a_known_difference() -> None:
    target = torch.zeros(1, 3, 16, 16)
    assert psnr(target + 0.2, target) == pytest.approx(20.0, abs=1e-4)  # 10 log10(2^2 / 0.2^2)
    assert psnr(target, target) == float("inf")


def test_ssim_is_1_for_equal_images_and_falls_with_noise() -> None:
    target = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    found = [ssim(target + std * noise, target) for std in (0.0, 0.1, 0.5)]
    assert found[0] == pytest.approx(1.0) and 1 > found[1] > 0.8 > found[2] > 0


def test_ssim_of_flat_images_is_their_luminance_term() -> None:
    x, y = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.25)
    c1 = 0.02**2
    assert ssim(x, y) == pytest.approx((2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1))
    assert ssim(x[..., :4], x[..., :4]) == pytest.approx(1.0)  # smaller than the window
