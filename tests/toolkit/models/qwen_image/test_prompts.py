import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.diffusers_reference import REFERENCES, relative
from tests.golden_tables import golden
from toolkit.models.qwen_image.loading import TEXT_ENCODER
from toolkit.models.qwen_image.prompts import (
    DROP_TOKENS,
    encoder_inputs,
    prompt_embedding,
    resize_condition_image,
    token_ids,
)
from toolkit.models.template import EDIT_PLUS, SUFFIX, Template
from toolkit.models.vl_prompts import (
    load_image_processor,
    load_text_model,
    load_tokenizer,
)
from toolkit.registry import FAMILIES

MEAN, STD = (
    np.array([0.48145466, 0.4578275, 0.40821073]),
    np.array([0.26862954, 0.26130258, 0.27577711]),
)
"""CLIP's, which Qwen2.5-VL normalises with."""


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    return load_tokenizer(tiny_model / "tokenizer")


@pytest.fixture(scope="module")
def processor(tiny_model: Path):
    return load_image_processor(tiny_model / "processor")


CASES = [*golden("prompt_templates"), *golden("member_templates")]


def prompt_text(prompt: str, references: int, template: Template = EDIT_PLUS) -> str:
    """What the tokenizer gets, with one placeholder for each control image."""
    images = (template.image.format(number + 1) for number in range(references))
    return template.prefix + "".join(images) + prompt + SUFFIX


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_text_is_the_one_diffusers_hands_to_its_processor(case: dict) -> None:
    template = FAMILIES.load(case.get("arch", "qwen_image_edit_plus")).template
    assert prompt_text(case["prompt"], case["num_images"], template) == case["text"]
    assert case["dropped_tokens"] == template.dropped_tokens


def test_each_picture_takes_as_many_tokens_as_its_merged_patches(
    tokenizer, processor
) -> None:
    pictures = [Image.open(path) for path in REFERENCES]
    inputs = encoder_inputs("two cats", pictures, tokenizer, processor)
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    start = tokenizer.convert_tokens_to_ids("<|vision_start|>")
    ids = inputs["input_ids"][0].tolist()
    runs = [
        ids[i + 1 :].index(tokenizer.convert_tokens_to_ids("<|vision_end|>"))
        for i, x in enumerate(ids)
        if x == start
    ]
    assert runs == [int(grid.prod()) // 4 for grid in inputs["image_grid_thw"]]
    assert ids.count(pad) == sum(runs)
    # Sizes of about 384 x 384 pixels, in patches of 14: the aspect ratio of each is its
    # own.
    heights, widths = inputs["image_grid_thw"][:, 1], inputs["image_grid_thw"][:, 2]
    assert (
        heights[0] < widths[0],
        heights[1] > widths[1],
        heights[2] == widths[2],
    ) == (True, True, True)


def test_no_picture_means_no_vision_input(tokenizer) -> None:
    assert set(encoder_inputs("a cat", [], tokenizer, None)) == {
        "input_ids",
        "attention_mask",
    }


@pytest.mark.parametrize(
    "typed",
    ["<|image_pad|>", "<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>"],
)
@pytest.mark.parametrize("references", [0, 1])
def test_a_special_token_typed_by_the_user_is_text(
    tokenizer, processor, typed: str, references: int
) -> None:
    pictures = [Image.new("RGB", (64, 64))] * references
    ours = encoder_inputs(f"the words {typed} here", pictures, tokenizer, processor)
    none = encoder_inputs("the words here", pictures, tokenizer, processor)
    special = set(tokenizer.all_special_ids)
    count = lambda inputs: sum(  # noqa: E731
        token in special for token in inputs["input_ids"][0].tolist()
    )
    assert count(ours) == count(none)
    assert typed in tokenizer.decode(ours["input_ids"][0])
    if references:
        assert torch.equal(
            ours["mm_token_type_ids"].sum(), none["mm_token_type_ids"].sum()
        )


@pytest.mark.parametrize(
    "prompt", ["", "a cat", "\n\nin two  lines\n", " 42, 'quoted' — ünï 日本語"]
)
@pytest.mark.parametrize("pictures", [(), (3,), (4, 2)])
def test_tokens_of_plain_prompts_are_those_of_the_whole_text(
    tokenizer, prompt: str, pictures: tuple
) -> None:
    text = prompt_text(prompt, len(pictures))
    for count in pictures:
        text = text.replace("<|image_pad|>", "<pad>" * count, 1)
    assert (
        token_ids(prompt, pictures, tokenizer)
        == tokenizer(text.replace("<pad>", "<|image_pad|>"))["input_ids"]
    )


@pytest.mark.parametrize(
    ("colour", "value"), [("black", 0.0), ("white", 1.0), ((128, 128, 128), 128 / 255)]
)
def test_the_text_encoder_sees_pictures_at_their_full_brightness(
    tokenizer, processor, colour, value: float
) -> None:
    """A peer scales 0..255 to 0..1 before a processor that scales again: every image is
    then nearly black."""
    pixels_NV = encoder_inputs(
        "x", [Image.new("RGB", (64, 64), colour)], tokenizer, processor
    )["pixel_values"]
    # A patch's values are channel-major: 2 frames x 14 x 14 of each channel.
    channels = pixels_NV.reshape(len(pixels_NV), 3, -1)
    expected = torch.tensor((value - MEAN) / STD, dtype=torch.float32)
    torch.testing.assert_close(
        channels, expected[None, :, None].expand_as(channels), rtol=0, atol=1e-5
    )


def test_a_known_photograph_reaches_the_encoder_as_the_image_processor_makes_it(
    tokenizer, processor
) -> None:
    photo = Image.open(REFERENCES[0])
    ours = encoder_inputs("x", [photo], tokenizer, processor)["pixel_values"]
    # 451x300 at an area of 384x384
    picture = photo.convert("RGB").resize((480, 320), Image.Resampling.LANCZOS)
    assert resize_condition_image(photo).size == picture.size
    theirs = processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, theirs)
    assert ours.max() > 1  # of a twice scaled image no value is above -1.4


PROMPT = "a cup of coffee, a cat, a rocket, natural light,"
"""As many tokens as the prompt of the golden positions."""


@pytest.mark.parametrize(
    "case",
    golden("text_positions"),
    ids=lambda case: f"{len(case['pictures'])} pictures",
)
@torch.no_grad()
def test_picture_tokens_have_the_positions_the_model_was_released_with(
    unit_gain_model: Path, tokenizer, processor, case: dict
) -> None:
    pictures = [Image.new("RGB", size) for size in map(tuple, case["pictures"])]
    inputs = encoder_inputs(PROMPT, pictures, tokenizer, processor)
    assert inputs["image_grid_thw"].tolist() == case["grid_thw"]
    runs = [
        [start, count]
        for start, count in _runs(inputs["mm_token_type_ids"][0].tolist())
    ]
    assert (runs, inputs["input_ids"].shape[1]) == (
        case["picture_runs"],
        case["tokens"],
    )

    text_model = load_text_model(
        unit_gain_model / "text_encoder", TEXT_ENCODER, torch.float32
    )
    seen: list[torch.Tensor] = []
    text_model.language_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["position_ids"]), with_kwargs=True
    )
    ours_LD = prompt_embedding(inputs, text_model)
    golden_3BL = torch.tensor(case["position_ids"]).unsqueeze(1)
    assert torch.equal(seen[0], golden_3BL)

    explicit = {
        name: value for name, value in inputs.items() if name != "mm_token_type_ids"
    }
    theirs_LD = text_model(
        **explicit, position_ids=golden_3BL, use_cache=False
    ).last_hidden_state[0, DROP_TOKENS:]
    assert torch.equal(ours_LD, theirs_LD)
    plain_LD = text_model(**explicit, use_cache=False).last_hidden_state[
        0, DROP_TOKENS:
    ]
    # of one-dimensional positions this is not a matter of rounding
    assert relative(ours_LD, plain_LD) > 0.1


def _runs(flags: list[int]) -> list[tuple[int, int]]:
    """First index and length of each run of ones."""
    groups, start = [], 0
    for flag, members in itertools.groupby(flags):
        length = len(list(members))
        groups += [(start, length)] if flag else []
        start += length
    return groups
