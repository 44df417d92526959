"""The sizes of all matrices, against LyCORIS where it has the kind."""

import pytest
import torch
from lycoris.functional.general import factorization
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

from toolkit.config.network import NetworkConfig
from toolkit.networks.shapes import factorise, loha_shapes, lokr_shapes, weights_per_layer


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 7, 8, 16, 48, 100])
def test_a_size_is_factorised_as_lycoris_does(factor: int) -> None:
    for size in [*range(1, 130), 256, 384, 3072, 3584, 12288, 18432]:
        assert factorise(size, factor) == factorization(size, factor), size


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (64, 384), (256, 64), (30, 42)])
@pytest.mark.parametrize(("rank", "factor", "whole"), [(1, -1, False), (4, -1, False), (4, 4, False), (2, 8, True)])
def test_the_matrices_are_those_of_lycoris(inputs: int, outputs: int, rank: int, factor: int, whole: bool) -> None:
    layer = torch.nn.Linear(inputs, outputs)
    lokr = LokrModule("x", layer, lora_dim=rank, factor=factor, full_matrix=whole)
    loha = LohaModule("x", layer, lora_dim=rank)
    ours = lokr_shapes(inputs, outputs, rank, factor, whole), loha_shapes(inputs, outputs, rank)
    for shapes, theirs in zip(ours, (lokr, loha), strict=True):
        assert shapes == {name: tuple(p.shape) for name, p in theirs.named_parameters() if "org" not in name}


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"type": "lora"}, 4 * (64 + 256)),
        ({"type": "dora"}, 4 * (64 + 256) + 64),
        ({"type": "loha"}, 2 * 4 * (64 + 256)),
        ({"type": "lokr", "factor": 4}, 4 * 4 + 4 * (16 + 64)),
        ({"type": "lokr", "factor": 4, "lokr_full_rank": True}, 4 * 4 + 16 * 64),
        ({"type": "lokr"}, 16 * 8 + 4 * (16 + 8)),
        ({"type": "lokr", "linear": 8}, 16 * 8 + 16 * 8),  # a rank of half of 16 saves nothing
    ],
)
def test_the_weights_of_a_layer_are_counted(settings: dict, weights: int) -> None:
    """On 64 inputs (in balance 8 x 8) and 256 outputs (16 x 16)."""
    assert weights_per_layer(NetworkConfig(**{"linear": 4, **settings}), 64, 256) == weights
