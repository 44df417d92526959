"""What autoencoders hold, calculated from their arguments, against modules of diffusers: shapes and saved tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from extensions.compat.fluxflow import sized
from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.autoencoder_sizes import autoencoder_sizes
from extensions.from_scratch.autoencoders import Autoencoder, make_autoencoder
from tests.extensions.from_scratch.conftest import SMALL

QWEN = {
    **SMALL["AutoencoderKLQwenImage"],
    "base_dim": 16,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True],
}
WITH_ATTENTION = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    "norm_num_groups": 8,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "kl": ("AutoencoderKL", sized(32), False),
    "kl with spade": ("AutoencoderKL", sized(32), True),
    "kl with attention": ("AutoencoderKL", WITH_ATTENTION, False),
    "kl without attention": ("AutoencoderKL", {**sized(16), "mid_block_add_attention": False}, False),
    "video": ("AutoencoderKLQwenImage", QWEN, False),
    "video with spade": ("AutoencoderKLQwenImage", QWEN, True),
    "tiny": ("AutoencoderTiny", {f"{half}_block_out_channels": [16] * 4 for half in ("encoder", "decoder")}, False),
}


def made(case: str) -> Autoencoder:
    kind, config, spade = CASES[case]
    section = AutoencoderConfig(class_name=kind, config=config, spade=spade or None)
    return make_autoencoder(section, 0, torch.device("cpu"))


def arguments(case: str) -> dict[str, Any]:
    kind, config, _ = CASES[case]
    return {"_class_name": kind, **config}


def saved_bytes(forward: Callable[[], Any], module: nn.Module) -> int:
    """Bytes that PyTorch saves for the backward pass, each storage once, without weights and casts of them."""
    shapes = {p.shape for p in module.parameters()}
    weights = {p.untyped_storage()._cdata for p in module.parameters()}  # some save a part of theirs
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape not in shapes and tensor.untyped_storage()._cdata not in weights:
            storages.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_the_module(case: str) -> None:
    module, sizes = made(case).module, autoencoder_sizes(arguments(case), 4, CASES[case][2])
    of_encoder = {name for name, _ in module.named_parameters() if name.startswith(("encoder.", "quant_conv."))}
    for half, is_encoder in ((sizes.encoder, True), (sizes.decoder, False)):
        shapes = [p.shape for name, p in module.named_parameters() if (name in of_encoder) == is_encoder]
        assert half.weights == sum(shape.numel() for shape in shapes)
        matrices = Counter(tuple(shape) for shape in shapes if len(shape) > 1 and shape[1:].numel() > 1)
        assert Counter(shape for shape in half.shapes if len(shape) > 1) == matrices


def in_float32(norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.float() for tensor in inputs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("number", "float_norms"), [(4, True), (2, False), (2, True)])
def test_a_backward_pass_needs_what_is_said(case: str, number: int, float_norms: bool) -> None:
    """In float32, with autocast of a CPU, and with that of CUDA, which computes GroupNorm in float32: as here."""
    model, sizes = made(case), autoencoder_sizes(arguments(case), number, CASES[case][2], float_norms)
    if number == 2 and float_norms:
        for norm in model.module.modules():
            if isinstance(norm, nn.GroupNorm):
                norm.register_forward_pre_hook(in_float32)
    pixels = torch.rand(1, 3, 64, 96)
    with ExitStack() as stack:
        if number == 2:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        with torch.no_grad():
            latents = model.encode(pixels)[0]
        encoding = saved_bytes(lambda: model.encode(pixels), model.module)
        decoding = saved_bytes(lambda: model.decode(latents), model.module)
    area = 64 * 96
    assert area * sizes.encoder.kept == pytest.approx(encoding, rel=0.1)
    assert area * sizes.decoder.kept == pytest.approx(decoding, rel=0.1)
