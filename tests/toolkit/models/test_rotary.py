"""The rotary embedding of compiled blocks is that of diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers import transformer_qwenimage

from toolkit.models import rotary

SHAPE_BSHK = (2, 24, 3, 16)


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    angles = torch.rand(SHAPE_BSHK[1], SHAPE_BSHK[3] // 2, generator=draws) * 100
    return torch.randn(SHAPE_BSHK, generator=draws).to(dtype), torch.polar(torch.ones_like(angles), angles)


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


def test_a_compiled_block_has_no_complex_product_and_one_that_is_not_compiled_diffusers_own(monkeypatch) -> None:
    monkeypatch.setattr(transformer_qwenimage, "apply_rotary_emb_qwen", rotary.rotate_complex)
    rotary.use_real_rotation()
    x, freqs = inputs(torch.float32)
    seen: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        seen.append(graph)
        return graph.forward

    function = torch.compile(lambda x: transformer_qwenimage.apply_rotary_emb_qwen(x, freqs, False), backend=backend)
    torch.testing.assert_close(function(x), rotary.rotate_complex(x, freqs, False), rtol=1e-6, atol=1e-6)
    called = {str(node.target) for graph in seen for node in graph.graph.nodes}
    assert any("view_as_real" in name for name in called) and not any("view_as_complex" in name for name in called)
    assert torch.equal(
        transformer_qwenimage.apply_rotary_emb_qwen(x, freqs, False), rotary.rotate_complex(x, freqs, False)
    )
