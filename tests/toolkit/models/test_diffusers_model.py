"""Families in diffusers layout that an extension adds."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from tests.processes import python
from tests.small_parts import SmallFamily, write_lumina2
from toolkit.errors import RunError, UserError
from toolkit.models.diffusers_model import write_shapes
from toolkit.models.families import ModelLoadOptions

FAMILY = """
from tests.small_parts import SmallFamily

class Mine(SmallFamily):
    model_class = f"{__package__}.model:MyModel"
"""

MODEL = """
from toolkit.models.diffusers_model import DiffusersModel

class MyModel(DiffusersModel):
    def prompt_text(self, prompt):
        return super().prompt_text("PREFIX" + prompt)
"""


@pytest.mark.slow
def test_other_code_of_an_extension_makes_other_cache_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_lumina2(tmp_path / "model")
    options = ModelLoadOptions(folder, torch.device("cpu"), torch.float32)
    package = tmp_path / "family_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "family.py").write_text(FAMILY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def keys(prefix: str) -> set[str]:
        """Those of texts and images, with this prefix of every prompt."""
        code = MODEL.replace("PREFIX", prefix)
        (package / "model.py").write_text(code, encoding="utf-8")
        family = importlib.import_module("family_of_mine.family").Mine()
        model = family.open(options)
        return {*model.cache_keys("text_encoder"), *model.cache_keys("vae")}

    first = keys("a photo of ")
    assert first == keys("a photo of ")
    assert not first & keys("a drawing of ")


@pytest.mark.slow
def test_a_list_of_blocks_that_is_left_out_is_named(tmp_path: Path) -> None:
    """Where the shapes are written, and where the weights are read."""
    named, left_out = ["layers", "noise_refiner"], "leaves out context_refiner of Lum"
    with pytest.raises(UserError, match=left_out):
        write_shapes(tmp_path / "x.json", "Lumina2Transformer2DModel", named, small={})
    misspelt = r"Lumina2Transformer2DModel has no list 'layer'\. Did you mean 'layers'"
    with pytest.raises(UserError, match=misspelt):
        write_shapes(tmp_path / "x.json", "Lumina2Transformer2DModel", ["layer"], a={})
    assert not (tmp_path / "x.json").exists()

    class Mine(SmallFamily):
        block_lists = tuple(named)

    folder = write_lumina2(tmp_path / "model")
    options = ModelLoadOptions(folder, torch.device("cpu"), torch.float32)
    with pytest.raises(RunError, match=left_out):
        Mine().open(options).part("transformer")


@pytest.mark.slow
def test_a_family_that_loads_its_parts_draws_no_bars_of_its_libraries() -> None:
    code = (
        "import toolkit.models.diffusers_model\n"
        "from transformers.utils.logging import is_progress_bar_enabled\n"
        "raise SystemExit(is_progress_bar_enabled())"
    )
    python(code)
