"""The classifier of attributes: what it is given and says, and with `slow` that it is
nearly always right."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import mascot_classifier
from benchmarks.mascot_classifier import (
    MascotClassifier,
    agreement,
    drawn,
    pixels_of,
    train,
    trained,
)
from benchmarks.mascots import ALL, NONE, Casting, Mascot, draw


def test_it_answers_for_every_attribute_at_any_size() -> None:
    classifier = MascotClassifier()
    for size in (64, 96, 128):
        pixels_B3HW = pixels_of(
            [draw([Mascot()], size, size), draw([Mascot(hat="cap")], size, size)]
        )
        assert pixels_B3HW.shape == (2, 3, size, size) and pixels_B3HW.abs().max() <= 1
        assert {
            name: tuple(scores.shape)
            for name, scores in classifier(pixels_B3HW).items()
        } == {name: (2, len(values)) for name, values in ALL.items()}
        for answer in classifier.attributes(pixels_B3HW):
            assert all(answer[name] in values for name, values in ALL.items())


def test_shares_are_of_what_is_wanted_and_no_hat_has_no_colour(monkeypatch) -> None:
    wanted = [
        Mascot(hat="cap", hat_colour="red"),
        Mascot(hat=NONE, hat_colour="red", pose="waving"),
    ]
    seen = [
        {name: getattr(m, name) for name in ALL} | {"hat_colour": "blue"}
        for m in wanted
    ]
    seen[1]["pose"] = "sitting"
    monkeypatch.setattr(MascotClassifier, "attributes", lambda self, pixels: seen)
    shares = agreement(MascotClassifier(), torch.zeros(2, 3, 64, 64), wanted)
    assert shares == {
        name: {"hat_colour": 0.0, "pose": 0.5}.get(name, 1.0) for name in ALL
    }


@pytest.mark.slow
def test_it_learns_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 60 of its 800 steps."""
    monkeypatch.setattr(mascot_classifier, "train", partial(train, 400, 60))
    classifier = trained(tmp_path)
    shown, pixels_N3ss = drawn(mascot_classifier.FRESH, 100, Casting("any"))
    shares = agreement(classifier, pixels_N3ss / 127.5 - 1, shown)
    assert all(shares[name] >= 0.8 for name in ("colour", "place")), shares
    monkeypatch.setattr(mascot_classifier, "train", None)
    again = trained(tmp_path).state_dict()
    assert all(again[name].equal(one) for name, one in classifier.state_dict().items())
