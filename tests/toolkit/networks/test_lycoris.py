"""The layer against LyCORIS' own."""

import pytest
import torch
from lycoris.modules.loha import LohaModule

from tests.diffusers_reference import relative
from tests.measured import at_most
from toolkit.networks.lycoris import LohaNetwork


@torch.no_grad()
@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (3, 1.5)])
def test_the_layer_computes_what_lycoris_trains(rank: int, alpha: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40))
    theirs = LohaModule("x", model[0], lora_dim=rank, alpha=alpha)
    network = LohaNetwork(["0"], rank, alpha, dropout=0.0, seed=1)
    network.attach(model)
    for name, p in network.layer_weights("0").items():
        getattr(theirs, name).copy_(p.normal_())
    x = torch.randn(2, 5, 24)
    base = model[0].base_layer(x)
    ours = model[0](x) - base
    at_most(f"LoHa layer, rank {rank}, alpha {alpha:g}", relative(ours, theirs(x) - base), 1e-5)
