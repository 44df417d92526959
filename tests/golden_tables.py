"""The tables in tests/golden: numbers that other programs produced. Which and how: docs/correctness.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent / "golden"


def table(name: str) -> dict[str, Any]:
    """All of `<name>.json`."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def golden(name: str, **wanted: Any) -> list[dict[str, Any]]:
    """The cases of `<name>.json` that have these values. Never empty: a filter that matches nothing is an error."""
    cases = table(name)["cases"]
    chosen = [
        case
        for case in cases
        if all(case.get(key) == value for key, value in wanted.items())
    ]
    assert chosen, f"no case of {name} has {wanted}"
    return chosen


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Numbers [-] for tensors of these names and shapes, float64, of unit gain; the rule stands in aitk_step.json."""
    stream = np.random.RandomState(
        seed
    )  # of all generators the one whose numbers never change
    found = {}
    for name, shape in sorted(shapes.items()):
        numbers = stream.standard_normal(shape)
        found[name] = (
            numbers / shape[1] ** 0.5
            if len(shape) == 2
            else 0.1 * numbers + name.endswith("weight")
        )
    return found
