"""What the program promises on a GPU, and which promise the results of `verify_gpu.py`
hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Found = Mapping[str, Mapping[str, Any]]
"""Item -> its result."""

OF_THE_PLAN = 0.03
"""Largest relative difference of a peak from its plan."""

CONTEXT_GB = 0.7
"""What CUDA itself takes beside the tensors of a small GPU, as the plan has it."""

PLAIN = "plain loop"


@dataclass(frozen=True)
class Promise:
    """What is promised, the items it needs, and the judge: what was found, and whether
    it holds."""

    what: str
    needs: tuple[str, ...]
    judge: Callable[[Found], tuple[str, bool] | None]
    """None where the results lack the numbers."""

    def verdict(self, found: Found) -> str:
        """One line."""
        reasons = "; ".join(
            filter(None, (_why_not(name, found) for name in self.needs))
        )
        if any(
            found.get(name, {}).get("status") in ("failed", "out of memory")
            for name in self.needs
        ):
            return f"{self.what}: {reasons}: BROKEN"
        judged = (
            self.judge(found) if all(name in found for name in self.needs) else None
        )
        if judged:
            return f"{self.what}: {judged[0]}: {'holds' if judged[1] else 'BROKEN'}"
        return f"{self.what}: not measured ({reasons or 'this device has no such numbers'})"


def _why_not(name: str, found: Found) -> str:
    if name not in found:
        return f"{name} was not run"
    if found[name]["status"] == "measured":
        return ""
    one = found[name]
    wrong = "".join(f" {test.rpartition('::')[2]}" for test in one.get("wrong", ()))
    return ": ".join(
        filter(
            None,
            (
                name,
                one["status"],
                one.get("reason", ""),
                one.get("line", ""),
                wrong.strip(),
            ),
        )
    )


def _first_step(name: str, most: float) -> Promise:
    def judge(found: Found) -> tuple[str, bool] | None:
        seconds, process_s = (
            found[name].get("first_step_s"),
            found[name].get("process_s"),
        )
        if not seconds or not process_s:
            return None
        whole = f"{process_s:.1f} s after the process began"
        return (
            f"first step {seconds:.1f} s after the imports ({whole}), at most {most:g}",
            seconds <= most,
        )

    return Promise(name, (name,), judge)


def _plan(name: str, card_gb: float | None = None) -> Promise:
    """The peak is that of the plan; and the job fits its card."""

    def judge(found: Found) -> tuple[str, bool] | None:
        peak, planned = (
            found[name].get("training_gb"),
            found[name].get("planned_training_gb"),
        )
        if not peak or not planned:
            return None
        said, holds = (
            f"{peak:.1f} of {planned:.1f} GB planned",
            abs(peak / planned - 1) <= OF_THE_PLAN,
        )
        taken = (found[name].get("reserved_gb") or peak) + CONTEXT_GB
        if card_gb and taken > card_gb * 1.0737:  # a card of N GB has N GiB
            said, holds = f"{said}, {taken:.1f} GB taken in all", False
        return said, holds

    return Promise(name if card_gb else f"memory of {name}", (name,), judge)


def _ratio(name: str, most: float) -> Promise:
    def judge(found: Found) -> tuple[str, bool] | None:
        ours, plain = found[name].get("s"), found[PLAIN].get("s")
        if not ours or not plain:
            return None
        return (
            f"{ours:.3f} s, {ours / plain:.2f} of the plain loop, at most {most:g}",
            ours / plain <= most,
        )

    return Promise(f"speed of {name}", (name, PLAIN), judge)


def _seconds(name: str, most: float) -> Promise:
    def judge(found: Found) -> tuple[str, bool] | None:
        seconds = found[name].get("s")
        return seconds and (f"{seconds:.3f} s, at most {most:g}", seconds <= most)

    return Promise(f"speed of {name}", (name,), judge)


def _runs(name: str) -> Promise:
    """Nothing of it fails."""

    def judge(found: Found) -> tuple[str, bool] | None:
        one = found[name]
        if "line" not in one or not one.get("outcomes", {"passed": 1}).get("passed"):
            return None
        cut = " before it was cut off" if one["status"] == "cut off" else ""
        return f"{one['line']}{cut}", not one.get("wrong")

    return Promise(name, (name,), judge)


PROMISES = [
    _first_step("first start", 45),
    _first_step("second start", 12),
    _plan("24 GB", 24),
    _plan("16 GB", 16),
    _plan("12 GB", 12),
    _ratio("default", 0.45),
    _plan("default"),
    _seconds("no reference", 0.40),
    _plan("no reference"),
    _ratio("int4", 0.62),
    _plan("int4"),
    _ratio("eager", 1.0),
    _plan("eager"),
    _plan("three references"),
    _plan("2.1"),
    _runs("quickstart"),
    _runs("tests"),
    _runs("whole jobs"),
]
"""Goals on an H100; ratios are to the plain loop without a mask, 1024 x 1024 with one
reference."""


def verdicts(found: Found, ended: str = "") -> Iterator[str]:
    """A line for each promise. ended: how the call did."""
    lines = [promise.verdict(found) for promise in PROMISES]
    broken, unknown = (
        sum(word in line for line in lines) for word in (": BROKEN", ": not measured (")
    )
    yield (
        f"{len(lines) - broken - unknown} promises hold, {broken} do not, {unknown} are not measured"
        + (f" ({ended})" if ended else "")
    )
    yield from (f"- {line}" for line in lines)
