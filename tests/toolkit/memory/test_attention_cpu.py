"""Attention by rows against exact attention, its memory, and where it steps in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from tests.diffusers_reference import open_tiny
from toolkit.config.train import CompileConfig
from toolkit.data.types import PromptEmbeds
from toolkit.memory import attention as module
from toolkit.memory import block_runner
from toolkit.memory.attention import FEWEST_TOKENS, ROWS, attention_kernel, cpu_attention_wrapper, row_attention
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.checkpointing import checkpoint_wrapper

BATCH, HEADS, WIDTH = 2, 3, 32


def inputs(tokens: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    """q, k, v and a gradient, laid out as the layers of a block lay them out; scores up to 15."""
    random = torch.Generator().manual_seed(tokens)
    shape = (BATCH, tokens, HEADS, WIDTH)
    return [torch.randn(shape, generator=random).mul(1.5).to(dtype).transpose(1, 2) for _ in range(4)]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def gradients(attention, q, k, v, g) -> list[torch.Tensor]:
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    out = attention(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), g)]


class Seen(TorchDispatchMode):
    """How often each operation is computed, and the largest matrix among the results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls[func] += 1
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("tokens", [1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 5])
def test_output_and_gradients_are_those_of_exact_attention(tokens: int) -> None:
    found = gradients(row_attention, *inputs(tokens))
    exact = gradients(scaled_dot_product_attention, *(t.double() for t in inputs(tokens)))
    torchs = gradients(scaled_dot_product_attention, *inputs(tokens))
    for ours, theirs, true in zip(found, torchs, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        if true.norm() > 1e-6:  # of one token q and k have no gradient
            assert error(ours, true) < 1.5 * error(theirs, true) + 1e-4
            assert error(ours, true) < 4e-3


def test_all_scores_are_never_there_at_once() -> None:
    tokens = 6 * ROWS
    with Seen() as seen:
        gradients(row_attention, *inputs(tokens))
    assert seen.largest <= max(ROWS * tokens, BATCH * HEADS * WIDTH * tokens) < tokens * tokens


def test_the_output_lies_as_the_next_layer_reads_it() -> None:
    out_BHSD = row_attention(*inputs(ROWS)[:3])
    assert out_BHSD.transpose(1, 2).is_contiguous()


def test_the_precision_of_other_products_is_left_alone() -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    q, k, v, _ = inputs(8)
    with pytest.raises(RuntimeError):
        row_attention(q, k[..., :-1], v)
    row_attention(q, k, v)
    assert setting.fp32_precision == before


# ------------------------------------------------------------ within a block


def calls_of(run, *tensors, grad: bool = True) -> Counter:
    with Seen() as seen, torch.set_grad_enabled(grad):
        run(None, *tensors)
    return seen.calls


def attend(block, q, k, v, **given) -> tuple[torch.Tensor]:
    return (scaled_dot_product_attention(q, k, v, **given),)


def test_it_steps_in_from_a_few_hundred_tokens_on() -> None:
    assert calls_of(cpu_attention_wrapper(attend), *inputs(FEWEST_TOKENS)[:3])[attention_kernel] == 1
    assert calls_of(cpu_attention_wrapper(attend), *inputs(FEWEST_TOKENS)[:3], grad=False)[attention_kernel] == 1
    assert calls_of(cpu_attention_wrapper(attend), *inputs(FEWEST_TOKENS - 1)[:3])[attention_kernel] == 0
    assert calls_of(attend, *inputs(FEWEST_TOKENS)[:3])[attention_kernel] == 0


@pytest.mark.parametrize("given", [{"is_causal": True}, {"scale": 0.5}, {"dropout_p": 0.1}, {"attn_mask": True}])
def test_what_is_more_than_plain_attention_stays_with_torch(given: dict) -> None:
    if "attn_mask" in given:
        given = {"attn_mask": torch.ones(FEWEST_TOKENS, FEWEST_TOKENS, dtype=torch.bool)}
    wrapped = cpu_attention_wrapper(lambda block, *tensors: attend(block, *tensors, **given))
    assert calls_of(wrapped, *inputs(FEWEST_TOKENS)[:3])[attention_kernel] == 0


def test_other_shapes_and_number_types_stay_with_torch() -> None:
    """A rounded float32, or keys of another stream, would be wrong without a word."""
    q, k, v, g = inputs(2 * FEWEST_TOKENS)
    exact = [t.float() for t in (q, k, v)]
    more = q, k[:, :, :FEWEST_TOKENS], v[:, :, :FEWEST_TOKENS]
    for tensors in (exact, more, (q[0], k[0], v[0])):
        assert calls_of(cpu_attention_wrapper(attend), *tensors)[attention_kernel] == 0
    run = cpu_attention_wrapper(attend)
    found = gradients(lambda *tensors: run(None, *tensors)[0], *more, g)
    expected = gradients(scaled_dot_product_attention, *more, g)
    assert all(torch.equal(ours, plain) for ours, plain in zip(found, expected, strict=True))


@pytest.mark.parametrize(("level", "times"), [("none", 1), ("cheap", 1), ("keep_attention", 1), ("full", 2)])
def test_checkpointing_keeps_it_as_any_attention(level: str, times: int) -> None:
    q, k, v, g = inputs(FEWEST_TOKENS)
    expected = gradients(row_attention, q, k, v, g)
    run = checkpoint_wrapper(level)(
        cpu_attention_wrapper(lambda block, stream, *tensors: attend(block, *(t * 1 for t in tensors)))
    )
    with Seen() as seen:
        found = gradients(lambda *tensors: run(None, torch.ones(1, 1, 1), *tensors)[0], q, k, v, g)
    assert seen.calls[attention_kernel] == times
    assert all(torch.equal(ours, plain) for ours, plain in zip(found, expected, strict=True))


def test_a_model_in_bfloat16_computes_by_rows_and_the_same(tiny_model: Path, monkeypatch) -> None:
    random = torch.Generator().manual_seed(1)
    x_t_BCHW = torch.randn((1, 16, 32, 48), generator=random)
    velocity = []
    for able in (False, True):
        monkeypatch.setattr(block_runner, "is_faster", lambda device, dtype, able=able: able)
        model = open_tiny(tiny_model, dtype=torch.bfloat16)
        prompts = PromptEmbeds.stack([torch.ones(7, model.network_module.config.joint_attention_dim)])
        BlockRunner(model, torch.device("cpu"), torch.bfloat16)
        with Seen() as seen, torch.no_grad():
            velocity.append(model.predict_velocity(x_t_BCHW, torch.tensor([0.5]), prompts, [()]))
        assert seen.calls[attention_kernel] == (len(model.blocks()) if able else 0)
    assert 0 < error(velocity[1], velocity[0].double()) < 0.01


def test_compiled_blocks_keep_the_kernel_of_torch(tiny_model: Path, monkeypatch) -> None:
    monkeypatch.setattr(block_runner, "is_faster", lambda device, dtype: True)
    made = BlockRunner(
        open_tiny(tiny_model),
        torch.device("cpu"),
        torch.bfloat16,
        compile_settings=CompileConfig(enabled=True, backend="eager"),
    )
    assert made._kernel == []


@pytest.mark.parametrize(
    ("device", "dtype", "able", "expected"),
    [
        ("cpu", torch.bfloat16, {"avx512_bf16": True}, True),
        ("cpu", torch.bfloat16, {"amx_bf16": True}, True),
        ("cpu", torch.bfloat16, {"avx2": True}, False),
        ("cpu", torch.float32, {"avx512_bf16": True}, False),
        ("cuda", torch.bfloat16, {"avx512_bf16": True}, False),
    ],
)
def test_it_is_for_processors_that_multiply_bfloat16(monkeypatch, device, dtype, able, expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    module.is_faster.cache_clear()
    assert module.is_faster(torch.device(device), dtype) is expected
    module.is_faster.cache_clear()
