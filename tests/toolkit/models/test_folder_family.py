"""The facts of a family in diffusers layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.small_parts import SmallFamily
from toolkit.config.sections.network import NetworkConfig
from toolkit.errors import UserError
from toolkit.models.folder_family import DiffusersFamily
from toolkit.networks.targets import select_target_modules

SHAPES = {
    "sizes": {
        "": {"blocks": {"layers": 1}, "weights": {"layers.*.attn.to_q.weight": [4, 4]}}
    }
}


class Bare(DiffusersFamily):
    """Some of the facts that have no default."""

    arch, title, model_class = "bare", "Bare", "bare.model:Bare"
    latent_channels, latent_scale = 16, 8
    pipelines, modelspec = ("BarePipeline",), ("bare", "https://example.org")


@pytest.mark.parametrize(
    ("base", "facts", "message"),
    [
        (
            Bare,
            {},
            r"Mine: needs published_text, published_text_layers, published_text_sizes, published_vae, shapes_file, "
            r"size_multiple, text_tokens, text_width_key\. classes has no transformer, vae, text_encoder\. docs",
        ),
        (
            SmallFamily,
            {"lora_layer": ".*", "text_tapz": (1,)},
            r"'lora_layer' is not a fact\. Did you mean 'lora_layers'\? 'text_tapz' .* 'text_taps'\?",
        ),
        (SmallFamily, {"hue": 1}, r"'hue' is not a fact\. Annotate it if it is your"),
        (
            SmallFamily,
            {"lora_spelling": "difusers"},
            r"lora_spelling: 'difusers' is none\. Did you mean 'diffusers'\? .* bare,",
        ),
        (
            SmallFamily,
            {"pipelines": "SmallPipeline", "text_length": "256", "block_lists": "ab"},
            r"(?s)(?=.*pipelines: 'SmallPipeline': Input .* tuple\.)(?=.*text_length: '256': Input .* integer\.)"
            r".*block_lists: 'ab': 'str' instances",
        ),
        (
            SmallFamily,
            {"size_multiple": 12, "text_taps": [], "lora_layers": "(attn"},
            r"size_multiple: 12 is not a multiple of latent_scale times patch, 8\. text_taps: .* pattern: missing \)",
        ),
        (
            SmallFamily,
            {"shapes_file": Path("shapes.json"), "size": "2b"},
            r"shapes\.json has no size '2b'\.",
        ),
        (
            SmallFamily,
            {"shapes_file": Path("damaged.json")},
            r"damaged\.json: not as write_shapes writes it\. Delete it",
        ),
        (
            SmallFamily,
            {},
            r"not written yet.*write_shapes\(Path\('no_such_folder.*Lumina2Transformer2DModel.*\['noise_refiner'",
        ),
        (
            SmallFamily,
            {"lora_layers": "attn", "shapes_file": Path("shapes.json")},
            r"lora_layers of the model's family: 'attn' matches the whole name of no layer",
        ),
    ],
)
def test_a_fact_that_cannot_be_is_named(
    base: type[DiffusersFamily],
    facts: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shapes.json").write_text(json.dumps(SHAPES), encoding="utf-8")
    Path("damaged.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        family = type("Mine", (base,), facts)()
        layers = [*family.linear_layers(Path("no_such_folder"))]
        select_target_modules(NetworkConfig(), layers, family.lora_layers)


def test_attributes_of_its_own_are_annotated() -> None:
    class Mine(SmallFamily):
        hue: int = 1

    assert Mine().hue == 1
