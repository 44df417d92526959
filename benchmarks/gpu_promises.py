"""What the program promises on a GPU, and which promise the result of an item of
`verify_gpu.py` holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

Found = Mapping[str, Mapping[str, Any]]
"""Item -> its result."""

OF_THE_PLAN = 0.03
"""Largest relative difference of a peak from its plan."""

PLAIN = "plain loop"
OF_PLAIN = {"default": 0.45, "int4": 0.62, "eager": 1.0}
"""Item -> the largest share of the plain loop's seconds."""

STEP_S = {"no reference": 0.40}
FIRST_STEP_S = {"first start": 45.0, "second start": 12.0}
"""Seconds from before loading, after the imports."""


def line(name: str, found: Found) -> str:
    """What a human reads of an item: its status, and each figure beside its target."""
    one = found[name]
    said = [f"{name}: {one['status']}"]
    said += [str(one["reason"])] if one.get("reason") else []
    said += [
        f"{text}: {'holds' if holds else 'BROKEN'}"
        for text, holds in [*one.get("judged", ()), *_judged(name, found)]
    ]
    return "; ".join(said)


def _judged(name: str, found: Found) -> Iterator[tuple[str, bool]]:
    one = found[name]
    seconds, plain = one.get("s"), found.get(PLAIN, {}).get("s")
    if seconds and plain and name in OF_PLAIN:
        share, most = seconds / plain, OF_PLAIN[name]
        said = f"{seconds:.3f} s, {share:.2f} of the plain loop, at most {most:g}"
        yield said, share <= most
    if seconds and name in STEP_S:
        yield f"{seconds:.3f} s, at most {STEP_S[name]:.2f}", seconds <= STEP_S[name]
    first = one.get("first_step_s")
    if first and name in FIRST_STEP_S:
        most = FIRST_STEP_S[name]
        yield f"first step after {first:.1f} s, at most {most:g}", first <= most
    numbers = [*one.get("losses", ()), *one.get("grad_norms", ())]
    if numbers:
        wrong = sum(not isfinite(number) for number in numbers)
        yield f"{wrong} of {len(numbers)} losses and norms are not finite", not wrong
    peak, planned = one.get("training_gb"), one.get("planned_training_gb")
    if peak and planned:
        differs = abs(peak / planned - 1)
        said = f"peak {peak:.2f} of {planned:.2f} GB planned, at most 3 % apart"
        yield said, differs <= OF_THE_PLAN
    before = found.get("first start", {}).get("bits")
    if name == "second start" and before and one.get("bits"):
        spent = ", ".join(f"{what} {s:.2f} s" for what, s in one["kept_s"].items())
        yield (
            f"bits of {len(before)} blocks as in the first start ({spent})",
            one["bits"] == before,
        )
