from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.diffusers_reference import REFERENCES
from tests.golden_tables import golden
from toolkit.models.qwen_edit.loading import load_image_processor, load_text_model, load_tokenizer
from toolkit.models.qwen_edit.prompts import (
    DROP_TOKENS,
    condition_picture,
    encoder_inputs,
    prompt_embedding,
    prompt_text,
)

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
"""CLIP's, which Qwen2.5-VL normalises with."""


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def processor(tiny_model: Path):
    return load_image_processor(tiny_model)


CASES = golden("prompt_templates")


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_text_is_the_one_diffusers_hands_to_its_processor(case: dict) -> None:
    assert prompt_text(case["prompt"], case["num_images"]) == case["text"]
    assert case["dropped_tokens"] == DROP_TOKENS


def test_each_picture_takes_as_many_tokens_as_its_merged_patches(tokenizer, processor) -> None:
    pictures = [Image.open(path) for path in REFERENCES]
    inputs = encoder_inputs("two cats", pictures, tokenizer, processor)
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    start = tokenizer.convert_tokens_to_ids("<|vision_start|>")
    ids = inputs["input_ids"][0].tolist()
    runs = [
        ids[i + 1 :].index(tokenizer.convert_tokens_to_ids("<|vision_end|>")) for i, x in enumerate(ids) if x == start
    ]
    assert runs == [int(grid.prod()) // 4 for grid in inputs["image_grid_thw"]]
    assert ids.count(pad) == sum(runs)
    # Sizes of about 384 x 384 pixels, in patches of 14: the aspect ratio of each is its own.
    heights, widths = inputs["image_grid_thw"][:, 1], inputs["image_grid_thw"][:, 2]
    assert (heights[0] < widths[0], heights[1] > widths[1], heights[2] == widths[2]) == (True, True, True)


def test_no_picture_means_no_vision_input(tokenizer) -> None:
    assert set(encoder_inputs("a cat", [], tokenizer, None)) == {"input_ids", "attention_mask"}


def test_a_placeholder_typed_by_the_user_stays_one_token(tokenizer, processor) -> None:
    inputs = encoder_inputs("the words <|image_pad|>", [Image.new("RGB", (64, 64))], tokenizer, processor)
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert inputs["input_ids"][0].tolist().count(pad) == int(inputs["image_grid_thw"].prod()) // 4 + 1


@pytest.mark.parametrize(("colour", "value"), [("black", 0.0), ("white", 1.0), ((128, 128, 128), 128 / 255)])
def test_the_text_encoder_sees_pictures_at_their_full_brightness(tokenizer, processor, colour, value: float) -> None:
    """A peer scales 0..255 to 0..1 before a processor that scales again: every picture is then nearly black."""
    pixels_NV = encoder_inputs("x", [Image.new("RGB", (64, 64), colour)], tokenizer, processor)["pixel_values"]
    # A patch's values are channel-major: 2 frames x 14 x 14 of each channel.
    channels = pixels_NV.reshape(len(pixels_NV), 3, -1)
    expected = torch.tensor((value - MEAN) / STD, dtype=torch.float32)
    torch.testing.assert_close(channels, expected[None, :, None].expand_as(channels), rtol=0, atol=1e-5)


def test_a_known_photograph_reaches_the_encoder_as_the_image_processor_makes_it(tokenizer, processor) -> None:
    photo = Image.open(REFERENCES[0])
    ours = encoder_inputs("x", [photo], tokenizer, processor)["pixel_values"]
    picture = photo.convert("RGB").resize((480, 320), Image.Resampling.LANCZOS)  # 451x300 at an area of 384x384
    assert condition_picture(photo).size == picture.size
    theirs = processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, theirs)
    assert ours.max() > 1  # of a twice scaled picture no value is above -1.4


@torch.no_grad()
def test_picture_tokens_take_plain_positions_as_in_diffusers(tiny_model: Path, tokenizer, processor) -> None:
    """transformers places them on a grid only when told which tokens are pictures, and diffusers does not tell it."""
    text_model = load_text_model(tiny_model, torch.float32)
    inputs = encoder_inputs("a cat", [Image.open(REFERENCES[0])], tokenizer, processor)
    length = inputs["input_ids"].shape[1]
    plain_3BL = torch.arange(length).expand(3, 1, length)
    plain_LD = text_model(**inputs, position_ids=plain_3BL, use_cache=False).last_hidden_state[0, DROP_TOKENS:]
    assert torch.equal(prompt_embedding(inputs, text_model), plain_LD)
    on_grid = (inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    other_LD = text_model(**inputs, mm_token_type_ids=on_grid, use_cache=False).last_hidden_state[0, DROP_TOKENS:]
    assert not torch.allclose(plain_LD, other_LD)
