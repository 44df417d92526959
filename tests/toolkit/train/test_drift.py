"""What is measured of a sample that edits a reference: on photographs that were moved
and painted on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from tests.toolkit.data.pixels.test_alignment import moved, photograph, within
from toolkit.contracts.data import Mask
from toolkit.data.pixels.alignment import Alignment
from toolkit.data.pixels.images import ImageError
from toolkit.train.drift import Drift, drift_metrics, drift_of


@pytest.mark.slow
def test_a_sample_that_lies_to_the_right_and_is_larger_says_so(tmp_path: Path) -> None:
    square, other, reference = (
        tmp_path / "square.png",
        tmp_path / "other.png",
        tmp_path / "reference.png",
    )
    Image.new("RGB", (64, 64)).save(square)
    within(photograph(1)).save(reference)
    ImageOps.mirror(within(photograph(1))).save(other)
    sample = within(moved(photograph(1), (0.02, 0.0, 3.0, -2.0)))
    drift = drift_of(sample, [square, reference, other])  # the first one of its shape
    assert drift is not None and drift.outside_mask is None
    assert math.dist(drift.found.shift, (3, -2)) < 0.2
    numbers = drift.numbers()
    assert (
        numbers["zoom_percent"] == pytest.approx(2, abs=0.1)
        and abs(numbers["rotation_degrees"]) < 0.1
    )
    assert (
        numbers["shift_px"] == pytest.approx(math.hypot(3, 2), abs=0.2)
        and numbers["px"] > 4
    )
    assert str(drift).endswith(
        "shift +3.0, -2.0 pixels)"
    ) and "pixels off (zoom +" in str(drift)
    unlike = drift_of(sample, [other])
    assert (
        unlike is not None
        and str(unlike) == "not measurable"
        and math.isnan(unlike.numbers()["px"])
    )
    assert drift_of(sample, [square]) is None and drift_of(sample, []) is None
    reference.unlink()
    with pytest.raises(ImageError):
        drift_of(sample, [reference])


@pytest.mark.slow
def test_only_what_changes_outside_the_mask_counts(tmp_path: Path) -> None:
    reference, mask = tmp_path / "reference.png", tmp_path / "mask.png"
    image = photograph(0)
    image.save(reference)
    # stretched over its reference
    half = Image.new("L", (image.width // 2, image.height // 2))
    half.paste(255, (0, 0, half.width // 2, half.height))
    half.save(mask)
    sample = image.copy()
    sample.paste((255, 0, 255), (0, 0, image.width // 2 - 8, image.height))

    def outside(sample: Image.Image, inverted: bool = False) -> float | None:
        drift = drift_of(sample, [reference], Mask(str(mask), inverted=inverted))
        return drift and drift.outside_mask

    assert outside(sample) == 0 and (outside(sample, inverted=True) or 0) > 50
    assert outside(image.point(lambda value: value ^ 4)) == pytest.approx(4)
    half.paste(255, (0, 0, *half.size))
    half.save(mask)
    assert outside(sample) is None


def test_the_metrics_are_means_of_magnitudes_and_the_numbers_of_each() -> None:
    def drift(zoom: float, peak: float = 1.0, outside: float | None = None) -> Drift:
        return Drift(Alignment(zoom, 0.0, (0.0, 0.0), peak, 0.0, (200, 100)), outside)

    found = drift_metrics(
        {0: drift(0.01), 2: drift(-0.03, outside=5.0), 3: drift(0.5, peak=0.1)}
    )
    assert found["drift/measurable"] == pytest.approx(2 / 3)
    assert found["drift/zoom_percent"] == pytest.approx(2) and found[
        "drift/zoom_percent_2"
    ] == pytest.approx(-3)
    assert math.isnan(found["drift/px_3"]) and found["drift/px"] == pytest.approx(
        0.02 * math.hypot(100, 50)
    )
    assert (
        found["drift/outside_mask"] == found["drift/outside_mask_2"] == 5
        and "drift/px_1" not in found
    )
    assert drift_metrics({}) == {}
    assert math.isnan(
        drift_metrics({0: drift(0.0, peak=0.0)}, "validation/")["validation/px"]
    )
