"""docs/use_your_lora.md as it stands: every block in its order, in a folder with two
LoRAs that jobs have trained."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.diffusers_reference import PIPELINE_MODULE

PAGE = (ROOT / "docs" / "use_your_lora.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
PHOTOS = "config/examples/photos"
HUB = "Qwen/Qwen-Image-Edit-2509"
SMALL: dict[str, Any] = {"num_inference_steps": 2, "width": 64, "height": 64}


def test_the_lines_for_diffusers_are_few() -> None:
    """Statements: how wide a line may be says nothing about how much there is to do."""
    for language, code in BLOCKS:
        if language == "python":
            body = ast.parse(code).body
            assert len([node for node in body if not is_import(node)]) <= 12


def assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name


def is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


@pytest.fixture
def make_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines sample in two steps at 64 x 64 pixels, whatever they are asked for; the
    same noise for each call."""
    monkeypatch.setattr(f"{PIPELINE_MODULE}.VAE_IMAGE_SIZE", 64 * 64)
    for name in ("QwenImagePipeline", "QwenImageEditPlusPipeline"):
        pipeline = getattr(diffusers, name)
        own = inspect.unwrap(pipeline.__call__)

        def smaller(self: Any, own: Callable = own, **asked: Any) -> Any:
            with torch.no_grad():
                return own(
                    self, **{**asked, **SMALL, "generator": torch.manual_seed(1)}
                )

        monkeypatch.setattr(pipeline, "__call__", smaller)


@pytest.mark.slow
def test_every_block_runs_as_one_reads(
    trainer: Callable[..., dict],
    write_job: Callable[..., Path],
    run_py: Callable,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_smaller: None,
) -> None:
    """The published model is the tiny one, in a local folder of its name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / PHOTOS, tmp_path / PHOTOS)
    (tmp_path / HUB).parent.mkdir()
    (tmp_path / HUB).symlink_to(tiny_model)
    photos = tmp_path / PHOTOS / "40_photo"
    model = {"name_or_path": HUB, "model_kwargs": {"match_target_res": True}}
    sampled = {
        "samples": [{"prompt": "a cup", "width": 64, "height": 64, "sample_steps": 2}],
        "sample_every": 0,
    }
    small = {"train": {"steps": 3, "lr": 0.05}, "model": model, "sample": sampled}
    character = trainer(photos, **small)
    edit = trainer(photos, **small)
    edit["datasets"][0] |= {"control_path": str(photos)}
    for name, job in {"my_char": character, "my_edit": edit}.items():
        trained = run_py(write_job(job, name=name))
        assert trained.returncode == 0, trained.stderr

    for language, code in BLOCKS:
        if language == "python":
            shows_its_lora(code)
            continue
        for line in code.splitlines():
            python, program, *arguments = shlex.split(line)
            assert (python, program) == (".venv/bin/python", "run.py")
            short = (
                ["--width", 64, "--height", 64, "--steps", 2]
                if arguments[0] == "generate"
                else []
            )
            done = run_py(*arguments, *short)
            assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "generated").glob("*.png"))) == 2
    assert {"my_char.png", "edited.png", "my_char_comfyui.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }


def shows_its_lora(code: str) -> None:
    """Runs the lines; the image they save is another one without the LoRA."""
    drawn: dict[str, Any] = {}
    exec(code, drawn)
    with_it = np.asarray(drawn["result"].images[0])
    drawn["pipe"].disable_lora()
    (call,) = [node for node in ast.parse(code).body if assigns(node, "result")]
    exec(ast.unparse(call), drawn)
    assert not np.array_equal(np.asarray(drawn["result"].images[0]), with_it)
