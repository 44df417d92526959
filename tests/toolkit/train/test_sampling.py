from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.diffusers_reference import PIPELINE_MODULE, REFERENCES, memory_stores, open_tiny, psnr, recording
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


def sampler(adapter: QwenEditAdapter, *prompts: SamplePrompt) -> Sampler:
    return Sampler(adapter, prompts, ItemEncoder(adapter, torch.float32), memory_stores())


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


@pytest.fixture
def small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's references at the target's area, as `match_target_res` has them."""
    monkeypatch.setattr(f"{PIPELINE_MODULE}.VAE_IMAGE_SIZE", SIZE.width * SIZE.height)


CASES = {
    "1 reference, guided": sample_prompt(1),
    "2 references, guided": sample_prompt(2),
    "1 reference, not guided": sample_prompt(1, guidance_scale=1.0),
    "no negative prompt": sample_prompt(1, negative="", seed=7, steps=3),
    "one step": sample_prompt(1, steps=1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_seed_gives_the_picture_of_the_pipeline(pipeline, tiny_model: Path, small_references, case: str) -> None:
    prompt = CASES[case]
    ours = sampler(open_tiny(tiny_model, match_target_res=True), prompt).draw(0)
    at_least(f"sample, {case}, dB", psnr(as_png(ours), as_png(drawn_by_pipeline(pipeline, prompt))), 60)


@pytest.mark.slow
@pytest.mark.parametrize("references", [1, 2])
def test_a_seed_gives_the_picture_of_the_pipeline_with_full_references(
    pipeline, tiny_model: Path, references: int
) -> None:
    prompt = sample_prompt(references, Size(160, 96), steps=2)
    ours = sampler(open_tiny(tiny_model), prompt).draw(0)
    limit = f"sample, {references} references of 1024x1024 area, dB"
    at_least(limit, psnr(as_png(ours), as_png(drawn_by_pipeline(pipeline, prompt))), 60)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path) -> QwenEditAdapter:
    return open_tiny(tiny_model, match_target_res=True)


def latents_of(adapter: QwenEditAdapter, **changes) -> torch.Tensor:
    return sampler(adapter, sample_prompt(changes.pop("references", 0), **changes)).latents(0)


@pytest.mark.parametrize(
    "change",
    [{"seed": 43}, {"prompt": "a cat"}, {"negative": "dark"}, {"guidance_scale": 2.0}, {"references": 1}],
    ids=str,
)
def test_each_setting_changes_the_picture(adapter: QwenEditAdapter, change: dict) -> None:
    assert torch.equal(latents_of(adapter), latents_of(adapter))
    assert not torch.equal(latents_of(adapter), latents_of(adapter, **change))


@pytest.mark.parametrize(("guidance_scale", "calls_per_step"), [(1.0, 1), (4.0, 2)])
def test_guidance_costs_a_second_prediction(
    adapter: QwenEditAdapter, guidance_scale: float, calls_per_step: int
) -> None:
    with recording(adapter.network_module) as seen:
        latents_of(adapter, guidance_scale=guidance_scale, steps=3)
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
