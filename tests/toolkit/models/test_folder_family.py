"""The facts of a family in diffusers layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extensions.z_image.family import ZImageFamily
from toolkit.config.sections.network import NetworkConfig
from toolkit.errors import UserError
from toolkit.models.families import EncoderSize
from toolkit.models.folder_family import DiffusersFamily
from toolkit.networks.targets import select_target_modules

HERE = Path("no_such_folder")


class Bare(DiffusersFamily):
    """Some of the facts that have no default."""

    arch, title, model_class = "bare", "Bare", "bare.model:Bare"
    pipelines, modelspec = ("BarePipeline",), ("bare", "https://example.org")
    latent_channels, latent_scale = 16, 8
    shapes_file, text_width_key = HERE / "shapes.json", "width"
    published_text = published_vae = EncoderSize(1, 1)
    published_text_sizes = (1, 1)


@pytest.mark.parametrize(
    ("base", "facts", "message"),
    [
        (
            Bare,
            {},
            r"Bare: needs published_text_layers, size_multiple, text_tokens\. docs/extending\.md",
        ),
        (
            ZImageFamily,
            {"lora_layer": ".*", "text_tapz": (1,)},
            r"'lora_layer' is no fact\. Did you mean 'lora_layers'\? 'text_tapz' .* 'text_taps'\?",
        ),
        (ZImageFamily, {"hue": 1}, r"'hue' is no fact\. Annotate it if it is your own"),
        (
            ZImageFamily,
            {"lora_spelling": "difusers"},
            r"lora_spelling: 'difusers' is none\. Did you mean 'diffusers'\? .* bare,",
        ),
        (
            ZImageFamily,
            {"shapes_file": HERE / "shapes.json"},
            r"not written yet.*write_shapes\(Path\('no_such_folder.*ZImageTransformer2DModel.*\['noise_refiner'",
        ),
        (
            ZImageFamily,
            {"lora_layers": "attention"},
            r"lora_layers of the model's family: 'attention' matches the whole name of no layer",
        ),
    ],
)
def test_a_fact_that_cannot_be_is_named(
    base: type[DiffusersFamily], facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        family = type("Mine", (base,), facts)() if facts else base()
        layers = [*family.linear_layers(HERE)]
        select_target_modules(NetworkConfig(), layers, family.lora_layers)


def test_attributes_of_its_own_are_annotated() -> None:
    class Mine(ZImageFamily):
        hue: int = 1

    assert Mine().hue == 1
