import math
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.diffusers_reference import (
    PIPELINE_MODULE,
    REFERENCES,
    load_pipeline,
    memory_stores,
    open_tiny,
    psnr,
    recording,
)
from tests.measured import at_least
from toolkit.contracts import Size
from toolkit.data.encode import ItemEncoder
from toolkit.models.qwen_edit.adapter import QwenEditAdapter
from toolkit.train.sampling import SamplePrompt, Sampler, to_picture

SIZE = Size(128, 96)


def sample_prompt(references: int, size: Size = SIZE, **changes) -> SamplePrompt:
    settings = {
        "prompt": "a cup of coffee, natural light",
        "negative": "blurry, low quality",
        "seed": 42,
        "guidance_scale": 4.0,
        "steps": 4,
    }
    return SamplePrompt(size=size, references=REFERENCES[:references], **{**settings, **changes})


SHARED = memory_stores()
"""Entries are kept by content and model: what one test encoded, another need not encode again."""


def sampler(adapter: QwenEditAdapter, *prompts: SamplePrompt) -> Sampler:
    return Sampler(adapter, prompts, ItemEncoder(adapter, torch.float32), SHARED)


def as_png(picture: Image.Image) -> Image.Image:
    data = BytesIO()
    picture.save(data, "PNG")
    return Image.open(data)


def drawn_by_pipeline(pipeline, prompt: SamplePrompt) -> Image.Image:
    return pipeline(
        image=[Image.open(path).convert("RGB") for path in prompt.references],
        prompt=prompt.prompt,
        negative_prompt=prompt.negative or " ",
        true_cfg_scale=prompt.guidance_scale,
        width=prompt.size.width,
        height=prompt.size.height,
        num_inference_steps=prompt.steps,
        generator=torch.Generator("cpu").manual_seed(prompt.seed),
    ).images[0]


FACTORS = {"txt_in.weight": 20, "attn.add_v_proj.weight": 10, "attn.to_out.0.weight": 5, "proj_out.weight": 3}


@pytest.fixture(scope="module")
def vivid_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with louder weights: text, guidance and references are plainly seen in the picture."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("vivid") / "model")
    for shard in (folder / "transformer").glob("*.safetensors"):
        weights = load_file(shard)
        for name in weights:
            weights[name] *= next((factor for end, factor in FACTORS.items() if name.endswith(end)), 1)
        save_file(weights, shard)
    return folder


@pytest.fixture(scope="module")
def vivid_pipeline(vivid_model: Path):
    return load_pipeline(vivid_model)


@pytest.fixture
def small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's references at the target's area, as `match_target_res` has them."""
    monkeypatch.setattr(f"{PIPELINE_MODULE}.VAE_IMAGE_SIZE", SIZE.width * SIZE.height)


CASES = {
    "1 reference, guided": sample_prompt(1),
    "1 reference, strongly guided": sample_prompt(1, guidance_scale=20.0),
    "2 references, guided": sample_prompt(2),
    "1 reference, not guided": sample_prompt(1, guidance_scale=1.0),
    "no negative prompt": sample_prompt(1, negative="", seed=7, steps=3),
}


@pytest.mark.parametrize("case", CASES)
def test_a_seed_gives_the_picture_of_the_pipeline(
    vivid_pipeline, vivid_model: Path, small_references, case: str
) -> None:
    prompt = CASES[case]
    ours = sampler(open_tiny(vivid_model, match_target_res=True), prompt).draw(0)
    at_least(f"sample, {case}, dB", psnr(as_png(ours), as_png(drawn_by_pipeline(vivid_pipeline, prompt))), 60)


def test_a_shift_is_the_static_one_of_the_pipelines_scheduler(
    vivid_pipeline, vivid_model: Path, small_references, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = vivid_pipeline.scheduler
    static = type(usual).from_config(usual.config, use_dynamic_shifting=False, shift=3.0)
    monkeypatch.setattr(vivid_pipeline, "scheduler", static)
    prompt = sample_prompt(1, flow_shift=3.0)
    ours = sampler(open_tiny(vivid_model, match_target_res=True), prompt).draw(0)
    at_least("sample, static shift, dB", psnr(as_png(ours), as_png(drawn_by_pipeline(vivid_pipeline, prompt))), 60)


@pytest.mark.slow
@pytest.mark.parametrize("references", [1, 2])
def test_a_seed_gives_the_picture_of_the_pipeline_with_full_references(
    vivid_pipeline, vivid_model: Path, references: int
) -> None:
    prompt = sample_prompt(references, Size(160, 96), steps=2)
    ours = sampler(open_tiny(vivid_model), prompt).draw(0)
    limit = f"sample, {references} references of 1024x1024 area, dB"
    at_least(limit, psnr(as_png(ours), as_png(drawn_by_pipeline(vivid_pipeline, prompt))), 60)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path) -> QwenEditAdapter:
    return open_tiny(tiny_model, match_target_res=True)


CHANGES = [
    {"seed": 43},
    {"prompt": "a cat"},
    {"negative": "dark"},
    {"guidance_scale": 2.0},
    {"guidance_scale": 1.0},
    {"references": 1},
    {"flow_shift": 8.0},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_each_setting_is_seen_in_the_picture(vivid_model: Path, change: dict) -> None:
    """Further than the 60 dB above allow: otherwise they would say nothing of this setting."""
    adapter = open_tiny(vivid_model, match_target_res=True)
    usual = sampler(adapter, sample_prompt(0)).draw(0)
    changed = sampler(adapter, sample_prompt(change.pop("references", 0), **change)).draw(0)
    assert psnr(sampler(adapter, sample_prompt(0)).draw(0), usual) == math.inf
    assert psnr(changed, usual) < 55


def test_the_length_of_guided_velocities_is_seen_in_the_picture(vivid_model: Path) -> None:
    adapter = open_tiny(vivid_model, match_target_res=True)
    prompt = sample_prompt(1, guidance_scale=20.0)
    usual = sampler(adapter, prompt).draw(0)
    adapter.guide = lambda cond, uncond, scale: uncond + scale * (cond - uncond)
    assert psnr(sampler(adapter, prompt).draw(0), usual) < 55


@pytest.mark.parametrize(("guidance_scale", "calls_per_step"), [(1.0, 1), (4.0, 2)])
def test_guidance_costs_a_second_prediction(
    adapter: QwenEditAdapter, guidance_scale: float, calls_per_step: int
) -> None:
    with recording(adapter.blocks()[0]) as seen:
        sampler(adapter, sample_prompt(0, guidance_scale=guidance_scale, steps=3)).latents(0)
    assert len(seen.inputs) == 3 * calls_per_step


def test_after_encode_drawing_needs_only_the_vae(tiny_model: Path) -> None:
    adapter = open_tiny(tiny_model, match_target_res=True)
    drawing = sampler(adapter, sample_prompt(1, steps=1), sample_prompt(0, steps=1, guidance_scale=1.0))
    reports: list[tuple[str, int, int]] = []
    drawing.encode(lambda *report: reports.append(report))
    # One reference, its prompt and its negative; then a prompt alone.
    assert reports == [("sample prompts", done, 4) for done in (1, 2, 3, 4)]
    adapter.drop_encoders(keep=["vae"])
    assert [drawing.draw(index).size for index in (0, 1)] == [SIZE, SIZE]
    assert "text_encoder" not in adapter._parts


def test_drawing_leaves_the_random_state_and_the_weights_alone(adapter: QwenEditAdapter) -> None:
    state = torch.get_rng_state()
    weights = {name: p.clone() for name, p in adapter.network_module.named_parameters()}
    sampler(adapter, sample_prompt(1, steps=1)).draw(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, weights[name]) for name, p in adapter.network_module.named_parameters())


def test_pixels_are_rounded_to_the_nearest_of_256() -> None:
    values: Sequence[float] = [-1.0, 1.0, 0.0, -2.0, 2.0, 2 * (100.4 / 255) - 1]
    pixels_BCHW = torch.tensor(values).expand(1, 3, 1, len(values))
    assert [picture[0] for picture in to_picture(pixels_BCHW).getdata()] == [0, 255, 128, 0, 255, 100]
