"""One training step's inputs, for every kind of network."""

from pathlib import Path

import pytest

from tests.diffusers_reference import step_of_photo


@pytest.fixture(scope="module")
def step_inputs(tiny_model: Path):
    """x_t, t, prompts and references of one item with one reference."""
    return step_of_photo(tiny_model, [0.6])
