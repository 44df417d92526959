"""The table of cards in docs/times.md, made from that of the program: `python
docs/generate.py`."""

from __future__ import annotations

from toolkit.plan.cards import ASSUMED, CARDS, Card

BEGIN, END = "<!-- cards -->\n", "<!-- end of the cards -->\n"
"""The marks around the table."""

HEAD = "| card | meant by `--gpu` | TFLOP/s | GB/s | bus | source |\n|---|---|---:|---:|---|---|\n"


def card_table() -> str:
    """In the order of the program's table."""
    return HEAD + "".join(map(_row, CARDS))


def _row(card: Card) -> str:
    generation, lanes = card.pcie
    sizes = ", ".join(
        f"{size} GB" for size, name in ASSUMED.items() if name == card.name
    )
    figures = (
        f"{card.bf16_tflops:g} | {card.memory_gb_s:g} | PCIe {generation} x{lanes}"
    )
    return f"| {card.name} | {sizes} | {figures} | {card.source} |\n"
