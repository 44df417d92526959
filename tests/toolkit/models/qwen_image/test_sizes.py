"""Which prompts the transformer has positions for, told before anything is encoded."""

from pathlib import Path

import pytest
import torch

from tests.diffusers_reference import open_tiny, relative, write_member
from tests.golden_tables import golden
from toolkit.config.sections.model import ModelConfig
from toolkit.contracts.data import PromptEmbeds, Size
from toolkit.models.folder_family import reference_size, size_of_area
from toolkit.models.qwen_image.prompts import DROP_TOKENS, encoder_inputs
from toolkit.models.qwen_image.sizes import SURE_PROMPT, prompt_fault
from toolkit.models.template import EDIT_PLUS
from toolkit.models.tiny import TinySpec

TARGET = Size(128, 96)


def words(count: int) -> str:
    """A prompt of so many tokens, alone or before the end of the template."""
    return "a" + " cat" * (count - 1)


def longest(model: Path, **given) -> int:
    """Tokens of the longest prompt of `words` that fits."""
    low, high = 1, 5000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high)
            if prompt_fault(model, words(middle), **given) is None
            else (low, middle)
        )
    return low


@pytest.mark.parametrize(
    ("target", "references", "area"),
    [
        (TARGET, [], 1024 * 1024),
        (Size(1024, 64), [], 1024 * 1024),
        (TARGET, [Size(451, 300)], 0),
        pytest.param(TARGET, [Size(90, 90)] * 3, 1024 * 1024, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_longest_prompt_that_fits_is_the_longest_the_transformer_takes(
    tiny_model: Path, target: Size, references: list[Size], area: int
) -> None:
    most = longest(tiny_model, target=target, references=references, area=area)
    model = open_tiny(tiny_model, reference_area=area)
    inputs = encoder_inputs(
        words(most), [picture(size) for size in references], *tokenizers(model)
    )
    length = inputs["input_ids"].shape[1] - DROP_TOKENS
    latents = [
        torch.zeros(16, size.height // 8, size.width // 8)
        for size in (
            model.reference_size(reference, target) for reference in references
        )
    ]
    x_t_BCHW = torch.zeros(1, 16, target.height // 8, target.width // 8)

    def predict(tokens: int) -> torch.Tensor:
        prompts = PromptEmbeds(torch.zeros(1, tokens, 64), (tokens,))
        with torch.no_grad():
            return model.predict_velocity(
                x_t_BCHW, torch.tensor([0.5]), prompts, [tuple(latents)]
            )

    predict(length)
    with pytest.raises(RuntimeError, match="size of tensor"):
        predict(length + 1)


def tokenizers(adapter):
    return adapter.part("tokenizer"), adapter.part("processor")


def picture(size: Size):
    from PIL import Image

    return Image.new("RGB", size)


def test_the_fault_says_how_long_it_is_and_how_long_it_may_be(tiny_model: Path) -> None:
    fault = prompt_fault(tiny_model, words(5000), TARGET, [Size(451, 300)], area=0)
    # 5 tokens end the template; an image is 187 and the 7 around it; the longer side is
    # 4 tokens from the middle.
    assert fault == (
        "5,199 text tokens; a target of 128x96 beside 1 control image leaves room for 4,092. Shorten the text."
    )


@pytest.mark.slow
@torch.no_grad()
def test_text_to_image_gets_what_its_pipeline_gives_it_of_a_long_prompt(
    tmp_path: Path,
) -> None:
    member = write_member(tmp_path, TinySpec(arch="qwen_image"))
    model, prompt = open_tiny(member.folder), words(700)
    theirs_BLD, mask = member.pipeline.encode_prompt(prompt, max_sequence_length=512)
    ours_LD = model.encode_prompt(prompt, ())
    assert mask is None and ours_LD.shape == theirs_BLD.shape[1:] == (512, 64)
    assert relative(ours_LD, theirs_BLD[0]) < 1e-6
    told = "705 text tokens, of which the model gets the first 512, as in its own pipeline. Shorten the text."
    assert model.family.prompt_note(member.folder, prompt) == told
    assert model.family.prompt_note(member.folder, words(507)) is None
    assert len(model.encode_prompt(words(507), ())) == 512
    section = ModelConfig(name_or_path=str(member.folder))
    assert model.family.prompt_error(section, words(5000), TARGET, []) is None


@pytest.mark.parametrize("count", [1, 3])
def test_a_prompt_that_fits_alone_is_counted_with_its_images(
    tiny_model: Path, count: int
) -> None:
    """Each byte of an emoji is a token here, so the text's bytes are a close bound."""
    references = [Size(451, 300)] * count
    room = 4092  # as above
    prompt = "\U0001f600" * ((room - 5 - 100) // 4)
    assert prompt_fault(tiny_model, prompt, TARGET, [], area=0) is None
    fault = prompt_fault(tiny_model, prompt, TARGET, references, area=0)
    assert fault and f"leaves room for {room:,}" in fault


def test_without_a_tokenizer_on_the_disk_nothing_is_said(tmp_path: Path) -> None:
    assert prompt_fault(tmp_path, words(5000), TARGET, [], area=1024 * 1024) is None


@pytest.mark.parametrize(
    "references", [[], [Size(50, 10000)] * 3, [Size(10000, 50)] * 3]
)
@pytest.mark.parametrize("letter", ["a", "\U0001f600"])
def test_a_sure_prompt_fits_whatever_the_pictures(
    tiny_model: Path, references, letter: str
) -> None:
    for area in (1024 * 1024, 0):
        assert (
            prompt_fault(
                tiny_model, letter * SURE_PROMPT, Size(2048, 2048), references, area
            )
            is None
        )


# ------------------------------------------------------------ sizes


ANY_TARGET = Size(512, 512)


def condition_size(image: Size) -> Size:
    return size_of_area(EDIT_PLUS.condition_area, image.width / image.height)


@pytest.mark.parametrize(
    "case",
    golden("edit_image_sizes"),
    ids=lambda case: f"{case['width']}x{case['height']}",
)
def test_both_sizes_of_a_reference_are_those_of_diffusers(case: dict) -> None:
    image = Size(case["width"], case["height"])
    assert condition_size(image) == (case["condition_width"], case["condition_height"])
    assert reference_size(image, ANY_TARGET, 1024 * 1024) == (
        case["vae_width"],
        case["vae_height"],
    )


@pytest.mark.parametrize("match_target", [False, True])
def test_reference_sizes_are_those_of_ai_toolkit(match_target: bool) -> None:
    for case in golden("edit_train_packing", match_target_res=match_target):
        target = Size(case["target_width"], case["target_height"])
        controls = [Size(*control) for control in case["controls"]]
        assert [[*condition_size(image)] for image in controls] == case[
            "condition_sizes_wh"
        ]
        area = 0 if match_target else 1024 * 1024
        assert [[*reference_size(image, target, area)] for image in controls] == case[
            "vae_sizes_wh"
        ]


def test_a_sliver_keeps_a_side_of_32() -> None:
    assert reference_size(Size(10000, 10), Size(128, 128), 0).height == 32
