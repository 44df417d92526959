"""The page of what is trained: each crop with its references and its final caption, and
what was found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from extensions.tools.lint.checks import CHECKS
from extensions.tools.lint.dataset import Dataset, Item
from extensions.tools.shared.html_page import embedded, page
from toolkit.data.pixels.images import ImageError, open_image, resize_cover_crop
from toolkit.errors import Diagnostic

MOST_IMAGES = 300
"""Images on a page; those with findings come first."""

CROP_SIDE, REFERENCE_SIDE = 384, 160
"""Pixels of the longer side of an image on the page."""


class Shown(NamedTuple):
    """An image on the page, or why there is none."""

    address: str = ""
    problem: str = ""
    name: str = ""
    """Name of a reference's file."""


def preview_page(datasets: Sequence[Dataset], findings: Sequence[Diagnostic]) -> str:
    """The page of all datasets together."""
    by_file: dict[str, list[Diagnostic]] = defaultdict(list)
    for finding in findings:
        by_file[finding.place].append(finding)
    sections = []
    for data in datasets:  # those with findings first, else as they are trained
        ordered = sorted(data.items, key=lambda item: item.sample.image not in by_file)
        sections.append((data.name, len(ordered), ordered[:MOST_IMAGES]))
    shown = {item.sample.image for data in datasets for item in data.items}
    return page(
        Path(__file__).with_name("preview.html.j2"),
        "What is trained",
        counts=f"{sum(len(data.items) for data in datasets):,} images, {len(findings):,} findings",
        any_found=any(finding.place in shown for finding in findings),
        others=[one for one in findings if one.place not in shown][
            :1000
        ],  # unreadable, references, folders
        checks=CHECKS,
        by_file=by_file,
        datasets=sections,
        crop=_crop,
        reference=_reference,
        facts=_facts,
        rules=_rules,
    )


def _facts(item: Item) -> str:
    """Sizes and use of an image."""
    sample = item.sample
    kinds = [("validation", item.held_out), ("regularisation", item.is_reg)]
    marks = [name for name, holds in kinds if holds] + (
        [f"{sample.repeats} repeats"] if sample.repeats > 1 else []
    )
    sizes = ", ".join(
        f"{crop.bucket.width} x {crop.bucket.height}" for crop in item.crops
    )
    return ", ".join(
        [f"{sample.size.width} x {sample.size.height}, trained at {sizes}", *marks]
    )


def _rules(item: Item) -> str:
    rules = item.sample.rules
    if rules.dropout_rate:
        told = [f"caption left out in {rules.dropout_rate:.0%} of the uses"]
    else:
        told = []
    told += ["its tags are shuffled"] if rules.shuffle_tokens else []
    return "; ".join(told)


def _crop(item: Item) -> Shown:
    """The pixels that are trained."""
    try:
        image = resize_cover_crop(
            open_image(item.sample.image, item.sample.background), item.crops[0]
        )
    except ImageError as error:
        return Shown(problem=str(error))
    return Shown(embedded(image, CROP_SIDE))


def _reference(path: str, background: str) -> Shown:
    try:
        image = open_image(path, background, at_least=2 * REFERENCE_SIDE)
    except ImageError as error:
        return Shown(problem=str(error))
    return Shown(embedded(image, REFERENCE_SIDE), name=Path(path).name)
