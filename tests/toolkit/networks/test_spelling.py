"""How LoRA files are spelled for each family: the same change under other names, and
alpha where readers find it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from toolkit.contracts.model import LORA_SPELLINGS
from toolkit.networks.lora_formats import parse_adapter_tensors
from toolkit.networks.spelling import (
    BARE,
    FOLDED,
    SPELLINGS,
    STORED,
    Spelling,
    spelled,
    spelling_for_layers,
)
from toolkit.registry import FAMILIES

LAYER = "transformer_blocks.0.attn.to_q"
RANK, ALPHA = 4, 2.0


def exported(kind: str) -> dict[str, Tensor]:
    """What a network of this kind exports for one layer of 6 inputs and 8 outputs."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "lora": {"lora_A.weight": (RANK, 6), "lora_B.weight": (8, RANK)},
        "dora": {
            "lora_A.weight": (RANK, 6),
            "lora_B.weight": (8, RANK),
            "dora_scale": (1, 6),
        },
        "loha": {
            "hada_w1_a": (8, RANK),
            "hada_w1_b": (RANK, 6),
            "hada_w2_a": (8, RANK),
            "hada_w2_b": (RANK, 6),
        },
        "lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 3)},
    }[kind]
    tensors = {
        f"diffusion_model.{LAYER}.{name}": torch.randn(s, generator=generator)
        for name, s in shapes.items()
    }
    return {**tensors, f"diffusion_model.{LAYER}.alpha": torch.tensor(ALPHA)}


@pytest.mark.parametrize(
    "spelling", [STORED, FOLDED, BARE], ids=lambda spelling: spelling.name
)
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_every_spelling_means_the_same_change(kind: str, spelling: Spelling) -> None:
    before = parse_adapter_tensors(exported(kind), [LAYER], "x")[LAYER]
    after = parse_adapter_tensors(spelled(exported(kind), spelling), [LAYER], "x")[
        LAYER
    ]
    weight_OI = torch.randn(8, 6)
    torch.testing.assert_close(
        after.delta_for(weight_OI), before.delta_for(weight_OI), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_folded_file_has_its_strength_for_programs_that_do_not_know_alpha(
    kind: str,
) -> None:
    for spelling in (FOLDED, BARE):
        tensors = spelled(exported(kind), spelling)
        expected = exported(kind)[f"diffusion_model.{LAYER}.lora_B.weight"] * (
            ALPHA / RANK
        )
        torch.testing.assert_close(
            tensors[f"{spelling.prefix}{LAYER}{spelling.down_up[1]}"], expected
        )
        assert not any(key.endswith(".alpha") for key in tensors)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_loha_and_a_lokr_keep_their_alpha(kind: str) -> None:
    for spelling in (FOLDED, BARE):
        assert (
            float(spelled(exported(kind), spelling)[f"{spelling.prefix}{LAYER}.alpha"])
            == ALPHA
        )


def test_names_that_a_network_gives_itself_stay() -> None:
    own = {"lycoris_transformer_blocks_0_attn_to_q.oft_blocks": torch.ones(2, 3, 3)}
    assert spelled(own, BARE) == own


def test_every_published_family_has_a_spelling() -> None:
    """Layers that ComfyUI fuses are found by their names without a prefix alone
    (comfy/lora.py at 17358c8f)."""
    assert {*LORA_SPELLINGS, "alpha_stored"} == SPELLINGS.keys()
    published = [arch for arch in FAMILIES if FAMILIES.load(arch).published]
    for arch in published:
        family = FAMILIES.load(arch)
        layers = family.every_linear_layer(Path(next(iter(family.published))))
        assert SPELLINGS[family.lora_spelling] is spelling_for_layers(layers)
