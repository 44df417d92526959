"""The lines of docs/use_your_lora.md, run on the tiny model with a LoRA that a job has just trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "use_your_lora.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
LORA = "output/my_character_24gb/my_character_24gb.safetensors"


def test_they_are_ten_lines_besides_the_imports() -> None:
    lines = [line for line in CODE.splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(lines) == 10


def test_they_load_the_lora_of_a_job_and_draw_with_it(
    trainer: Callable[..., dict],
    write_job: Callable[..., Path],
    run_py: Callable,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = trainer(ROOT / "config/examples/photos/40_photo", train={"steps": 3, "lr": 0.05})
    trained = run_py(write_job(job, name="mine"), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    lora = tmp_path / "output" / "mine" / "mine.safetensors"
    here = {
        "Qwen/Qwen-Image-Edit-2509": tiny_model.as_posix(),
        LORA: lora.as_posix(),
        "torch.bfloat16": "torch.float32",
        "pipe.enable_model_cpu_offload()": "pipe.set_progress_bar_config(disable=True)",  # needs a GPU
        "num_inference_steps=40": "num_inference_steps=2, width=64, height=64, generator=torch.manual_seed(1)",
        "config/examples": (ROOT / "config/examples").as_posix(),
        "mychar.png": (tmp_path / "mychar.png").as_posix(),
    }
    code = CODE
    for there, ours in here.items():
        assert code.count(there) == 1, there
        code = code.replace(there, ours)
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as pipeline_module

    monkeypatch.setattr(pipeline_module, "VAE_IMAGE_SIZE", 64 * 64)
    drawn: dict = {}
    exec(code, drawn)
    assert (tmp_path / "mychar.png").is_file()

    with_it = np.asarray(drawn["result"].images[0])
    drawn["pipe"].set_adapters("mychar", 0.0)
    exec(code.splitlines()[-2], drawn)
    assert not np.array_equal(np.asarray(drawn["result"].images[0]), with_it)
