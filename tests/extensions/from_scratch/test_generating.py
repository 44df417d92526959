"""`run.py generate` with a flow model."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from tests.diffusers_reference import REFERENCES, psnr
from tests.extensions.from_scratch.flow_models import write_flow_model
from tests.extensions.tools.generate.test_process import generate, write_lora  # noqa: F401 - a fixture
from tests.running import run_job
from toolkit.errors import RunError, UserError
from toolkit.train.sampling import Sampler


@pytest.mark.slow
def test_a_flow_model_draws_from_text_and_takes_no_references(
    generate,  # noqa: F811
    tmp_path: Path,
    write_job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = write_flow_model(tmp_path / "model", positions=32)
    lora = write_lora(model, tmp_path / "lora.safetensors")
    line = f"--model {model} --prompt 'a cat' --steps 2 --dtype float32 --device cpu --output out"
    keys = {
        "model": {"name_or_path": str(model)},
        "prompt": "a cat",
        "steps": 2,
        "dtype": "fp32",
        "output": "out",
    }
    run_job(write_job({"type": "generate", **keys}))
    (made,) = (tmp_path / "out").iterdir()
    assert generate(line) == [made], "the keys of a job are the flags of the command"
    plain, changed = Image.open(made), Image.open(generate(f"{line} --lora {lora}")[-1])
    assert plain.size == (128, 128) and psnr(plain, changed) < 60
    monkeypatch.setattr(
        Sampler,
        "latents",
        Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.")),
    )
    with pytest.raises(RunError, match="Give --quantize"):
        generate(f"{line} --seed 7")
    with pytest.raises(
        UserError, match="1 control images: latent flow model takes none"
    ):
        generate(f"{line} --reference {REFERENCES[0]}")
    with pytest.raises(
        UserError,
        match="size 256x64: this model generates images with sides of 4 to 128 pixels",
    ):
        generate(f"{line} --width 256 --height 64")
