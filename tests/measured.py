"""Comparisons with another program: asserted, and printed for the table in
docs/correctness.md (`pytest -rP`)."""

from __future__ import annotations


def at_most(what: str, value: float, limit: float) -> None:
    """`value` is a difference."""
    print(f"measured: {what}: {value:.2e} (at most {limit:g})")
    assert value <= limit, f"{what}: {value:.3e} is more than {limit:g}"


def at_least(what: str, value: float, limit: float) -> None:
    """`value` is a likeness, such as dB."""
    print(f"measured: {what}: {value:.1f} (at least {limit:g})")
    assert value >= limit, f"{what}: {value:.1f} is less than {limit:g}"
