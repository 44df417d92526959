"""What the licence of Krea 2 asks of a published LoRA, and its names in other programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import Krea2Pipeline
from safetensors.torch import load_file, save_file

from jobs.dry_run import plan_job
from tests.extensions.krea2.small import write_krea2
from tests.faults.conftest import draw_pictures
from tests.running import run_tool
from toolkit.config import load_job
from toolkit.extension import discover

NOTICE = "Krea 2 is licensed under the Krea 2 Community License Agreement. "


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run, with its job."""
    monkeypatch.chdir(tmp_path)
    write_krea2(tmp_path / "model")
    section = {
        "type": "sd_trainer",
        "network": {"type": "lora", "linear": 4},
        "datasets": [{"folder_path": str(draw_pictures(tmp_path / "photos", "a"))}],
        "train": {"steps": 2},
        "model": {"name_or_path": str(tmp_path / "model")},
    }
    folder = tmp_path / "output" / "mine"
    folder.mkdir(parents=True)
    config = {"name": "mine", "process": [section]}
    (folder / "config.yaml").write_text(
        json.dumps({"job": "extension", "config": config})
    )
    (folder / "run.json").write_text('{"status": "finished", "name": "mine"}')
    layer = "transformer.transformer_blocks.0.attn.to_gate"
    ends = {"lora_A": torch.ones(4, 96), "lora_B": torch.ones(96, 4)}
    save_file(
        {f"{layer}.{end}.weight": matrix for end, matrix in ends.items()},
        folder / "mine.safetensors",
    )
    return folder


@pytest.mark.parametrize(
    ("repo", "text", "missing"),
    [
        ("me/krea-mine", "LICENSE.pdf", []),
        ("me/mine", "README.txt", ["repo: mine: ", "LICENSE: "]),
    ],
)
def test_publish_writes_a_notice_and_warns_of_the_name_and_the_text(
    run: Path, said: list[str], repo: str, text: str, missing: list[str]
) -> None:
    (run.parents[1] / "model" / text).write_text("the agreement")
    run_tool("publish", [run, "--repo", repo, "--preview", "preview"])
    told = [line for line in said if "licence of the base model asks" in line]
    assert len(told) == len(missing) and all(map(str.startswith, told, missing))
    assert Path("preview/NOTICE").read_text().startswith(NOTICE)
    assert Path("preview/LICENSE.pdf").exists() == (not missing)
    card = Path("preview/README.md").read_text()
    assert "license_name: krea-2-community-license" in card and "****" not in card
    assert f"\n{NOTICE}" in card


def test_the_card_of_the_turbo_has_its_steps_and_no_guidance(run: Path) -> None:
    """The pipeline's defaults are for Raw."""
    index = run.parents[1] / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": True}))
    run_tool("publish", [run, "--repo", "me/krea-mine", "--preview", "preview"])
    card = Path("preview/README.md").read_text()
    assert "num_inference_steps=8, guidance_scale=0.0).images" in card


@pytest.mark.parametrize(
    ("program", "stem"),
    [
        ("aitk", "diffusion_model.blocks.0.attn.gate"),
        ("musubi", "lora_unet_blocks_0_attn_gate"),
        ("comfyui", "transformer.transformer_blocks.0.attn.to_gate"),
        ("diffusers", "transformer.transformer_blocks.0.attn.to_gate"),
    ],
)
def test_convert_writes_the_names_that_a_program_has_for_the_layers(
    run: Path, program: str, stem: str
) -> None:
    run_tool(
        "convert", [run / "mine.safetensors", "other.safetensors", "--to", program]
    )
    tensors = load_file("other.safetensors")
    assert {key.partition(".lora_")[0].removesuffix(".alpha") for key in tensors} == {
        stem
    }
    if program in ("aitk", "diffusers"):
        pipeline = Krea2Pipeline.from_pretrained(run.parents[1] / "model")
        pipeline.load_lora_weights("other.safetensors")
        assert pipeline.transformer.transformer_blocks[0].attn.to_gate.lora_A


def test_a_file_whose_layers_qwen_image_has_too_is_of_the_model_it_names(
    tmp_path: Path,
) -> None:
    stem = "transformer.transformer_blocks.0.attn.to_q"
    given, written = tmp_path / "given.safetensors", tmp_path / "written.safetensors"
    tensors = {
        f"{stem}.lora_A.weight": torch.ones(4, 6144),
        f"{stem}.lora_B.weight": torch.ones(6144, 4),
    }
    save_file(tensors, given, {"modelspec.architecture": "Krea-2/lora"})
    run_tool("resize", [given, written, "--rank", "1"])
    assert load_file(written).keys() == tensors.keys()


def test_the_plan_tells_what_the_licence_asks(run: Path) -> None:
    plan = plan_job(load_job(run / "config.yaml", discover().find_config)).render()
    assert (
        'licence: what you publish of this training must have a name that begins with "Krea" and include the licence'
        in plan
    )
