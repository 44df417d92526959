import pytest

from benchmarks import flops
from benchmarks.random_weights import DRAWN_SIZES
from benchmarks.synthetic import work_of


def of_published(references: int) -> flops.Flops:
    return work_of(DRAWN_SIZES["published"], references)


def test_the_published_model_with_one_reference_takes_what_was_counted_by_hand() -> (
    None
):
    """8472 tokens: 13.59 GFLOP each in linear layers, 4 S^2 D in each block's
    attention."""
    forward = of_published(1)
    assert forward.linear == pytest.approx(115.1e12, rel=1e-3)
    assert forward.attention == pytest.approx(52.9e12, rel=1e-3)
    assert forward.model == pytest.approx(389e12, rel=1e-3)


@pytest.mark.parametrize(
    ("level", "tera"),
    [
        ("none", 418),
        ("cheap", 418),
        ("keep_attention", 534),
        ("full", 587),
        ("full_offload", 587),
    ],
)
def test_what_is_computed_again_counts_once_more(level: str, tera: float) -> None:
    assert of_published(1).executed(level) == pytest.approx(tera * 1e12, rel=2e-3)


def test_products_grow_with_tokens_and_attention_with_their_square() -> None:
    one, three = (
        flops.of_forward(tokens, width=16, blocks=3, adapter_weights=100)
        for tokens in (8, 24)
    )
    assert three.linear == 3 * one.linear
    assert three.adapter == 3 * one.adapter == 3 * 800
    assert three.attention == 9 * one.attention
    assert one.executed("none", trains_model=True) - one.executed("none") == one.linear
