"""Which attention kernel CUDA uses (the same in the forward pass and where it is recomputed), and attention on CPUs
with bfloat16 matmuls: matmuls of full matrices, some rows of scores at a time.

PyTorch's own kernel for CPUs cuts the work into pieces too small for the processor's bfloat16 units; this one takes
half its time from a few hundred tokens on (benchmarks/README.md). Like that one it keeps scores and probabilities in
float32 until they are multiplied, never holds all of them, and recomputes them in the backward pass.

Shape suffixes: B batch, H heads, S tokens, D channels of a head, R rows (tokens) computed together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from toolkit.models.interface import BlockForward, BlockWrapper

FAST = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
SLOW = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

AVOID_PLANS = "TORCH_CUDNN_SDPA_AVOID_RECOMPILE"
"""The variable with which cuDNN's attention builds a plan for each power of two, not for each number of tokens: every
length of a caption would cost about 400 ms (sgl-project/sglang#4650), forward and backward. It holds for q, k, v that
lie as [B, S, H, D], without a mask, as in our blocks; older PyTorch ignores it (pytorch/pytorch#155958)."""

# PyTorch reads it once, at the first attention of cuDNN, which may be that of a text encoder. A user's 0 stays.
os.environ.setdefault(AVOID_PLANS, "1")
warnings.filterwarnings("ignore", AVOID_PLANS)  # that it is experimental, and where it does not hold


def sdpa_priority(device: torch.device) -> list[SDPBackend]:
    """The backends by preference; the first that supports the inputs is used, whatever PyTorch's own order is.

    cuDNN comes first on Hopper alone: there it does 631 TFLOP/s where flash does 329 (pytorch/pytorch#142132: heads of
    128, 4608 tokens, H100); on Ada it gains nothing, and on Ampere and Blackwell it is slower (huggingface/transformers
    #48163).
    """
    is_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return [*(reversed(FAST) if is_hopper else FAST), *SLOW]


def with_sdpa_priority(device: torch.device) -> BlockWrapper:
    """A wrapper that sets the backend priority of attention to `sdpa_priority`."""
    priority = sdpa_priority(device)

    def wrap(run: BlockForward) -> BlockForward:
        def run_pinned(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            with sdpa_kernel(priority, set_priority=True):
                return run(block, *tensors)

        return run_pinned

    return wrap


def has_fast_kernel(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether one of the `FAST` kernels supports heads of this width on this device; runs it forward and backward."""
    query = torch.zeros((1, 1, 128, head_width), dtype=dtype, device=device, requires_grad=True)
    for backend in FAST:
        try:
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
            return True
        except RuntimeError:  # no such kernel for this GPU or dtype
            continue
    return False


ROWS = 192
"""Rows whose scores fit into the processor's cache."""

FEWEST_TOKENS = 256
"""With fewer, PyTorch's kernel is as fast."""


@cache
def is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this processor multiplies bfloat16 in hardware, and the model computes in it."""
    able = torch.cpu.get_capabilities() if device.type == "cpu" and dtype == torch.bfloat16 else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def cpu_attention_wrapper(run: BlockForward) -> BlockForward:
    """A wrapper: attention inside is `row_attention`."""

    def run_by_rows(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        with _ByRows():
            return run(block, *tensors)

    return run_by_rows


class _ByRows(TorchFunctionMode):
    """Replaces torch's attention by `_attention`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return (_attention if func is scaled_dot_product_attention else func)(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`row_attention` for plain bfloat16 query, key and value of equal shape with enough tokens; else torch's."""
    is_plain = attn_mask is None and scale is None and not (dropout_p or is_causal or enable_gqa)
    if is_plain and _fits(query, key, value):
        return row_attention(query, key, value)
    return scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `row_attention` takes them, and is faster."""
    alike = query.dim() == 4 and query.shape == key.shape == value.shape
    return alike and query.dtype == torch.bfloat16 and query.shape[-2] >= FEWEST_TOKENS


_kernels = torch.library.Library("atelier", "FRAGMENT")
_kernels.define("row_attention(Tensor q, Tensor k, Tensor v) -> Tensor")


def row_attention(q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v, [B, H, S, D] in the dtype of q, k and v, which is bfloat16."""
    return _RowAttention.apply(q_BHSD, k_BHSD, v_BHSD)


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> Tensor:
        ctx.save_for_backward(q_BHSD, k_BHSD, v_BHSD)
        return attention_kernel(q_BHSD, k_BHSD, v_BHSD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BHSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _gradients(g_BHSD, *ctx.saved_tensors)


def _forward(q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> Tensor:
    out_BHSD = _like(q_BHSD)
    with _bfloat16_matmuls():
        for place in _heads(q_BHSD):
            v_SD = v_BHSD[place].contiguous()
            for rows, p_RS in _probabilities(q_BHSD[place], k_BHSD[place]):
                out_BHSD[place][rows] = p_RS.to(v_SD.dtype) @ v_SD
    return out_BHSD


_kernels.impl("row_attention", _forward, "CompositeExplicitAutograd")

attention_kernel = torch.ops.atelier.row_attention.default
"""The forward pass as one operation, so that selective checkpointing can keep its result."""


def _gradients(g_BHSD: Tensor, q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; see Dao et al. 2022, https://arxiv.org/abs/2205.14135, appendix B.2."""
    gradients = _like(q_BHSD), _like(k_BHSD), _like(v_BHSD)
    with _bfloat16_matmuls():
        for place in _heads(q_BHSD):
            of_head = _gradients_of_head(*(t[place] for t in (g_BHSD, q_BHSD, k_BHSD, v_BHSD)))
            for whole, part_SD in zip(gradients, of_head, strict=True):
                whole[place] = part_SD
    return gradients


def _gradients_of_head(g_SD: Tensor, q_SD: Tensor, k_SD: Tensor, v_SD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype, scale = q_SD.dtype, q_SD.shape[-1] ** -0.5
    g_SD, q_SD, k_SD = (t.contiguous() for t in (g_SD, q_SD, k_SD))
    exact_g_SD, exact_v_SD = g_SD.float(), v_SD.float()
    dq_SD = torch.empty_like(q_SD)
    dk_SD, dv_SD = torch.zeros_like(q_SD, dtype=torch.float32), torch.zeros_like(q_SD, dtype=torch.float32)
    for rows, p_RS in _probabilities(q_SD, k_SD):
        dp_RS = exact_g_SD[rows] @ exact_v_SD.t()
        ds_RS = torch._softmax_backward_data(dp_RS, p_RS, -1, p_RS.dtype).mul_(scale).to(dtype)
        dq_SD[rows] = ds_RS @ k_SD
        dk_SD += ds_RS.t() @ q_SD[rows]
        dv_SD += p_RS.to(dtype).t() @ g_SD[rows]
    return dq_SD, dk_SD, dv_SD


def _probabilities(q_SD: Tensor, k_SD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The softmax of the scores [R, S] in float32, `ROWS` rows at a time, and which rows they are."""
    exact_q_SD, exact_k_SD = q_SD.float(), k_SD.float()
    for begin in range(0, len(q_SD), ROWS):
        rows = slice(begin, begin + ROWS)
        # scaled after the product: a scaled query is not exact in bfloat16
        scores_RS = (exact_q_SD[rows] @ exact_k_SD.t()).mul_(q_SD.shape[-1] ** -0.5)
        yield rows, torch.softmax(scores_RS, dim=-1)


def _heads(t_BHSD: Tensor) -> Iterator[tuple[int, int]]:
    return ((item, head) for item in range(t_BHSD.shape[0]) for head in range(t_BHSD.shape[1]))


def _like(t_BHSD: Tensor) -> Tensor:
    """An empty tensor of this shape, with the heads of a token contiguous, as the layers around attention need them."""
    batch, heads, tokens, width = t_BHSD.shape
    return t_BHSD.new_empty((batch, tokens, heads, width)).transpose(1, 2)


@contextmanager
def _bfloat16_matmuls() -> Iterator[None]:
    """Inside the block float32 matmuls round their inputs to bfloat16 and return float32.

    Inputs that were bfloat16 before lose nothing.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set at run time, unknown to torch's stubs
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
