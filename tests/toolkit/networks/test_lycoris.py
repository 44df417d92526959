"""The layers against LyCORIS' own."""

import pytest
import torch
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

from tests.diffusers_reference import relative
from tests.measured import at_most
from toolkit.networks.lycoris import LohaNetwork, LokrNetwork


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "rank", "alpha", "factor", "whole"),
    [
        ("LoHa", 4, 4.0, None, False),
        ("LoHa", 3, 1.5, None, False),
        ("LoKr", 2, 2.0, -1, False),
        ("LoKr", 2, 1.0, 4, False),
        ("LoKr", 8, 3.0, -1, False),
        ("LoKr", 2, 1.0, 4, True),
    ],
)
def test_the_layer_computes_what_lycoris_trains(
    kind: str, rank: int, alpha: float, factor: int | None, whole: bool
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40))
    if kind == "LoHa":
        theirs = LohaModule("x", model[0], lora_dim=rank, alpha=alpha)
        network = LohaNetwork(["0"], rank, alpha, dropout=0.0, seed=1)
    else:
        theirs = LokrModule(
            "x", model[0], lora_dim=rank, alpha=alpha, factor=factor, full_matrix=whole
        )
        network = LokrNetwork(
            ["0"], rank, alpha, dropout=0.0, seed=1, factor=factor, whole=whole
        )
    network.attach(model)
    for name, p in network.layer_weights("0").items():
        getattr(theirs, name).copy_(p.normal_())
    x = torch.randn(2, 5, 24)
    base = model[0].base_layer(x)
    found, options = (
        relative(model[0](x) - base, theirs(x) - base),
        f", factor {factor}, whole {whole}" * bool(factor),
    )
    at_most(f"{kind} layer, rank {rank}, alpha {alpha:g}{options}", found, 1e-5)
