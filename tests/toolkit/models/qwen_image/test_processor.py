"""diffusers' pipeline with our processor and positions, against the trainer's own text
embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImagePipeline
from PIL import Image

from tests.diffusers_reference import (
    REFERENCES,
    Member,
    drawn_by_pipeline,
    memory_stores,
    open_tiny,
    psnr,
)
from toolkit.contracts.data import Size
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.models.qwen_image.loading import TEXT_ENCODER
from toolkit.models.qwen_image.processor import (
    EditProcessor,
    add_image_positions,
    use_edit_template,
)
from toolkit.models.qwen_image.prompts import (
    encoder_inputs,
    prompt_embedding,
    resize_condition_image,
)
from toolkit.models.vl_prompts import (
    load_image_processor,
    load_text_model,
    load_tokenizer,
)
from toolkit.train.sampling import SamplePrompt, Sampler

PROMPT = "the cat of Picture 1 holds the cup"


@pytest.fixture
def pipeline(unit_gain_model: Path) -> QwenImageEditPlusPipeline:
    """A model whose embeddings depend on the positions (tests/conftest.py)."""
    processor = EditProcessor.from_pretrained(unit_gain_model, subfolder="processor")
    return QwenImageEditPlusPipeline.from_pretrained(
        unit_gain_model, processor=processor, dtype=torch.float32
    )


@pytest.mark.slow
@pytest.mark.parametrize("references", [1, 3])
def test_the_pipeline_embeds_a_prompt_as_the_trainer_does(
    pipeline: QwenImageEditPlusPipeline, unit_gain_model: Path, references: int
) -> None:
    pictures = [Image.open(path).convert("RGB") for path in REFERENCES[:references]]
    inputs = encoder_inputs(
        PROMPT,
        pictures,
        load_tokenizer(unit_gain_model / "tokenizer"),
        load_image_processor(unit_gain_model / "processor"),
    )
    ours_LD = prompt_embedding(
        inputs,
        load_text_model(unit_gain_model / "text_encoder", TEXT_ENCODER, torch.float32),
    )
    sized = [resize_condition_image(picture) for picture in pictures]

    flat_LD = pipeline.encode_prompt(PROMPT, image=sized)[0][0].detach()
    assert not torch.allclose(flat_LD, ours_LD, atol=0.1)
    add_image_positions(pipeline.text_encoder)
    placed_LD = pipeline.encode_prompt(PROMPT, image=sized)[0][0].detach()
    torch.testing.assert_close(placed_LD, ours_LD)


def test_a_text_without_images_and_ids_that_are_given_stay_as_they_are(
    pipeline: QwenImageEditPlusPipeline,
) -> None:
    plain = pipeline.processor(
        text=["a cup"], images=None, padding=True, return_tensors="pt"
    )
    before = pipeline.text_encoder(**plain).logits
    picture = [resize_condition_image(Image.open(REFERENCES[0]))]
    text = ["<|vision_start|><|image_pad|><|vision_end|>"]
    given = pipeline.processor(
        text=text, images=picture, padding=True, return_tensors="pt"
    )
    assert "mm_token_type_ids" in given
    placed = pipeline.text_encoder(**given).logits
    add_image_positions(pipeline.text_encoder)
    assert torch.equal(pipeline.text_encoder(**plain).logits, before)
    assert torch.equal(pipeline.text_encoder(**given).logits, placed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen-Image-Edit-2509", "Qwen-Image-Edit-2511"])
def test_the_pipeline_without_images_gives_the_images_of_an_edit_model(
    member: Callable[[str], Member], name: str
) -> None:
    """A character on an edit model, as docs/use_your_lora.md shows it: with the
    pipeline's own words it is another."""
    folder, prompt = (
        member(name).folder,
        SamplePrompt("a cup", " ", Size(64, 64), 5, 2.0, 2, ()),
    )
    model = open_tiny(folder)
    ours = Sampler(
        model, [prompt], ItemEncoder(model, torch.float32), memory_stores()
    ).generate(0)
    pipeline = QwenImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        assert psnr(ours, drawn_by_pipeline(pipeline, prompt)) < 40
        use_edit_template(pipeline)
        assert psnr(ours, drawn_by_pipeline(pipeline, prompt)) >= 60
