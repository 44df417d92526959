"""Bringing a change into another rank: exact where it fits, the nearest one with its
error where it does not."""

from collections.abc import Callable

import pytest
import torch

from toolkit.networks import svd as fitting
from toolkit.networks.lora_formats import LayerDelta
from toolkit.networks.svd import extract_lora, extract_lora_from_delta


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def lora(rank: int, scale: float = 0.5) -> LayerDelta:
    return LayerDelta(
        {"down": torch.randn(rank, 24), "up": torch.randn(40, rank)}, scale
    )


def loha(rank: int) -> LayerDelta:
    shapes = {
        "hada_w1_a": (40, rank),
        "hada_w1_b": (rank, 24),
        "hada_w2_a": (40, rank),
        "hada_w2_b": (rank, 24),
    }
    return LayerDelta(
        {name: torch.randn(shape) for name, shape in shapes.items()}, 0.25
    )


@pytest.mark.parametrize("rank", [4, 9])
def test_a_lora_that_fits_stays_as_it_is(rank: int) -> None:
    change = lora(4)
    up_OR, down_RI, error = extract_lora(change, rank)
    assert error == 0
    assert torch.equal(down_RI, change.parts["down"])
    assert torch.equal(up_OR, 0.5 * change.parts["up"])


def lokr(**shapes: tuple[int, int]) -> LayerDelta:
    return LayerDelta(
        {f"lokr_{name}": torch.randn(shape) for name, shape in shapes.items()}, -0.5
    )


CHANGES = {
    "lora": lambda: lora(8),
    "lora of full rank": lambda: lora(30),
    "loha": lambda: loha(3),
    "loha of full rank": lambda: loha(5),
    "lokr": lambda: lokr(w1=(4, 6), w2_a=(10, 2), w2_b=(2, 4)),
    "lokr whole": lambda: lokr(w1=(4, 3), w2=(10, 8)),
    "lokr in four": lambda: lokr(w1_a=(4, 1), w1_b=(1, 3), w2_a=(10, 7), w2_b=(7, 8)),
}


@pytest.mark.parametrize("make", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("rank", [1, 4, 6])
def test_a_cut_is_the_nearest_and_states_its_error(
    make: Callable[[], LayerDelta], rank: int
) -> None:
    change = make()
    delta_OI = change.delta()
    up_OR, down_RI, error = extract_lora(change, rank)
    assert up_OR.shape == (40, rank)
    assert down_RI.shape == (rank, 24)
    real = float((up_OR @ down_RI - delta_OI).norm() / delta_OI.norm())
    assert real == pytest.approx(error, abs=1e-5)
    values = torch.linalg.svdvals(delta_OI)
    nearest = float(values[rank:].norm() / values.norm())  # Eckart-Young
    assert real == pytest.approx(nearest, abs=1e-5)


def test_a_product_of_low_rank_is_kept_whole() -> None:
    change = loha(2)  # elementwise products of rank 2 have rank 4
    up_OR, down_RI, error = extract_lora(change, 4)
    assert error < 1e-5
    torch.testing.assert_close(up_OR @ down_RI, change.delta(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "make", [CHANGES["loha"], CHANGES["lokr"]], ids=["loha", "lokr"]
)
def test_factors_are_decomposed_instead_of_the_whole_change(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes minutes for all layers of a large model, this way takes seconds."""
    change = make()
    monkeypatch.setattr(
        fitting, "_svd", lambda *_: pytest.fail("the whole change was decomposed")
    )
    monkeypatch.setattr(
        LayerDelta, "delta", lambda *_: pytest.fail("the whole change was formed")
    )
    extract_lora(change, 3)


def test_large_matrices_take_the_randomised_way_and_still_state_their_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nearly as near as the nearest, and without the global generator, which belongs to
    the training."""
    monkeypatch.setattr(fitting, "FULL_SVD_SIDE", 8)
    u, _, v = torch.linalg.svd(torch.randn(200, 120), full_matrices=False)
    values = 0.9 ** torch.arange(120)
    delta_OI = u * values @ v
    before = torch.random.get_rng_state()
    up_OR, down_RI, error = extract_lora_from_delta(delta_OI, 10)
    assert torch.equal(before, torch.random.get_rng_state())
    real = float((up_OR @ down_RI - delta_OI).norm() / delta_OI.norm())
    assert real == pytest.approx(error, abs=1e-4)
    nearest = float(values[10:].norm() / values.norm())
    assert nearest * 0.9999 < real < nearest * 1.001
    torch.manual_seed(99)
    assert torch.equal(extract_lora_from_delta(delta_OI, 10)[0], up_OR)


def test_a_change_of_zero_fits() -> None:
    change = LayerDelta({"down": torch.zeros(8, 24), "up": torch.zeros(40, 8)}, 1.0)
    up_OR, down_RI, error = extract_lora(change, 2)
    assert error == 0
    assert not (up_OR @ down_RI).any()
