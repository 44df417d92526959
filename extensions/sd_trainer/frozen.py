"""How the frozen model is quantized: what a `model:` section adds to its `qtype`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import UserError
from toolkit.memory.int8_matmul import applies, is_exact
from toolkit.memory.quantize import UNCOVERED_QTYPE, LowRank, quantizer
from toolkit.models.families import family_for
from toolkit.models.hub import download_file
from toolkit.models.opening import Quantizer, model_folder
from toolkit.networks.formats import read_network_file

if TYPE_CHECKING:
    import torch

Note = Callable[[str], None]
KEY = "model.accuracy_recovery_adapter"


def block_quantizer(section: Any, device: torch.device, note: Note) -> Quantizer | None:
    """What quantizes the transformer's blocks, with its recovery adapter; None when they are not quantized.

    Says what changes the numbers beyond the chosen type. Raises UserError when the adapter's file is of no use.
    """
    model = section.model
    if not model.quantize:
        return None
    layers = family_for(model).linear_layers(model_folder(model, note))
    recovery = _recovery(model, layers, note) if model.accuracy_recovery_adapter else None
    in_int8 = layers.keys() if model.qtype == "int8" else layers.keys() - (layers if recovery is None else recovery)
    _say_int8(model.int8_matmul, device, [layers[name] for name in in_int8], note)
    return partial(quantizer, int8_matmul=model.int8_matmul, recovery=recovery)


def _say_int8(wanted: bool | str, device: torch.device, shapes: list[tuple[int, int]], note: Note) -> None:
    count = sum(applies(wanted, device, (outputs, inputs)) for inputs, outputs in shapes)
    if count:
        note(
            f"model.int8_matmul {str(wanted).lower()}: {count} of {len(shapes)} int8 layers round their inputs to int8 "
            "too, which is faster; false keeps them whole"
        )
    elif wanted is True and shapes:
        reason = "no layer has a width it takes" if is_exact(device) else f"{device} has no exact product of int8"
        note(f"model.int8_matmul true has no effect: {reason}.")


def _recovery(model: Any, layers: dict[str, tuple[int, int]], note: Note) -> dict[str, LowRank]:
    """The changes of the adapter's file by full layer name."""
    name = model.accuracy_recovery_adapter
    path = Path(name).expanduser() if model.recovery_is_path() else download_file(name, KEY, note)
    changes = read_network_file(path, layers)
    if not changes:
        raise UserError(f"{KEY}: {path.name} changes no layer of this model.")
    recovery = {}
    for target, change in changes.items():
        if change.low_rank is None or change.magnitude is not None:
            raise UserError(f"{KEY}: {path.name} is no plain LoRA ({target}).")
        recovery[target] = change.low_rank
    rest = len(layers) - len(recovery)
    note(
        f"accuracy-recovery adapter {path.name}: added to {len(recovery)} layers of {model.qtype}, "
        "never trained and never saved"
        + (f"; the other {rest} are {UNCOVERED_QTYPE}" if rest and model.qtype != UNCOVERED_QTYPE else "")
    )
    return recovery
