"""From the datasets of a job to the items it trains on: every image at each of its sizes. No torch, no pixels."""

from __future__ import annotations

from typing import Any

from toolkit.contracts import Item
from toolkit.data.buckets import make_items
from toolkit.data.folder import Scan, scan_datasets


def scan_items(section: Any, size_multiple: int) -> tuple[Scan, tuple[Item, ...]]:
    """Scans `section.datasets` and gives each image its buckets.

    section: anything with `datasets` and `trigger_word`. size_multiple: sides of a bucket are multiples of it, pixels.
    Raises DataErrors naming every offending file.
    """
    scan = scan_datasets(section.datasets, section.trigger_word)
    items = make_items(scan.samples, lambda sample: section.datasets[scan.dataset_of(sample)].resolution, size_multiple)
    return scan, items
