"""The layer against LyCORIS' own."""

import pytest
import torch
from lycoris.modules.lokr import LokrModule

from tests.diffusers_reference import relative
from tests.measured import at_most
from toolkit.networks.lycoris import LokrNetwork


@torch.no_grad()
@pytest.mark.parametrize(
    ("rank", "alpha", "factor", "whole"),
    [(2, 2.0, -1, False), (2, 1.0, 4, False), (8, 3.0, -1, False), (2, 1.0, 4, True)],
)
def test_the_layer_computes_what_lycoris_trains(rank: int, alpha: float, factor: int, whole: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40))
    theirs = LokrModule("x", model[0], lora_dim=rank, alpha=alpha, factor=factor, full_matrix=whole)
    network = LokrNetwork(["0"], rank, alpha, dropout=0.0, seed=1, factor=factor, whole=whole)
    network.attach(model)
    for name, p in network.layer_weights("0").items():
        getattr(theirs, name).copy_(p.normal_())
    x = torch.randn(2, 5, 24)
    base = model[0].base_layer(x)
    ours = model[0](x) - base
    at_most(
        f"LoKr layer, rank {rank}, alpha {alpha:g}, factor {factor}, whole {whole}",
        relative(ours, theirs(x) - base),
        1e-5,
    )
