"""The page of `lint --preview`: each crop that is trained, with its control images, its
final caption and its findings.

The template `preview.html.j2` calls the functions of this module for each image, so
that only one image is in memory at a time. Nothing is checked here. `process` writes
the page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from extensions.tools.lint.dataset import Dataset, Item
from extensions.tools.shared.findings import CHECKS
from extensions.tools.shared.html_page import embedded, page
from toolkit.data.pixels.images import ImageError, open_image, resize_cover_crop
from toolkit.errors import Diagnostic

MOST_IMAGES = 300
"""Images on a page; those with findings come first."""

CROP_SIDE, REFERENCE_SIDE = 384, 160
"""Pixels of the longer side of an image on the page."""


class Shown(NamedTuple):
    """An image on the page, or the reason why it cannot be shown.

    >>> Shown(problem="a.png: is damaged").address
    ''
    """

    address: str = ""
    problem: str = ""
    name: str = ""
    """File name of a control image."""


def preview_page(datasets: Sequence[Dataset], findings: Sequence[Diagnostic]) -> str:
    """The page of all datasets together."""
    by_file: dict[str, list[Diagnostic]] = defaultdict(list)
    for finding in findings:
        by_file[finding.place].append(finding)
    sections = []
    for data in datasets:  # images with findings first, else the order of the training
        ordered = sorted(data.items, key=lambda item: item.image not in by_file)
        sections.append((data.name, len(ordered), ordered[:MOST_IMAGES]))
    shown = {item.image for data in datasets for item in data.items}
    # Findings without an image on the page: unreadable files, control images, folders.
    others = [finding for finding in findings if finding.place not in shown]
    return page(
        Path(__file__).with_name("preview.html.j2"),
        "What is trained",
        counts=f"{sum(len(data.items) for data in datasets):,} images, {len(findings):,} findings",
        any_found=any(finding.place in shown for finding in findings),
        others=others[:1000],
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
    sizes = ", ".join("{} x {}".format(*crop.bucket) for crop in item.crops)
    facts = [f"{sample.size.width} x {sample.size.height}, trained at {sizes}"]
    if item.held_out:
        facts.append("validation")
    if item.is_reg:
        facts.append("regularisation")
    if sample.repeats > 1:
        facts.append(f"{sample.repeats} repeats")
    return ", ".join(facts)


def _rules(item: Item) -> str:
    rules = item.sample.rules
    notes = []
    if rules.dropout_rate:
        notes.append(f"caption left out in {rules.dropout_rate:.0%} of the uses")
    if rules.shuffle_tokens:
        notes.append("its tags are shuffled")
    return "; ".join(notes)


def _crop(item: Item) -> Shown:
    """The pixels that are trained."""
    try:
        image = open_image(item.image, item.sample.background)
        return Shown(embedded(resize_cover_crop(image, item.crops[0]), CROP_SIDE))
    except ImageError as error:
        return Shown(problem=str(error))


def _reference(path: str, background: str) -> Shown:
    try:
        image = open_image(path, background, at_least=2 * REFERENCE_SIDE)
    except ImageError as error:
        return Shown(problem=str(error))
    return Shown(embedded(image, REFERENCE_SIDE), name=Path(path).name)
