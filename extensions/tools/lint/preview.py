"""The page of what is trained: each crop with its references and its final caption, and what was found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from extensions.tools.lint.checks import CHECKS, Finding
from extensions.tools.lint.dataset import Dataset, Item
from extensions.tools.shared.html_page import Content, Markup, element, embedded, page, table
from toolkit.data.images import ImageError, open_image, resize_cover_crop
from toolkit.data.types import ResizeCrop
from toolkit.files.redact import redact_text

MOST_IMAGES = 300
"""Images on a page; those with findings come first."""

CROP_SIDE, REFERENCE_SIDE = 384, 160
"""Pixels of the longer side of a picture on the page."""

CSS = """
.items { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); gap: 16px; }
.items .card { display: flex; flex-direction: column; gap: 8px; min-width: 0; }
.items img { border-radius: 4px; }
.crop img { width: 100%; max-height: 384px; object-fit: contain; }
.references { display: flex; flex-wrap: wrap; gap: 8px; }
.references img { max-width: 80px; max-height: 80px; }
.references figure { margin: 0; font-size: 0.8em; color: var(--faint); }
.name { font-size: 0.85em; overflow-wrap: anywhere; }
.caption { white-space: pre-line; overflow-wrap: anywhere; max-height: 12em; overflow-y: auto; }
ul { margin: 0; padding-left: 18px; }
li { overflow-wrap: anywhere; }
label { display: inline-flex; align-items: center; gap: 6px; }
.only .items .card:not(.found) { display: none; }
"""

JS = """
const only = document.getElementById('only');
if (only) only.addEventListener('change', () => document.body.classList.toggle('only', only.checked));
"""


def preview_page(datasets: Sequence[Dataset], findings: Sequence[Finding]) -> str:
    """The page of all datasets together."""
    by_file: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_file[finding.file].append(finding)
    sections = [_section(data, by_file) for data in datasets]
    shown = {item.sample.image for data in datasets for item in data.items}
    others = [finding for finding in findings if finding.file not in shown]
    counts = f"{sum(len(data.items) for data in datasets):,} images, {len(findings):,} findings"
    switch = element("label", element("input", type="checkbox", id="only"), "only images with findings")
    body = (
        element("p", counts + ". Each picture is the crop that is trained, with the caption that is trained."),
        element("p", switch) if any(finding.file in shown for finding in findings) else None,
        _others(others),
        sections,
    )
    return page("What is trained", *body, css=CSS, js=JS)


def _others(findings: Sequence[Finding]) -> Markup | None:
    """Findings of files that are not shown: those that cannot be read, references, folders."""
    if not findings:
        return None
    rows = ([CHECKS[each.check].title, redact_text(each.file), redact_text(each.message)] for each in findings[:1000])
    return element("section", element("h2", "Other files"), table(["What", "File", "Finding"], rows))


def _section(data: Dataset, by_file: dict[str, list[Finding]]) -> Markup:
    ordered = sorted(data.items, key=lambda item: item.sample.image not in by_file)  # stable: else as they are trained
    left_out = len(ordered) - MOST_IMAGES
    return element(
        "section",
        element("h2", redact_text(data.name)),
        element("p", f"The first {MOST_IMAGES} of {len(ordered):,}.", class_="faint") if left_out > 0 else None,
        element("div", (_card(item, by_file) for item in ordered[:MOST_IMAGES]), class_="items"),
    )


def _card(item: Item, by_file: dict[str, list[Finding]]) -> Markup:
    sample = item.sample
    found = by_file.get(sample.image, [])
    kinds = [("validation", item.held_out), ("regularisation", item.is_reg)]
    marks = [name for name, holds in kinds if holds] + ([f"{sample.repeats} repeats"] if sample.repeats > 1 else [])
    sizes = ", ".join(f"{crop.bucket.width} x {crop.bucket.height}" for crop in item.crops)
    facts = f"{sample.size.width} x {sample.size.height}, trained at {sizes}" + "".join(f", {mark}" for mark in marks)
    caption = element("div", redact_text(sample.caption), class_="caption") if sample.caption else None
    return element(
        "article",
        element("div", _crop(item, item.crops[0]), class_="crop"),
        _references(item),
        caption or element("div", "no caption", class_="faint"),
        element("div", redact_text(sample.image), element("br"), facts, _rules(item), class_="name faint"),
        element("ul", (element("li", redact_text(each.message)) for each in found), class_="bad") if found else None,
        class_="card found" if found else "card",
    )


def _rules(item: Item) -> Content:
    rules = item.sample.rules
    told = [f"caption left out in {rules.dropout_rate:.0%} of the uses"] if rules.dropout_rate else []
    told += ["its tags are shuffled"] if rules.shuffle_tokens else []
    return (element("br"), "; ".join(told)) if told else None


def _crop(item: Item, crop: ResizeCrop) -> Content:
    """The pixels that are trained."""
    try:
        image = resize_cover_crop(open_image(item.sample.image, item.sample.background), crop)
    except ImageError as error:
        return redact_text(str(error))
    return element("img", src=embedded(image, CROP_SIDE), alt="", width=str(crop.bucket.width), loading="lazy")


def _references(item: Item) -> Markup | None:
    if not item.references:
        return None
    shown = (_reference(slot, each.path, item.sample.background) for slot, each in enumerate(item.references, 1))
    return element("div", shown, class_="references")


def _reference(slot: int, path: str, background: str) -> Content:
    try:
        address = embedded(open_image(path, background, at_least=2 * REFERENCE_SIDE), REFERENCE_SIDE)
    except ImageError as error:
        return redact_text(str(error))
    image = element("img", src=address, alt="", title=redact_text(Path(path).name), loading="lazy")
    return element("figure", image, f"reference {slot}")
