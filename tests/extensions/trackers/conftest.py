"""Runs to be tracked, and a tracker that keeps what it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.config.sections.output import LoggingConfig
from toolkit.train.trackers.tracker import RunInfo


@pytest.fixture
def tracked(tmp_path: Path) -> Callable[..., RunInfo]:
    """Makes a run at a step; `options` are keys of the `logging` section."""

    def make(step: int = 0, **options) -> RunInfo:
        folder = tmp_path / "output" / "job"
        folder.mkdir(parents=True, exist_ok=True)
        given = {"logging_dir": str(tmp_path / "tb"), **options}
        return RunInfo("job", folder, step, LoggingConfig(**given))

    return make


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "picture.webp"
    Image.new("RGB", (48, 32), (200, 40, 90)).save(path)
    return path
