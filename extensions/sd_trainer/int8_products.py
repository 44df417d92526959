"""Which layers of the frozen model multiply in int8: what a job wants, what it gets, and the line that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from toolkit.contracts import ModelAdapter, Network
from toolkit.data.batches import LatentBatch
from toolkit.errors import RunError
from toolkit.memory.advice import memory_advice
from toolkit.memory.int8_matmul import MOST_ERROR, is_exact
from toolkit.memory.int8_probe import candidates, int8_layers, is_small
from toolkit.memory.stored import InInt8, RowScaled
from toolkit.parallel import Team
from toolkit.train.int8_choice import Errors, choose_int8

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Note = Callable[[str], None]
KEY = "model.int8_matmul"


def choose_int8_products(
    section: Any,
    adapter: ModelAdapter,
    network: Network,
    device: torch.device,
    first: Callable[[], tuple[LatentBatch, Tensor]],
    team: Team,
    note: Note,
) -> None:
    """Makes the choice that `model.int8_matmul` asks for; the network is attached, and nothing is trained yet.

    first: the first item of the run and its noise. Raises RunError when even that does not fit into memory.
    """
    from torch import OutOfMemoryError

    wanted, compiled = section.model.int8_matmul, section.train.compile
    model = adapter.network_module
    fused = compiled.enabled and compiled.backend == "inductor"
    layers = candidates(model, wanted, device, fused)
    count = len(int8_layers(model))
    if not all(team.gather(bool(layers))):  # processes on unlike machines make the same passes
        if wanted is True and count:
            note(f"{KEY} true has no effect: {_reason(device, bool(layers))}.")
        return
    try:
        errors = choose_int8(adapter, network, layers, *first(), team.from_first, compiled.enabled)
    except OutOfMemoryError as error:
        raise RunError(f"out of memory with one image. {memory_advice(section)}") from error
    note(_said(wanted, layers, errors, count))


def _reason(device: torch.device, able: bool) -> str:
    if able:
        return "another process has no exact product of int8"
    return "no layer has a width it takes" if is_exact(device) else f"{device} has no exact product of int8"


def _said(wanted: bool | str, layers: Sequence[RowScaled], errors: Errors, count: int) -> str:
    inputs, gradients = (sum(getattr(layer.in_int8, way) for layer in layers) for way in InInt8._fields)
    large = sum(not all(map(is_small, error.values())) for error in errors)
    given_up = sum(
        is_small(value) and not getattr(layer.in_int8, way)
        for layer, error in zip(layers, errors, strict=True)
        for way, value in error.items()
    )
    return (
        f"{KEY} {str(wanted).lower()}: of {count} int8 layers {inputs} round their inputs to int8 too, "
        f"{gradients} their gradients, which is faster; false keeps them whole"
        + (f"; {large} would lose more than {MOST_ERROR:.0%} by it" if large else "")
        + (f"; {given_up} products are left as they are so that few programs are compiled" if given_up else "")
    )
