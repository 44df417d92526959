import pytest

from benchmarks import flops
from benchmarks.random_weights import DRAWN_SIZES
from benchmarks.synthetic import RANK, ModelSize


def of_published(references: int) -> flops.Flops:
    return flops.of_forward(DRAWN_SIZES["published"], references, RANK)


def test_the_published_model_with_one_reference_takes_what_was_counted_by_hand() -> None:
    """8472 tokens: 13.59 GFLOP each in linear layers, 4 S^2 D in each block's attention."""
    forward = of_published(1)
    assert forward.linear == pytest.approx(115.1e12, rel=1e-3)
    assert forward.attention == pytest.approx(52.9e12, rel=1e-3)
    assert forward.model == pytest.approx(389e12, rel=1e-3)


@pytest.mark.parametrize(
    ("level", "tera"), [("none", 418), ("cheap", 418), ("keep_attention", 534), ("full", 587), ("full_offload", 587)]
)
def test_what_is_computed_again_counts_once_more(level: str, tera: float) -> None:
    assert of_published(1).executed(level) == pytest.approx(tera * 1e12, rel=2e-3)


def test_products_grow_with_tokens_and_attention_with_their_square() -> None:
    size = ModelSize(heads=2, head_dim=8, layers=3, rope_axes=(2, 2, 4), text_width=8, latent_side=4, text_tokens=4)
    one, three = (flops.of_forward(size, references, rank=2) for references in (0, 4))  # 8 and 24 tokens
    assert three.linear == 3 * one.linear
    assert three.adapter == 3 * one.adapter
    assert three.attention == 9 * one.attention
