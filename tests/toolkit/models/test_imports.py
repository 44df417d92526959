"""Packages that a library need not import."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from tests.processes import python
from toolkit.models.imports import block_import


def test_inside_the_block_a_module_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with block_import("wave", "no.such"):
        assert find_spec("wave") is None
        with pytest.raises(ImportError):
            import_module("wave")
    assert import_module("wave").__name__ == "wave"


def test_what_is_imported_already_stays() -> None:
    with block_import("json", "no.such"):
        assert import_module("json") is sys.modules["json"]
    assert "json" in sys.modules


@pytest.mark.parametrize("found", [True, False])
def test_a_library_that_has_found_it_is_not_told_something_else(
    monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    monkeypatch.setattr("json._wave_available", found, raising=False)
    with block_import("wave", "json"):
        assert (find_spec("wave") is not None) is found


def test_a_failure_inside_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with pytest.raises(ValueError, match="inside"), block_import("wave", "no.such"):
        raise ValueError("inside")
    assert "wave" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen_image", "krea2", "z_image", "flux2_klein"])
def test_a_job_without_an_8_bit_optimizer_never_imports_bitsandbytes(
    family: str,
) -> None:
    program = """
import sys
from pathlib import Path
import torch
from toolkit.config.sections.model_files import family_named
from toolkit.models.families import ModelLoadOptions

options = ModelLoadOptions(Path("no_such_folder"), torch.device("cpu"), torch.float32)
family_named(sys.argv[1]).open(options)
import toolkit.models.tiny, extensions.sd_trainer.process
from toolkit.networks.lora import LoraNetwork
from toolkit.optim.optimizers import build_optimizer

LoraNetwork(["0"], 2, 2, 0.0, 0).attach(model := torch.nn.Sequential(torch.nn.Linear(8, 8)))
build_optimizer("adamw", model.parameters(), 1e-3, {})
assert "bitsandbytes" not in sys.modules
build_optimizer("adamw8bit", model.parameters(), 1e-3, {})
assert "bitsandbytes" in sys.modules
"""
    python(program, family)
