"""Which model a LoRA belongs to: by the job of its run, or by its metadata."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from extensions.tools.shared.image_files import picture_name
from extensions.tools.shared.run_job import (
    decoder_note,
    last_saved,
    loras_by_step,
    model_of,
)
from tests.running import section_of
from toolkit.config.sections.model import ModelConfig
from toolkit.errors import UserError
from toolkit.files import redact


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a model in `models/mine`; the working directory is another."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "model_index.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def write_lora(path: Path, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x.alpha": torch.ones(1)}, path, metadata)
    return path


def test_one_file_stands_for_each_step(tmp_path: Path) -> None:
    """The final one, else the main one; a final file of no step is the last."""
    steps = [f"run_{step:09d}" for step in (1, 2)]
    for name in (*steps, f"{steps[0]}_lora", "run_best"):
        write_lora(tmp_path / "run" / f"{name}.safetensors")
    final = write_lora(
        tmp_path / "run" / "run.safetensors", training_info='{"step": 2}'
    )
    names = [file.path.stem for file in loras_by_step(final.parent)]
    assert names == [steps[0], "run"] and last_saved(final.parent) == final
    write_lora(final)
    names = [file.path.stem for file in loras_by_step(final.parent)]
    assert names == [*steps, "run"] and last_saved(final.parent) == final


def test_the_job_beside_the_file_says_it_though_its_dataset_is_gone(
    here: Path, trainer, write_job
) -> None:
    model = {"name_or_path": "models/mine", "quantize": True, "qtype": "int4"}
    job = write_job(trainer(here / "gone", model=model), name="run")
    file = write_lora(
        here / "output" / "run" / "run.safetensors", base_model="another/model"
    )
    job.rename(file.with_name("config.yaml"))
    file.with_name("run.json").write_text(
        json.dumps({"name": "run", "status": "finished"})
    )
    found = model_of(file)
    assert found == ModelConfig(
        name_or_path=str(here / "models" / "mine"), quantize=True, qtype="int4"
    )


def test_what_a_run_decodes_its_samples_with_is_told(
    here: Path, trainer, write_job
) -> None:
    for sample, note in (
        (None, ""),
        ({"prompts": ["a"]}, ""),
        (
            {"prompts": ["a"], "vae_path": "./fix.safetensors"},
            "images are decoded with the VAE of the model, the samples of this run with another one. To decode as they "
            "do, give --model and --vae-path fix.safetensors",
        ),
    ):
        job = write_job(
            trainer(
                here / "gone", model={"name_or_path": "models/mine"}, sample=sample
            ),
            name="run",
        )
        file = write_lora(here / "output" / "run" / "run.safetensors")
        job.rename(file.with_name("config.yaml"))
        file.with_name("run.json").write_text(
            json.dumps({"name": "run", "status": "finished"})
        )
        assert decoder_note(file) == note
    assert decoder_note(write_lora(here / "models" / "a.safetensors")) == ""


def test_the_flags_that_the_note_gives_are_flags(
    here: Path, trainer, write_job, tiny_model: Path
) -> None:
    vae = tiny_model / "vae" / "diffusion_pytorch_model.safetensors"
    model = {"name_or_path": str(tiny_model)}
    sample = {"prompts": ["a"], "vae_path": str(vae)}
    job = write_job(trainer(here / "gone", model=model, sample=sample), name="run")
    file = write_lora(here / "output" / "run" / "run.safetensors")
    job.rename(file.with_name("config.yaml"))
    file.with_name("run.json").write_text('{"name": "run", "status": "finished"}')
    flags = decoder_note(file).partition("give --model and ")[2].split()
    section = section_of(
        "generate", ["--model", str(tiny_model), *flags, "--prompt", "x"]
    )
    assert section.model.vae_path == str(vae)


@pytest.mark.parametrize(("written", "found"), [
    ({"base_model": "Qwen/Qwen-Image-Edit-2511"}, "Qwen/Qwen-Image-Edit-2511"),
    ({"base_model": "mine"}, "models/mine"),
    ({"base_model": "somebody/large"}, "its model 'somebody/large' was not found on this machine. Give a model"),
    ({}, r"its model is unknown: it is not in the folder of a run \(config.yaml\)"),
])  # fmt: skip
def test_the_metadata_name_a_published_model_or_one_that_is_here(
    here: Path, written: dict, found: str
) -> None:
    """Nothing is downloaded because a file says so, unless it is a published model."""
    file = write_lora(here / "models" / "a.safetensors", **written)
    if found.startswith("its"):
        with pytest.raises(UserError, match=found):
            model_of(file)
    else:
        assert model_of(file).name_or_path in (found, str(here / found))


# ------------------------------------------------------------ names of PNG files


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("A red fox, asleep!", "a-red-fox-asleep"),
        ("photo of Zq81.xx_04-Pass by", "photo-of-redacted-by"),
        ("photo of zQ81.XX_04-pASS", "photo-of-redacted"),
        (
            "a secret that the length would cut Zq81.xx_04-Pass",
            "a-secret-that-the-length-would-cut-redac",
        ),
        ("hf_aB3aB3aB3aB3aB3aB3aB3aB3", "redacted"),
        ("?", "picture"),
    ],
)
def test_a_name_has_words_of_the_prompt_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, prompt: str, words: str
) -> None:
    for name, value in (("_values", set()), ("_forms", []), ("_known", None)):
        monkeypatch.setattr(redact, name, value)
    redact.register_secret(["Zq81.xx_04-Pass"])
    settings = {"prompt": prompt, "seed": 7, "reference": [], "lora": [], "model": {}}
    assert re.fullmatch(rf"{words}_7_[0-9a-f]{{10}}\.png", picture_name(settings))
