"""Bringing a change into another rank: exact where it fits, the nearest one with its error where it does not."""

from collections.abc import Callable

import pytest
import torch

from toolkit.networks import fit as fitting
from toolkit.networks.fit import fit
from toolkit.networks.formats import ModuleChange


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def lora(rank: int, scale: float = 0.5) -> ModuleChange:
    return ModuleChange({"down": torch.randn(rank, 24), "up": torch.randn(40, rank)}, scale)


def loha(rank: int) -> ModuleChange:
    shapes = {"hada_w1_a": (40, rank), "hada_w1_b": (rank, 24), "hada_w2_a": (40, rank), "hada_w2_b": (rank, 24)}
    return ModuleChange({name: torch.randn(shape) for name, shape in shapes.items()}, 0.25)


@pytest.mark.parametrize("rank", [4, 9])
def test_a_lora_that_fits_stays_as_it_is(rank: int) -> None:
    change = lora(4)
    up_OR, down_RI, error = fit(change, rank)
    assert error == 0
    assert torch.equal(down_RI, change.parts["down"])
    assert torch.equal(up_OR, 0.5 * change.parts["up"])


@pytest.mark.parametrize("make", [lambda: lora(8), lambda: loha(3)], ids=["lora", "loha"])
@pytest.mark.parametrize("rank", [1, 4, 6])
def test_a_cut_is_the_nearest_and_states_its_error(make: Callable[[], ModuleChange], rank: int) -> None:
    change = make()
    delta_OI = change.delta()
    up_OR, down_RI, error = fit(change, rank)
    assert up_OR.shape == (40, rank)
    assert down_RI.shape == (rank, 24)
    real = float((up_OR @ down_RI - delta_OI).norm() / delta_OI.norm())
    assert real == pytest.approx(error, abs=1e-5)
    values = torch.linalg.svdvals(delta_OI)
    nearest = float(values[rank:].norm() / values.norm())  # Eckart-Young
    assert real == pytest.approx(nearest, abs=1e-5)


def test_a_product_of_low_rank_is_kept_whole() -> None:
    change = loha(2)  # elementwise products of rank 2 have rank 4
    up_OR, down_RI, error = fit(change, 4)
    assert error < 1e-5
    torch.testing.assert_close(up_OR @ down_RI, change.delta(), atol=1e-5, rtol=1e-4)


def test_large_matrices_take_the_randomised_way_and_still_state_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "FULL_SVD_SIDE", 8)
    torch.manual_seed(0)
    change = loha(2)
    before = torch.random.get_rng_state()
    up_OR, down_RI, error = fit(change, 3)
    assert torch.equal(before, torch.random.get_rng_state())
    delta_OI = change.delta()
    assert float((up_OR @ down_RI - delta_OI).norm() / delta_OI.norm()) == pytest.approx(error, abs=1e-4)


def test_a_change_of_zero_fits() -> None:
    change = ModuleChange({"down": torch.zeros(8, 24), "up": torch.zeros(40, 8)}, 1.0)
    up_OR, down_RI, error = fit(change, 2)
    assert error == 0
    assert not (up_OR @ down_RI).any()
