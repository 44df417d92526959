from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers import transformer_qwenimage

from tests.golden_tables import golden
from toolkit.models.qwen_image import forward as rotary
from toolkit.models.qwen_image.forward import image_shapes, pack, unpack

CASES = golden("edit_train_packing")


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_layout_of_a_training_step_is_that_of_ai_toolkit(case: dict) -> None:
    sizes = [(case["target_width"], case["target_height"]), *case["vae_sizes_wh"]]
    latents = [torch.zeros(1, 16, height // 8, width // 8) for width, height in sizes]
    tokens = torch.cat([pack(latent) for latent in latents], dim=1)
    assert [[list(shape) for shape in image_shapes(latents)]] * case[
        "batch_size"
    ] == case["img_shapes"]
    assert tokens.shape == (1, case["sequence_length"], case["channels"])
    assert pack(latents[0]).shape[1] == case["target_tokens"]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_tokens_hold_the_latents_in_the_order_of_ai_toolkit(case: dict) -> None:
    height, width = case["target_height"] // 8, case["target_width"] // 8
    indices_1CHW = torch.arange(16 * height * width).reshape(1, 16, height, width)
    tokens_1SP = pack(indices_1CHW)
    assert tokens_1SP[0, 0, :8].tolist() == case["first_token_latent_indices"]
    assert tokens_1SP[0, 1, :8].tolist() == case["second_token_latent_indices"]
    assert tokens_1SP[0, -1, :8].tolist() == case["last_target_token_latent_indices"]


def test_unpack_is_the_inverse() -> None:
    latents_BCHW = torch.arange(2 * 16 * 4 * 6).reshape(2, 16, 4, 6)
    assert torch.equal(unpack(pack(latents_BCHW), 4, 6), latents_BCHW)


# ------------------------------------------------------------ rotary positions


SHAPE_BSHK = (2, 24, 3, 16)


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    angles = torch.rand(SHAPE_BSHK[1], SHAPE_BSHK[3] // 2, generator=draws) * 100
    return torch.randn(SHAPE_BSHK, generator=draws).to(dtype), torch.polar(
        torch.ones_like(angles), angles
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_complex_product_forward_and_backward(dtype: torch.dtype) -> None:
    x, freqs = inputs(dtype)
    found = []
    for function in (
        lambda x: rotary.rotate_complex(x, freqs, use_real=False),
        lambda x: rotary.rotate_real(x, freqs),
    ):
        leaf = x.clone().requires_grad_()
        output = function(leaf)
        output.float().square().sum().backward()
        found.append((output.detach(), leaf.grad))
    (theirs, their_gradient), (ours, our_gradient) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-5, atol=1e-5)


def test_a_compiled_block_has_no_complex_product_and_one_that_is_not_compiled_diffusers_own(
    monkeypatch,
) -> None:
    monkeypatch.setattr(
        transformer_qwenimage, "apply_rotary_emb_qwen", rotary.rotate_complex
    )
    rotary.use_real_rotation()
    x, freqs = inputs(torch.float32)
    seen: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        seen.append(graph)
        return graph.forward

    function = torch.compile(
        lambda x: transformer_qwenimage.apply_rotary_emb_qwen(x, freqs, False),
        backend=backend,
    )
    torch.testing.assert_close(
        function(x), rotary.rotate_complex(x, freqs, False), rtol=1e-6, atol=1e-6
    )
    called = {str(node.target) for graph in seen for node in graph.graph.nodes}
    assert any("view_as_real" in name for name in called) and not any(
        "view_as_complex" in name for name in called
    )
    assert torch.equal(
        transformer_qwenimage.apply_rotary_emb_qwen(x, freqs, False),
        rotary.rotate_complex(x, freqs, False),
    )
