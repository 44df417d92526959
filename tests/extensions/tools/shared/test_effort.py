"""The one dial of a new job: quick, usual, careful."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.shared.effort import EFFORTS, images_in, with_effort
from extensions.tools.shared.examples import EXAMPLES, MASCOTS, MODELS, written_job

TEXT = """\
train:
  steps: 2000      # of the optimizer
save:
  save_every: 250
sample:
  sample_every: 250
  sample_steps: 25
"""


@pytest.mark.parametrize(
    ("effort", "images", "steps", "pause"),
    [
        ("usual", 0, 2000, 250),
        ("usual", 50, 2000, 250),
        ("usual", 75, 3000, 375),
        ("usual", 200, 6000, 750),  # at most three times as many
        ("quick", 30, 500, 125),
        ("quick", 100, 1000, 250),
        ("careful", 30, 4000, 500),
        ("careful", 53, 4200, 530),
    ],
)
def test_steps_saves_and_samples_follow_the_dial_and_the_images(
    tmp_path: Path, effort: str, images: int, steps: int, pause: int
) -> None:
    (tmp_path / "40_sub").mkdir()
    for number in range(images):
        (tmp_path / ("40_sub" if number % 2 else "") / f"{number}.png").touch()
    (tmp_path / "notes.txt").touch()
    assert images_in(str(tmp_path)) == images
    text = with_effort(TEXT, effort, str(tmp_path))
    assert f"  steps: {steps}" in text and text.count(f"_every: {pause}\n") == 2
    assert "sample_steps: 25" in text and "# of the optimizer" in text


def test_the_usual_job_of_few_images_is_that_of_the_examples(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for model, steps in ((MODELS[0].id, 2000), (str(EXAMPLES / MASCOTS), 240)):
        found = {
            effort: written_job("a", str(tmp_path), "a", model, 24, effort=effort)
            for effort in EFFORTS
        }
        assert found["usual"] == written_job("a", str(tmp_path), "a", model, 24)
        for effort, factor in (("quick", 0.25), ("usual", 1), ("careful", 2)):
            assert f" steps: {steps * factor:.0f}" in found[effort]
    assert images_in(str(tmp_path / "gone")) == 0
