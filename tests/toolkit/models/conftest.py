from pathlib import Path

import pytest

from tests.model_folders import ARCHS
from toolkit.models.tiny import TinySpec, write_tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family, as the folder of a pipeline."""
    made = {arch: tmp_path_factory.mktemp("model") for arch in ARCHS}
    for arch, folder in made.items():
        write_tiny_model(folder, TinySpec(arch=arch))
    return made
