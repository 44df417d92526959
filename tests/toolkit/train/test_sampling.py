import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from tests.diffusers_reference import (
    PIPELINE_MODULE,
    REFERENCES,
    drawn_by_pipeline,
    memory_stores,
    open_tiny,
    psnr,
    recording,
    relative,
)
from tests.measured import at_least, at_most
from toolkit.contracts.data import Size
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.models.qwen_image.forward import pack
from toolkit.models.qwen_image.model import QwenImageModel
from toolkit.train.sampling import SamplePrompt, Sampler, SamplingInterrupted, to_pil

SIZE = Size(96, 64)


def sample_prompt(references: int, size: Size = SIZE, **changes) -> SamplePrompt:
    settings = {
        "prompt": "a cup of coffee, natural light",
        "negative": "blurry, low quality",
        "seed": 42,
        "guidance_scale": 4.0,
        "steps": 4,
    }
    return SamplePrompt(
        size=size, references=REFERENCES[:references], **{**settings, **changes}
    )


SHARED = memory_stores()
"""Entries are kept by content and model: what one test encoded, another need not encode
again."""


def sampler(model: QwenImageModel, *prompts: SamplePrompt, **more) -> Sampler:
    return Sampler(model, prompts, ItemEncoder(model, torch.float32), SHARED, **more)


def as_png(picture: Image.Image) -> Image.Image:
    data = BytesIO()
    picture.save(data, "PNG")
    return Image.open(data)


CASES = {
    "1 reference, guided": sample_prompt(1),
    "1 reference, strongly guided": sample_prompt(1, guidance_scale=20.0),
    "2 references, guided, wide": sample_prompt(2, Size(96, 48)),
    "3 references, guided, tall": sample_prompt(3, Size(48, 80)),
    "1 reference, not guided": sample_prompt(1, guidance_scale=1.0),
    "no negative prompt": sample_prompt(1, negative="", seed=7, steps=3),
}


@pytest.fixture
def small_references(monkeypatch: pytest.MonkeyPatch) -> Callable[[Size], None]:
    """The pipeline's references at the target's area, as `match_target_res` has
    them."""
    return lambda size: monkeypatch.setattr(
        f"{PIPELINE_MODULE}.VAE_IMAGE_SIZE", size.width * size.height
    )


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=[pytest.mark.slow]
            * case.startswith(("2 references", "3 references", "no negative")),
        )
        for case in CASES
    ],
)
def test_a_seed_gives_the_picture_of_the_pipeline(
    unit_gain_pipeline, unit_gain_model: Path, small_references, case: str
) -> None:
    """The 8-bit images, and the latents beside what another prompt changes of them: a
    text that hardly reaches the image would prove nothing.
    """
    prompt = CASES[case]
    small_references(prompt.size)
    model = open_tiny(unit_gain_model, reference_area=0)
    ours = sampler(model, prompt)
    theirs = as_png(drawn_by_pipeline(unit_gain_pipeline, prompt))
    at_least(f"sample, {case}, dB", psnr(as_png(ours.generate(0)), theirs), 60)
    latents_BSP = pack(ours.latents(0))
    other_BSP = pack(
        sampler(model, replace(prompt, prompt="a rocket before launch")).latents(0)
    )
    error_BSP = latents_BSP - drawn_by_pipeline(
        unit_gain_pipeline, prompt, output_type="latent"
    )
    share = float(error_BSP.norm() / (latents_BSP - other_BSP).norm())
    at_most(f"sample, {case}, error of what another prompt changes", share, 0.02)


@pytest.mark.slow
@torch.no_grad()
def test_the_transformer_is_told_the_pipelines_noise_levels_in_bf16(
    unit_gain_pipeline,
    unit_gain_model: Path,
    small_references,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pipeline rounds 1000 t to the type of its latents and divides there: another
    number than t rounded once."""
    prompt = sample_prompt(1, Size(64, 64), guidance_scale=1.0, steps=12)
    small_references(prompt.size)
    half = {
        part: copy.deepcopy(getattr(unit_gain_pipeline, part)).to(torch.bfloat16)
        for part in ("transformer", "vae")
    }
    for part, module in half.items():
        monkeypatch.setattr(unit_gain_pipeline, part, module)
    encode = unit_gain_pipeline.encode_prompt
    in_half = lambda **given: tuple(  # noqa: E731
        x if x is None else x.bfloat16() for x in encode(**given)
    )
    monkeypatch.setattr(unit_gain_pipeline, "encode_prompt", in_half)
    with recording_levels(half["transformer"]) as theirs:
        drawn_by_pipeline(unit_gain_pipeline, prompt)
    model = open_tiny(unit_gain_model, torch.bfloat16, reference_area=0)
    with recording_levels(model.network_module) as ours:
        Sampler(
            model, [prompt], ItemEncoder(model, torch.bfloat16), memory_stores()
        ).latents(0)
    assert len(ours) == prompt.steps
    assert ours == theirs
    rounded_once = sampler(model, prompt)._sigmas(prompt)[:-1].bfloat16().tolist()
    assert ours != rounded_once


@contextmanager
def recording_levels(transformer: torch.nn.Module) -> Iterator[list[float]]:
    """The noise level of each call of `transformer`, as its embedding of the noise
    level gets it."""
    levels: list[float] = []
    handle = transformer.time_text_embed.register_forward_pre_hook(
        lambda _, inputs: levels.append(float(inputs[0][0]))
    )
    try:
        yield levels
    finally:
        handle.remove()


def test_a_shift_is_the_static_one_of_the_pipelines_scheduler(
    unit_gain_pipeline,
    unit_gain_model: Path,
    small_references,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = unit_gain_pipeline.scheduler
    static = type(usual).from_config(
        usual.config, use_dynamic_shifting=False, shift=3.0
    )
    monkeypatch.setattr(unit_gain_pipeline, "scheduler", static)
    prompt = sample_prompt(1, flow_shift=3.0)
    small_references(prompt.size)
    ours = sampler(open_tiny(unit_gain_model, reference_area=0), prompt).generate(0)
    at_least(
        "sample, static shift, dB",
        psnr(as_png(ours), as_png(drawn_by_pipeline(unit_gain_pipeline, prompt))),
        60,
    )


def test_levels_that_are_not_stretched_are_those_of_lightnings_scheduler(
    adapter: QwenImageModel,
) -> None:
    """`scheduler_config` of ModelTC/Qwen-Image-Lightning,
    generate_with_diffusers.py."""
    config = {
        "base_shift": math.log(3),
        "max_shift": math.log(3),
        "max_image_seq_len": 8192,
        "shift_terminal": None,
    }
    theirs = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="exponential", **config
    )
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=math.log(3))
    prompt = sample_prompt(0, steps=4, flow_shift=3.0, stretched=False)
    torch.testing.assert_close(sampler(adapter, prompt)._sigmas(prompt), theirs.sigmas)
    usual = replace(prompt, stretched=True)
    assert sampler(adapter, usual)._sigmas(usual)[-2] < theirs.sigmas[-2]


@pytest.mark.slow
def test_a_seed_gives_the_picture_of_the_pipeline_with_a_full_reference(
    unit_gain_pipeline, unit_gain_model: Path
) -> None:
    prompt = sample_prompt(1, Size(160, 96), guidance_scale=1.0, steps=2)
    ours = sampler(open_tiny(unit_gain_model), prompt).generate(0)
    at_least(
        "sample, a reference of 1024x1024 area, dB",
        psnr(as_png(ours), as_png(drawn_by_pipeline(unit_gain_pipeline, prompt))),
        60,
    )


@pytest.fixture(scope="module")
def adapter(tiny_model: Path) -> QwenImageModel:
    return open_tiny(tiny_model, reference_area=0)


CHANGES = [
    {"seed": 43},
    {"prompt": "a cat"},
    {"negative": "dark"},
    {"guidance_scale": 2.0},
    {"guidance_scale": 1.0},
    {"references": 1},
    {"flow_shift": 8.0},
]


@pytest.mark.slow
def test_each_setting_is_seen_in_the_picture(unit_gain_model: Path) -> None:
    """Further than the 60 dB above allow: otherwise they would say nothing of this
    setting."""
    model = open_tiny(unit_gain_model, reference_area=0)
    usual = sampler(model, sample_prompt(0)).generate(0)
    assert psnr(sampler(model, sample_prompt(0)).generate(0), usual) == math.inf
    for change in CHANGES:
        changed = sampler(model, sample_prompt(**{"references": 0, **change})).generate(
            0
        )
        assert psnr(changed, usual) < 55, change


def test_the_length_of_guided_velocities_is_seen_in_the_latents(
    unit_gain_model: Path,
) -> None:
    """Further than the errors above allow."""
    model = open_tiny(unit_gain_model, reference_area=0)
    prompt = sample_prompt(1, guidance_scale=20.0)
    usual = sampler(model, prompt).latents(0)
    model.apply_cfg = lambda cond, uncond, scale: uncond + scale * (cond - uncond)
    assert relative(sampler(model, prompt).latents(0), usual) > 1e-3


@pytest.mark.parametrize(("guidance_scale", "calls_per_step"), [(1.0, 1), (4.0, 2)])
def test_guidance_costs_a_second_prediction(
    adapter: QwenImageModel, guidance_scale: float, calls_per_step: int
) -> None:
    with recording(adapter.blocks()[0]) as seen:
        sampler(
            adapter, sample_prompt(0, guidance_scale=guidance_scale, steps=3)
        ).latents(0)
    assert len(seen.inputs) == 3 * calls_per_step


def test_each_step_of_an_image_is_reported_and_can_stop_it(
    adapter: QwenImageModel,
) -> None:
    seen: list[tuple[int, int, int]] = []

    def watch(*report: int) -> bool:
        seen.append(report)
        return report == (1, 2, 3)

    painter = sampler(
        adapter,
        *[sample_prompt(0, guidance_scale=scale, steps=3) for scale in (4.0, 1.0)],
        watch=watch,
    )
    painter.latents(0)
    with pytest.raises(SamplingInterrupted):
        painter.latents(1)
    assert seen == [(0, 1, 3), (0, 2, 3), (0, 3, 3), (1, 1, 3), (1, 2, 3)]


@pytest.mark.slow
def test_after_encode_drawing_needs_only_the_vae(tiny_model: Path) -> None:
    model = open_tiny(tiny_model, reference_area=0)
    drawing = sampler(
        model, sample_prompt(1, steps=1), sample_prompt(0, steps=1, guidance_scale=1.0)
    )
    reports: list[tuple[str, int, int]] = []
    drawing.encode(lambda *report: reports.append(report))
    # One reference, its prompt and its negative; then a prompt alone.
    assert {
        total for what, _, total in reports if what.startswith("text embeddings")
    } == {3}
    assert reports[-1] == ("control images of samples", 1, 1)
    model.unload_encoders(keep=["vae"])
    assert [drawing.generate(index).size for index in (0, 1)] == [SIZE, SIZE]
    assert "text_encoder" not in model._parts


def test_drawing_leaves_the_random_state_and_the_weights_alone(
    adapter: QwenImageModel,
) -> None:
    state = torch.get_rng_state()
    weights = {name: p.clone() for name, p in adapter.network_module.named_parameters()}
    sampler(adapter, sample_prompt(1, steps=1)).generate(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(p, weights[name])
        for name, p in adapter.network_module.named_parameters()
    )


def test_pixels_are_rounded_to_the_nearest_of_256() -> None:
    values: Sequence[float] = [-1.0, 1.0, 0.0, -2.0, 2.0, 2 * (100.4 / 255) - 1]
    pixels_BCHW = torch.tensor(values).expand(1, 3, 1, len(values))
    assert [picture[0] for picture in to_pil(pixels_BCHW).getdata()] == [
        0,
        255,
        128,
        0,
        255,
        100,
    ]
