"""The weights that a file is compared with are those of the published modules, by
diffusers and transformers."""

from pathlib import Path

import pytest
import torch
import transformers
from diffusers import AutoencoderKLQwenImage, AutoencoderKLQwenImage21

from tests.toolkit.models.test_single_file import wan_name
from toolkit.models.encoder_weights import of_wan
from toolkit.registry import FAMILIES

NOWHERE = Path("nowhere")


def published(arch: str, part: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of each weight, of a module without memory. Sizes of the text
    models: their config files."""
    with torch.device("meta"):
        if part == "vae":
            module = (
                AutoencoderKLQwenImage21()
                if arch == "qwen_image_2"
                else AutoencoderKLQwenImage()
            )
        elif arch == "qwen_image_2":
            text = {"num_hidden_layers": 36, "hidden_size": 4096}
            module = transformers.Qwen3VLModel(
                transformers.Qwen3VLConfig(text_config=text)
            )
        else:
            text = {
                "num_hidden_layers": 28,
                "hidden_size": 3584,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
            }
            module = transformers.Qwen2_5_VLModel(
                transformers.Qwen2_5_VLConfig(text_config=text)
            )
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
@pytest.mark.parametrize("arch", ["qwen_image", "qwen_image_2"])
def test_names_and_shapes_are_those_of_the_published_modules(
    arch: str, part: str
) -> None:
    expected, found = (
        FAMILIES.load(arch).encoder_weights(part, NOWHERE),
        published(arch, part),
    )
    assert expected.keys() == found.keys()
    shapes = {name: shape for name, shape in expected.items() if shape}
    assert shapes
    for name, shape in shapes.items():
        assert [side for side in shape if side] == [
            has for side, has in zip(shape, found[name], strict=True) if side
        ]


def test_every_name_of_the_vae_of_wan_is_read() -> None:
    names = published("qwen_image", "vae")
    assert (
        [of_wan(wan_name(name)) for name in names]
        == [of_wan(name) for name in names]
        == list(names)
    )
