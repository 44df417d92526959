"""Pictures with detail at all sizes, as photographs have it."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy
import pytest
from PIL import Image


def picture(seed: int, width: int = 256, height: int = 192) -> Image.Image:
    """Noise of all octaves, of the same contrast in each."""
    return _drawn(seed, width, height).copy()


@cache
def _drawn(seed: int, width: int, height: int) -> Image.Image:
    random = numpy.random.default_rng(seed)
    total = numpy.zeros((height, width, 3))
    for octave in range(7):
        shape = (max(2, height >> octave), max(2, width >> octave), 3)
        noise = Image.fromarray(
            random.integers(0, 256, shape, dtype=numpy.uint8)
        ).resize((width, height))
        total += (numpy.asarray(noise, dtype=float) - 128) * 0.3
    return Image.fromarray((128 + total).clip(0, 255).astype(numpy.uint8))


@pytest.fixture(scope="session")
def good_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six, with captions."""
    made = tmp_path_factory.mktemp("good") / "photos"
    made.mkdir()
    for index in range(6):
        picture(index).save(made / f"{index}.png")
        (made / f"{index}.txt").write_text(f"ohwx man at place {index}")
    return made


@pytest.fixture
def folder(
    good_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """`photos/`: the good pictures in the working directory."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(good_pictures, tmp_path / "photos")
