"""The table of cards: names, sizes, and figures against what NVIDIA publishes of the
same cards in other units."""

from __future__ import annotations

import pytest

from toolkit.errors import UserError
from toolkit.plan.cards import ASSUMED, CARDS, asked_card, assumed_card, card_here


@pytest.mark.parametrize(
    ("cuda_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("A100-SXM4-80GB", "A100 80 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80 GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
        # Other cards with nearly the same name.
        ("NVIDIA GeForce RTX 4070 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("Quadro RTX 6000", None),
        ("", None),
    ],
)
def test_a_card_is_known_by_the_whole_name_that_the_driver_gives(
    cuda_name: str, name: str | None
) -> None:
    found = card_here(cuda_name)
    assert (found and found.name) == name


AI_TOPS = {
    "RTX 4060": (242, 8), "RTX 4060 Ti": (353, 8), "RTX 4070": (466, 8), "RTX 4070 SUPER": (568, 8),
    "RTX 4070 Ti SUPER": (706, 8), "RTX 4080": (780, 8), "RTX 4080 SUPER": (836, 8), "RTX 4090": (1321, 8),
    "RTX 5060 Ti": (759, 16), "RTX 5070": (988, 16), "RTX 5070 Ti": (1406, 16), "RTX 5080": (1801, 16),
    "RTX 5090": (3352, 16), "RTX PRO 6000": (4000, 8), "RTX 6000 Ada": (1457, 4), "L4": (485, 4), "L40S": (1466, 4),
}  # fmt: skip
"""Card -> AI TOPS with sparsity, and how many times dense bf16 with float32 sums that
is: 2 for sparsity, 2 for 8 bits (4 for 4 bits), and 2 more on GeForce, which sums in
float32 half as fast."""


@pytest.mark.parametrize("name", AI_TOPS)
def test_the_rate_is_that_of_dense_bf16_and_not_the_advertised_one(name: str) -> None:
    tops, times = AI_TOPS[name]
    assert asked_card(name).bf16_tflops == pytest.approx(tops / times, rel=0.02)


SMS = {
    "RTX 3060": (28, 1.777, 512), "RTX 3070": (46, 1.725, 512), "RTX 3080": (68, 1.71, 512),
    "RTX 3090": (82, 1.695, 512), "RTX 4090": (128, 2.52, 512), "RTX 5090": (170, 2.407, 512),
    "RTX A6000": (84, 1.8, 1024), "A100 80 GB": (108, 1.41, 2048), "H100": (132, 1.83, 4096),
}  # fmt: skip
"""Card -> multiprocessors, GHz, operations of a multiprocessor per cycle."""


@pytest.mark.parametrize("name", SMS)
def test_the_rate_is_that_of_the_multiprocessors(name: str) -> None:
    count, ghz, per_cycle = SMS[name]
    assert asked_card(name).bf16_tflops == pytest.approx(
        count * ghz * per_cycle / 1000, rel=0.02
    )


def test_names_are_those_of_one_card_each_and_every_row_has_a_source() -> None:
    names = [card.name for card in CARDS]
    assert (
        len(names) == len(set(names))
        and {card.name for card in CARDS if not card.source} == set()
    )
    for card in CARDS:
        assert [
            other.name for other in CARDS if card_here(f"NVIDIA {card.name}") is other
        ] in ([card.name], [])


@pytest.mark.parametrize(
    ("text", "name"),
    [("4090", "RTX 4090"), ("rtx4070 ti-super", "RTX 4070 Ti SUPER"), ("A4000", "RTX A4000"), ("l40s", "L40S"),
     ("a100 80gb", "A100 80 GB"), ("24", "RTX 4090"), ("24 GB", "RTX 4090"), ("24gb", "RTX 4090"),
     ("RTX 4060 Ti 16GB", "RTX 4060 Ti"), ("H100 80 GB", "H100"), ("12", "RTX 4070"),
     ("NVIDIA GeForce RTX 5070  Ti", "RTX 5070 Ti"), ("NVIDIA H100 80GB HBM3", "H100")],
)  # fmt: skip
def test_a_card_is_asked_for_as_people_call_it(text: str, name: str) -> None:
    assert asked_card(text).name == name


def test_short_names_are_of_one_card_each() -> None:
    assert all(asked_card(card.name) is card for card in CARDS)


def test_an_ambiguous_name_offers_the_cards_that_it_may_be() -> None:
    with pytest.raises(UserError, match="Did you mean 'A100 40 GB' or 'A100 80 GB'"):
        asked_card("A100")
    for text in ("0", "4096", "Radeon"):
        with pytest.raises(UserError, match=r"table of cards\. Give its memory"):
            asked_card(text)


def test_every_size_of_gpu_has_a_card_of_that_memory() -> None:
    for size, name in ASSUMED.items():
        assert asked_card(name).memory_gb == size


@pytest.mark.parametrize(
    ("size", "name"),
    [(2, "RTX A400"), (20, "RTX 4060 Ti"), (24, "RTX 4090"), (999, "H200")],
)
def test_a_size_that_the_table_lacks_is_as_fast_as_the_smaller_card(
    size: int, name: str
) -> None:
    card, like = assumed_card(size), asked_card(name)
    assert (card.memory_gb, card.bf16_tflops) == (size, like.bf16_tflops)
    assert card == like or card.called == f"a GPU of {size} GB"
    assert asked_card(card.name) == asked_card(f"{size} GB") == card


@pytest.mark.parametrize(
    "text",
    ["", "0", "RTX 2080", "-1", "0 GB", "3080 12GB", "4060 Ti 8GB", "RTX 4090 Laptop"],
)
def test_another_card_is_an_error_that_names_those_that_are_known(text: str) -> None:
    with pytest.raises(UserError) as caught:
        asked_card(text)
    assert str(caught.value) == (
        f"--card: {text!r} is not in the table of cards. Give its memory in GB, such as 12, or one of: "
        f"{', '.join(card.name for card in CARDS)}."
    )


def test_the_bus_is_that_of_the_standard() -> None:
    assert asked_card("RTX 4090").bus_gb_s == pytest.approx(31.5, rel=0.01)
    assert asked_card("RTX 4060").bus_gb_s == pytest.approx(15.75, rel=0.01)
    assert asked_card("RTX 5090").bus_gb_s == pytest.approx(63, rel=0.01)
    assert [
        asked_card(name).called for name in ("RTX 4070", "A100 40 GB", "L4", "B200")
    ] == [
        "an RTX 4070",
        "an A100 40 GB",
        "an L4",
        "a B200",
    ]
