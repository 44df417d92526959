"""A tiny Qwen-Image-2.1 and diffusers' own pipeline over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.diffusers_21 import load_pipeline
from tests.diffusers_reference import write_unit_gain
from toolkit.models.tiny import TinySpec, write_tiny_model


@pytest.fixture(scope="session")
def tiny_21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random parts. Read only."""
    folder = tmp_path_factory.mktemp("models") / "tiny_21"
    write_tiny_model(folder, TinySpec(arch="qwen_image_2"))
    return folder


@pytest.fixture(scope="session")
def unit_gain_21(tiny_21: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with weights in which every input is plainly seen (`write_unit_gain`).
    Read only."""
    folder = tmp_path_factory.mktemp("models") / "unit_gain_21"
    write_unit_gain(folder, tiny_21)
    return folder


@pytest.fixture(scope="session")
def pipeline_21(unit_gain_21: Path):
    """diffusers' own pipeline over that, float32."""
    return load_pipeline(unit_gain_21)
