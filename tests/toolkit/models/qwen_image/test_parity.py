"""What training computes equals what diffusers' own pipeline computes, from photographs to velocity.

The pipeline draws with references at an area of 1024x1024 (4096 tokens each), which is slow: the unmarked cases
set both programs to a small reference area, the slow ones leave both as they are.
"""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import CONDITION_IMAGE_SIZE, calculate_dimensions

from tests.diffusers_reference import (
    PIPELINE_MODULE,
    REFERENCES,
    encode_photos,
    open_tiny,
    photo_item,
    pictures_of,
    recording,
    relative,
)
from tests.measured import at_most
from toolkit.data.dataloader import BatchLoader
from toolkit.data.types import BatchSpec, Size
from toolkit.models.qwen_image.forward import image_shapes, pack
from toolkit.train.flow_step import FlowMatchingStep

PORTRAIT, LANDSCAPE = Size(96, 160), Size(192, 128)


@pytest.fixture
def pipeline(unit_gain_pipeline):
    """Over weights in which every input is plainly seen."""
    return unit_gain_pipeline


def training_velocity(adapter, item, position: int):
    """One training step on the cached item: (t, x_t, velocity) as the adapter got and gave them."""
    dataset = encode_photos(adapter, item)
    batch = BatchLoader(dataset, seed=5).load(BatchSpec(epoch=0, items=(0,), positions=(position,)))
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


def at_any_time(pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that takes a noise level as it is given, so that the pipeline's one step is at training's t."""
    monkeypatch.setattr(pipeline, "scheduler", FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False))


def pipeline_velocity(pipeline, item, t_B, x_t_BCHW) -> torch.Tensor:
    """The transformer's output inside the pipeline's own call, for the target's tokens."""
    tokens_BSP = pack(x_t_BCHW)
    with recording(pipeline.transformer) as seen:
        pipeline(
            image=pictures_of(item),
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


def compare(pipeline, adapter, size: Size, references: int) -> float:
    """Largest difference of the two velocities, in standard deviations of the velocity."""
    item = photo_item(size, REFERENCES[:references], caption="a cup of coffee, natural light")
    t_B, x_t_BCHW, velocity_BCHW = training_velocity(adapter, item, position=references)
    theirs_BSP = pipeline_velocity(pipeline, item, t_B, x_t_BCHW)
    return largest(velocity_BCHW, theirs_BSP)


def largest(ours_BCHW: torch.Tensor, theirs_BSP: torch.Tensor) -> float:
    return float((pack(ours_BCHW) - theirs_BSP).abs().max() / theirs_BSP.std())


@pytest.mark.parametrize("size", [PORTRAIT, LANDSCAPE], ids=str)
@pytest.mark.parametrize("references", [1, 2, 3])
def test_velocity_equals_the_pipelines(
    pipeline, unit_gain_model: Path, monkeypatch, size: Size, references: int
) -> None:
    at_any_time(pipeline, monkeypatch)
    monkeypatch.setattr(f"{PIPELINE_MODULE}.VAE_IMAGE_SIZE", size.width * size.height)
    error = compare(pipeline, open_tiny(unit_gain_model, match_target_res=True), size, references)
    at_most(f"velocity, {references} references at the target's area, {size}", error, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "references"), [(PORTRAIT, 1), (LANDSCAPE, 2), (LANDSCAPE, 3)], ids=str)
def test_velocity_equals_the_pipelines_with_full_references(
    pipeline, unit_gain_model: Path, monkeypatch, size: Size, references: int
) -> None:
    at_any_time(pipeline, monkeypatch)
    error = compare(pipeline, open_tiny(unit_gain_model), size, references)
    at_most(f"velocity, {references} references of 1024x1024 area, {size}", error, 1e-5)


@pytest.mark.parametrize("size", [PORTRAIT, LANDSCAPE], ids=str)
def test_velocity_without_references_equals_the_pipelines_parts(pipeline, unit_gain_model: Path, size: Size) -> None:
    """The pipeline itself needs an image, so its parts are called by hand."""
    item = photo_item(size, (), caption="a cup of coffee, natural light")
    t_B, x_t_BCHW, velocity_BCHW = training_velocity(open_tiny(unit_gain_model), item, position=0)
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
    at_most(f"velocity, 0 references, {size}", largest(velocity_BCHW, theirs_BSP), 1e-5)


@pytest.mark.parametrize("references", [0, 1, 3])
def test_prompt_embeddings_equal_the_pipelines(pipeline, unit_gain_model: Path, references: int) -> None:
    item = photo_item(LANDSCAPE, REFERENCES[:references], caption="a cup of coffee")
    ours_LD = open_tiny(unit_gain_model).encode_prompt(item.sample.caption, pictures_of(item))
    sizes = [calculate_dimensions(CONDITION_IMAGE_SIZE, p.width / p.height) for p in pictures_of(item)]
    pictures = [pipeline.image_processor.resize(p, h, w) for p, (w, h) in zip(pictures_of(item), sizes, strict=True)]
    theirs_BLD, _ = pipeline.encode_prompt(item.sample.caption, image=pictures or None)
    assert ours_LD.shape == theirs_BLD[0].shape
    at_most(f"prompt embeddings, {references} references", relative(ours_LD, theirs_BLD[0]), 1e-6)


def test_reference_latents_equal_the_pipelines(pipeline, unit_gain_model: Path) -> None:
    model = open_tiny(unit_gain_model, match_target_res=True)
    item = photo_item(LANDSCAPE, REFERENCES[:1])
    dataset = encode_photos(model, item)
    ours_CHW = dataset.read(dataset.entries[0].references[0])
    height, width = (8 * side for side in ours_CHW.shape[1:])
    pixels = pipeline.image_processor.preprocess(pictures_of(item)[0], height, width).unsqueeze(2)
    with torch.no_grad():
        theirs = pipeline._encode_vae_image(pixels, generator=None)[0, :, 0]
    at_most("reference latents", float((ours_CHW - theirs).abs().max()), 1e-4)


def test_decoded_pixels_equal_the_pipelines(pipeline, unit_gain_model: Path) -> None:
    latents_BCHW = torch.randn((1, 16, 8, 12), generator=torch.Generator().manual_seed(1))
    ours = open_tiny(unit_gain_model).decode_latents(latents_BCHW)
    config = pipeline.vae.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        theirs = pipeline.vae.decode(latents_BCHW.unsqueeze(2) * std + mean, return_dict=False)[0][:, :, 0]
    at_most("decoded pixels", float((ours - theirs.clamp(-1, 1)).abs().max()), 1e-4)
