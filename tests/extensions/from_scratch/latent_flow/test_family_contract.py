"""What every model family promises, of `latent_flow`: the tests of the core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.extensions.from_scratch.flow_models import write_flow_model
from tests.toolkit.models.test_families_contract import *  # noqa: F403 - its tests and its fixtures


@pytest.fixture
def arch() -> str:
    return "latent_flow"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model of the family, written once. Read only."""
    folder = write_flow_model(tmp_path_factory.mktemp("families") / "latent_flow")
    return lambda arch: folder
