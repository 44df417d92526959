"""Modules by the names that they had in 0.2, as extensions of that time import them."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT, child_environment
from toolkit.old_names import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_gives_the_module_that_moved(old: str) -> None:
    module = import_module(MOVED[old])
    assert import_module(old) is module
    assert (
        module.__spec__ is not None
        and module.__spec__.name == module.__name__ == MOVED[old]
    )


def test_the_folder_of_sections_has_what_the_module_had() -> None:
    from toolkit.config.sections import TrainerConfig  # type: ignore[attr-defined]
    from toolkit.config.sections.trainer import TrainerConfig as there

    assert TrainerConfig is there
    assert find_spec("toolkit.config.sections.nothing") is None
    assert not hasattr(import_module("toolkit.config.sections"), "NothingConfig")


def test_an_extension_of_the_older_shape_loads(tmp_path) -> None:
    """Its imports are those that the documentation of 0.2 showed."""
    folder = tmp_path / "older"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from toolkit.extension import Extension\n\n\n"
        "class Older(Extension):\n"
        '    uid = "older"\n    process = ".process:OlderProcess"\n    config = ".config:OlderConfig"\n\n\n'
        "AI_TOOLKIT_EXTENSIONS = [Older]\n"
    )
    (folder / "config.py").write_text(
        "from toolkit.config.field_types import PathStr\n"
        "from toolkit.config.process import ProcessConfig\n"
        "from toolkit.config.sections import TrainerConfig\n\n\n"
        "class OlderConfig(ProcessConfig):\n    folder_path: PathStr\n"
    )
    (folder / "process.py").write_text(
        "from jobs.process import BaseExtensionProcess\n"
        "from toolkit.data.types import Batch\n"
        "from toolkit.models.interface import DiffusionModel\n\n\n"
        "class OlderProcess(BaseExtensionProcess):\n"
        "    def run(self):\n"
        "        super().run()\n"
        "        print(self.section.folder_path, DiffusionModel.__module__)\n"
    )
    job = tmp_path / "job.yaml"
    job.write_text(
        f'job: extension\nconfig:\n  name: a\n  process:\n    - type: older\n      folder_path: "{folder.as_posix()}"\n'
    )
    result = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), str(job)],
        cwd=tmp_path,
        env=child_environment({"EXTENSIONS_PATH": str(folder)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"{folder.as_posix()} toolkit.contracts.model" in result.stdout
