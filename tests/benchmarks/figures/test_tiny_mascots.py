"""The bench of a model of mascots: figures of a model that knows nothing, and of
pictures as they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mascots.drawing import draw
from mascots.mascot import Mascot
from PIL import Image

from benchmarks.figures import tiny_mascots
from benchmarks.figures.tiny_mascots import PARTS
from benchmarks.mascot_classifier import MascotClassifier
from benchmarks.mascot_model import TinyModel


@pytest.mark.slow
def test_all_parts_run_on_a_model_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(tiny_mascots, "trained", MascotClassifier)
    tiny_mascots.main(
        [str(tiny_model), "--count", "2", "--steps", "1", "--sheets", str(tmp_path)]
    )
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figures.keys() == PARTS.keys()
    assert all(
        0 <= share <= 1
        for part in PARTS
        if part != "vae"
        for share in figures[part].values()
    )
    assert {file.stem for file in tmp_path.iterdir()} == PARTS.keys() - {"vae"}


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> TinyModel:
    """A classifier that knows what was drawn."""
    shown: dict[bytes, Mascot] = {}

    def drawn(mascots: list[Mascot], width: int, height: int) -> Image.Image:
        picture = draw(mascots, width, height)
        shown[picture.tobytes()] = mascots[0]
        return picture

    monkeypatch.setattr(tiny_mascots, "draw", drawn)
    monkeypatch.setattr(
        TinyModel,
        "seen",
        lambda self, pictures: [vars(shown[p.tobytes()]) for p in pictures],
    )
    return TinyModel(model=None, classifier=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["edits", "strangers"])
def test_edits_as_they_should_be_and_none_at_all(
    truth: TinyModel, monkeypatch, part: str
) -> None:
    monkeypatch.setattr(
        tiny_mascots,
        "_after",
        lambda tiny, pairs, *_: [tiny_mascots.draw(p.after, 128, 128) for p in pairs],
    )
    assert set(PARTS[part](truth, 20, None).values()) == {1.0}
    monkeypatch.setattr(
        tiny_mascots,
        "_after",
        lambda tiny, pairs, *_: [tiny_mascots.draw(p.before, 128, 128) for p in pairs],
    )
    found = PARTS[part](truth, 20, None)
    assert found["changed"] < 0.1 and found["stayed"] == found["body stays"] == 1.0
