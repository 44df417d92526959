"""The section `stop_when`, in the process or in its `train`, and under FluxFlow's names."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "lines",
    [
        ("stop_when: {metric: grad_norm, below: 0.5}",),
        ("train: {stop_when: {metric: grad_norm, below: 0.5}}",),
        ("stop_condition: {loss_name: grad_norm, threshold: 0.5}",),
    ],
)
def test_its_places_and_names(section, lines) -> None:
    found = section(*lines).stop_when
    assert (found.metric, found.below) == ("grad_norm", 0.5)
    assert (found.smooth, found.min_steps, found.check_every) == (20, 0, 10)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("{}", "stop_when.below"),
        ("{below: 1, smooth: 0}", "stop_when.smooth"),
        ("{below: 1, check_every: 0}", "stop_when.check_every"),
        ("{below: 1, min_steps: -1}", "stop_when.min_steps"),
        ("{below: .nan}", "stop_when.below"),
        ("{below: low}", "stop_when.below"),
    ],
)
def test_a_mistake_is_named_at_its_place(faults, given: str, fault: str) -> None:
    found = faults(f"stop_when: {given}")
    assert len(found) == 1, found
    assert found[0].startswith(fault)
