"""What a sampling run keeps between its steps."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from tests.diffusers_21 import open_21
from toolkit.contracts.data import PromptEmbeds
from toolkit.models.qwen_image21.prompts import SLOTS

LEVELS = (1.0, 0.6, 0.1)
STEPS = tuple(torch.tensor([level, level]) for level in LEVELS)


@pytest.fixture
def inputs(unit_gain_21: Path) -> tuple:
    """A model; noise, prompts of unlike lengths and references of two items, of which
    one has none."""
    model = open_21(unit_gain_21)
    prompts = PromptEmbeds.stack(
        [model.encode_prompt(text, ()) for text in ("a cat", "a much longer caption")]
    )
    prompts.extra[SLOTS][0, :2] = torch.tensor([1, 3])
    random = torch.Generator().manual_seed(1)
    references = [[torch.randn(16, 4, side, generator=random) for side in (6, 4)], []]
    return model, torch.randn(2, 16, 4, 4, generator=random), prompts, references


@torch.no_grad()
def test_a_sampling_run_computes_text_and_references_once(inputs) -> None:
    model, x_BCHW, prompts, references = inputs
    anew = [model.predict_velocity(x_BCHW, t_B, prompts, references) for t_B in STEPS]
    predict = model.sampling_steps(prompts, references)
    tokens: list[int] = []
    hook = model.blocks()[0].img_norm1.register_forward_pre_hook(
        lambda _, given: tokens.append(given[0].shape[1])
    )
    kept = [predict(x_BCHW, t_B) for t_B in STEPS]
    hook.remove()
    torch.testing.assert_close(kept, anew, rtol=0, atol=1e-5)
    first, second = prompts.lengths[0] + 24 + 16 + 16, prompts.lengths[1] + 16
    assert tokens == [first, second, 16, 16, 16, 16]
    torch.testing.assert_close(
        model.predict_velocity(x_BCHW, STEPS[0], prompts, references), anew[0]
    )


@torch.no_grad()
def test_text_behind_an_image_sees_no_later_text_where_flash_attention_computes_it(
    inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a fast GPU; the stand-in for its kernel lines `is_causal` up with the last
    key, and returns as many things as it."""
    model, x_BCHW, prompts, references = inputs
    asked: list[bool] = []

    def flash(q_BHLE, k_BHPE, v_BHPE, is_causal: bool) -> tuple[torch.Tensor, ...]:
        asked.append(is_causal)
        tokens, keys = q_BHLE.shape[2], k_BHPE.shape[2]
        mask_LP = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)
        out_BHLE = torch.nn.functional.scaled_dot_product_attention(
            q_BHLE, k_BHPE, v_BHPE, attn_mask=mask_LP if is_causal else None
        )
        return out_BHLE, q_BHLE.logsumexp(-1), torch.zeros(1), torch.zeros(1)

    masked = model.predict_velocity(x_BCHW, STEPS[1], prompts, references)
    kernel = "_scaled_dot_product_flash_attention"
    monkeypatch.setattr(torch.ops.aten, kernel, flash)
    monkeypatch.setattr(
        torch.backends.cuda, "can_use_flash_attention", lambda *asked: True
    )
    by_kernel = model.predict_velocity(x_BCHW, STEPS[1], prompts, references)
    torch.testing.assert_close(by_kernel, masked, rtol=1e-5, atol=1e-5)
    assert asked


@torch.no_grad()
def test_what_a_sampling_run_kept_is_freed_with_it(inputs) -> None:
    model, x_BCHW, prompts, references = inputs
    predict = model.sampling_steps(prompts, references)
    predict(x_BCHW, STEPS[0])
    kept = next(
        cell.cell_contents
        for cell in predict.__wrapped__.__closure__
        if type(cell.cell_contents) is dict
    )
    found = [
        weakref.ref(tensor)
        for pairs in kept.values()
        for pair in pairs
        for tensor in pair
    ]
    assert len(found) == 2 * 2 * len(model.blocks())
    del kept, predict
    gc.collect()
    assert not any(one() is not None for one in found)


@torch.no_grad()
def test_nothing_is_kept_where_it_would_take_more_than_half_of_the_free_memory(
    inputs, monkeypatch
) -> None:
    model, x_BCHW, prompts, references = inputs
    # of the second item alone
    free = (
        4 * len(model.blocks()) * (prompts.embeds_BLD.shape[1]) * model.hidden_size * 4
    )
    monkeypatch.setattr(
        "toolkit.models.qwen_image21.model.free_memory", lambda device: free
    )
    predict = model.sampling_steps(prompts, references)
    tokens: list[int] = []
    model.blocks()[0].img_norm1.register_forward_pre_hook(
        lambda _, given: tokens.append(given[0].shape[1])
    )
    for t_B in STEPS[:2]:
        predict(x_BCHW, t_B)
    first, second = prompts.lengths[0] + 24 + 16 + 16, prompts.lengths[1] + 16
    assert tokens == [first, second, first, 16]
