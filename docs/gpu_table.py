"""The tables of GPUs in the guides, made from the table that `run.py new` writes jobs
by: `python docs/generate.py`."""

from __future__ import annotations

import re

from extensions.tools.shared.examples import MODELS, Card, Model

MARKED = re.compile(r"(?s)(<!-- GPUs of (\S+) -->\n)(.*?)(<!-- end of the table -->\n)")
"""A table in a page, between its marks: the mark, the model's hub id, the table, the
other mark."""

PEAK = re.compile(r"(?m)^\| (\d+) GB \|.*\| (\S+) GB \|$")
"""The least memory of the GPU and the planned peak of a row."""

HEAD = (
    "| GPU, at least | `run.py new` writes | example | planned peak, images of 1024 x 1024 |\n"
    "|---|---|---|---|\n"
)
"""Its peaks are of plans with such images, which a test makes."""


def with_tables(page: str) -> str:
    """A page with its tables. The planned peaks stay: a test holds them against the
    plans."""
    return MARKED.sub(
        lambda found: (
            f"{found[1]}{_table(found[2], dict(PEAK.findall(found[3])))}{found[4]}"
        ),
        page,
    )


def _table(model_id: str, peaks: dict[str, str]) -> str:
    model = next(each for each in MODELS if each.id == model_id)
    rows = sorted((card.least_gb, gpu, card) for gpu, card in model.cards.items())
    return HEAD + "".join(
        f"| {least} GB | {_keys(card)} |{_example(model, gpu)} | {peaks.get(str(least), '0.0')} GB |\n"
        for least, gpu, card in rows
    )


def _keys(card: Card) -> str:
    swapped = f", `blocks_to_swap: {card.swap}`" if card.swap else ""
    level = "" if card.level == "auto" else f", `gradient_checkpointing: {card.level}`"
    return (
        (f"`qtype: {card.qtype}`" if card.qtype else "`quantize: false` (bf16)")
        + swapped
        + level
    )


def _example(model: Model, gpu: int) -> str:
    return f" `train_{model.file}_{gpu}gb.yaml`" if gpu in model.examples else ""
