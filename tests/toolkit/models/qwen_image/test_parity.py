"""What training computes equals what diffusers' own pipeline computes, from photographs
to velocity, for each member.

The pipelines draw with references at an area of 1024x1024 (4096 tokens each), which is
slow: most cases set both programs to a small reference area; one test leaves both as
they are.
"""

from collections.abc import Callable
from itertools import cycle

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.diffusers_reference import (
    MEMBERS,
    REFERENCES,
    Member,
    drawn_by_pipeline,
    encode_photos,
    image_argument,
    memory_stores,
    photo_item,
    pictures_of,
    psnr,
    recording,
    relative,
)
from tests.measured import at_least, at_most
from toolkit.contracts.data import BatchSpec, Size
from toolkit.data.batches.dataloader import BatchLoader
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.models.qwen_image.forward import image_shapes, pack
from toolkit.registry import FAMILIES
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.sampling import SamplePrompt, Sampler

PORTRAIT, LANDSCAPE = Size(96, 160), Size(192, 128)
CAPTION = "a cup of coffee, natural light"


EDITED = [
    (name, count)
    for name, spec in MEMBERS.items()
    for count in sorted({1, FAMILIES.load(spec.arch).max_references})
    if spec.arch != "qwen_image"
]
"""Each member that takes references with one and with as many as it takes."""

MOST_EDITED = dict(EDITED)
"""Each of them with as many as it takes."""

DRAWN = [("Qwen-Image", 0), *EDITED]
"""What a pipeline draws: those of the Edit models need a reference."""


def in_turn(cases: list[tuple[str, int]], *sizes: Size) -> list[tuple[str, int, Size]]:
    """Each with one of these sizes."""
    return [(*case, size) for case, size in zip(cases, cycle(sizes), strict=False)]


Members = Callable[[str], Member]


def training_velocity(adapter, item, position: int):
    """One training step on the cached item: (t, x_t, velocity) as the adapter got and
    gave them."""
    dataset = encode_photos(adapter, item)
    batch = BatchLoader(dataset, seed=5).load(
        BatchSpec(epoch=0, items=(0,), positions=(position,))
    )
    predict, calls = adapter.predict_velocity, []

    def spy(x_t_BCHW, t_B, prompts, references):
        velocity_BCHW = predict(x_t_BCHW, t_B, prompts, references)
        calls.append((t_B, x_t_BCHW, velocity_BCHW.detach()))
        return velocity_BCHW

    adapter.predict_velocity = spy
    FlowMatchingStep(adapter, seed=5, timestep_type="sigmoid")(batch)
    del adapter.predict_velocity
    (call,) = calls
    return call


def pipeline_velocity(
    pipeline, item, t_B, x_t_BCHW, monkeypatch: pytest.MonkeyPatch
) -> torch.Tensor:
    """The transformer's output inside the pipeline's own call, for the target's tokens,
    in its one step at t."""
    monkeypatch.setattr(
        pipeline,
        "scheduler",
        FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
    )
    tokens_BSP = pack(x_t_BCHW)
    with recording(pipeline.transformer) as seen:
        pipeline(
            **image_argument(pictures_of(item)),
            prompt=item.sample.caption,
            true_cfg_scale=1.0,
            width=item.crop.bucket.width,
            height=item.crop.bucket.height,
            sigmas=[float(t_B)],
            latents=tokens_BSP,
            output_type="latent",
        )
    (output_BSP,) = seen.outputs
    torch.testing.assert_close(seen.inputs[0]["timestep"], t_B, rtol=0, atol=1e-6)
    return output_BSP[:, : tokens_BSP.shape[1]]


def compare(
    member: Member,
    monkeypatch: pytest.MonkeyPatch,
    size: Size,
    references: int,
    full: bool = False,
) -> float:
    """Largest difference of the two velocities, in standard deviations of the velocity.
    full: references of the pipeline's own area."""
    item = photo_item(size, REFERENCES[:references], caption=CAPTION)
    model = member.open(monkeypatch, None if full else size.width * size.height)
    t_B, x_t_BCHW, velocity_BCHW = training_velocity(model, item, position=references)
    return largest(
        velocity_BCHW,
        pipeline_velocity(member.pipeline, item, t_B, x_t_BCHW, monkeypatch),
    )


def largest(ours_BCHW: torch.Tensor, theirs_BSP: torch.Tensor) -> float:
    return float((pack(ours_BCHW) - theirs_BSP).abs().max() / theirs_BSP.std())


@pytest.mark.parametrize(
    ("name", "references", "size"),
    in_turn([("Qwen-Image", 0), *MOST_EDITED.items()], PORTRAIT, LANDSCAPE),
    ids=str,
)
def test_velocity_equals_the_pipelines(
    member: Members, monkeypatch, name: str, references: int, size: Size
) -> None:
    error = compare(member(name), monkeypatch, size, references)
    at_most(
        f"{name}: velocity, {references} references at the target's area, {size}",
        error,
        1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("Qwen-Image-Edit", PORTRAIT), ("Qwen-Image-Edit-2509", LANDSCAPE)],
    ids=str,
)
def test_velocity_equals_the_pipelines_with_a_full_reference(
    member: Members, monkeypatch, name: str, size: Size
) -> None:
    """Of each class of pipeline."""
    error = compare(member(name), monkeypatch, size, references=1, full=True)
    at_most(f"{name}: velocity, a reference of 1024x1024 area, {size}", error, 1e-5)


@pytest.mark.parametrize("name", MOST_EDITED)
def test_velocity_without_references_equals_the_pipelines_parts(
    member: Members, monkeypatch, name: str
) -> None:
    """The pipelines of the Edit models need an image, so their parts are called by
    hand. The template of the first always has an image; without a reference there is
    none in ours."""
    pipeline, item = member(name).pipeline, photo_item(LANDSCAPE, (), caption=CAPTION)
    template = pipeline.prompt_template_encode.replace(
        "<|vision_start|><|image_pad|><|vision_end|>", ""
    )
    monkeypatch.setattr(pipeline, "prompt_template_encode", template)
    t_B, x_t_BCHW, velocity_BCHW = training_velocity(
        member(name).open(monkeypatch), item, position=0
    )
    embeds_BLD, mask = pipeline.encode_prompt(item.sample.caption, image=None)
    assert mask is None
    with torch.no_grad():
        theirs_BSP = pipeline.transformer(
            hidden_states=pack(x_t_BCHW),
            timestep=t_B,
            encoder_hidden_states=embeds_BLD,
            encoder_hidden_states_mask=None,
            img_shapes=[image_shapes([x_t_BCHW])],
            return_dict=False,
        )[0]
    at_most(f"{name}: velocity, 0 references", largest(velocity_BCHW, theirs_BSP), 1e-5)


@pytest.mark.parametrize(("name", "references"), DRAWN)
def test_prompt_embeddings_equal_the_pipelines(
    member: Members, monkeypatch, name: str, references: int
) -> None:
    """As the transformer gets them inside the pipeline's call, of the same tokens."""
    item = photo_item(LANDSCAPE, REFERENCES[:references], caption=CAPTION)
    model, pipeline = (
        member(name).open(monkeypatch, LANDSCAPE.width * LANDSCAPE.height),
        member(name).pipeline,
    )
    with (
        recording(pipeline.text_encoder.model) as theirs,
        recording(pipeline.transformer) as drawn,
    ):
        pipeline(
            **image_argument(pictures_of(item)),
            prompt=CAPTION,
            num_inference_steps=1,
            width=64,
            height=64,
            output_type="latent",
        )
    with recording(model.part("text_encoder")) as ours:
        ours_LD = model.encode_prompt(CAPTION, pictures_of(item))
    for given in ("input_ids", "pixel_values", "image_grid_thw"):
        assert _equal(ours.inputs[0].get(given), theirs.inputs[0].get(given)), given
    (theirs_LD,) = drawn.inputs[0]["encoder_hidden_states"]
    assert ours_LD.shape == theirs_LD.shape
    at_most(
        f"{name}: prompt embeddings, {references} references",
        relative(ours_LD, theirs_LD),
        1e-6,
    )


def _equal(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> bool:
    return ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "references", "size"),
    [
        ("Qwen-Image", 0, Size(160, 80)),
        ("Qwen-Image-Edit", 1, Size(80, 144)),
        ("Qwen-Image-Edit-2509", 3, Size(160, 80)),
        ("Qwen-Image-Edit-2511", 1, Size(80, 144)),
    ],
    ids=str,
)
def test_a_sample_equals_the_pipelines(
    member: Members, monkeypatch, name: str, references: int, size: Size
) -> None:
    prompt = SamplePrompt(
        CAPTION,
        "blurry, low quality",
        size,
        seed=42,
        guidance_scale=4.0,
        steps=4,
        references=REFERENCES[:references],
    )
    model = member(name).open(monkeypatch, size.width * size.height)
    ours = Sampler(
        model, [prompt], ItemEncoder(model, torch.float32), memory_stores()
    ).generate(0)
    theirs = drawn_by_pipeline(member(name).pipeline, prompt)
    at_least(
        f"{name}: sample, {references} references, {size}, dB", psnr(ours, theirs), 60
    )


@pytest.mark.parametrize("name", MOST_EDITED)
def test_reference_latents_equal_the_pipelines(
    member: Members, monkeypatch, name: str
) -> None:
    pipeline, model = (
        member(name).pipeline,
        member(name).open(monkeypatch, LANDSCAPE.width * LANDSCAPE.height),
    )
    item = photo_item(LANDSCAPE, REFERENCES[:1])
    dataset = encode_photos(model, item)
    ours_CHW = dataset.entries[0].references[0].read()
    height, width = (8 * side for side in ours_CHW.shape[1:])
    pixels = pipeline.image_processor.preprocess(
        pictures_of(item)[0], height, width
    ).unsqueeze(2)
    with torch.no_grad():
        theirs = pipeline._encode_vae_image(pixels, generator=None)[0, :, 0]
    at_most(f"{name}: reference latents", float((ours_CHW - theirs).abs().max()), 1e-4)


@pytest.mark.parametrize("name", ["Qwen-Image-Edit-2509"])
def test_decoded_pixels_equal_the_pipelines(
    member: Members, monkeypatch, name: str
) -> None:
    pipeline = member(name).pipeline
    latents_BCHW = torch.randn(
        (1, 16, 8, 12), generator=torch.Generator().manual_seed(1)
    )
    ours = member(name).open(monkeypatch).decode_latents(latents_BCHW)
    config = pipeline.vae.config
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1, 1)
        for v in (config.latents_mean, config.latents_std)
    )
    with torch.no_grad():
        theirs = pipeline.vae.decode(
            latents_BCHW.unsqueeze(2) * std + mean, return_dict=False
        )[0][:, :, 0]
    at_most("decoded pixels", float((ours - theirs.clamp(-1, 1)).abs().max()), 1e-4)
