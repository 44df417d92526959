import pytest
import torch

from tests.golden_tables import golden
from toolkit.models.qwen_image.forward import image_shapes, pack, unpack

CASES = golden("edit_train_packing")


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_layout_of_a_training_step_is_that_of_ai_toolkit(case: dict) -> None:
    sizes = [(case["target_width"], case["target_height"]), *case["vae_sizes_wh"]]
    latents = [torch.zeros(1, 16, height // 8, width // 8) for width, height in sizes]
    tokens = torch.cat([pack(latent) for latent in latents], dim=1)
    assert [[list(shape) for shape in image_shapes(latents)]] * case["batch_size"] == case["img_shapes"]
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
