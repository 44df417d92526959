"""How the frozen model is quantized: what a `model:` section adds to its `qtype`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.memory.quantize import UNCOVERED_QTYPE, LowRank, quantizer
from toolkit.models.families import family_for
from toolkit.models.hub import download_file
from toolkit.models.opening import Quantizer, model_folder
from toolkit.networks.formats import read_network_file

Note = Callable[[str], None]
KEY = "model.accuracy_recovery_adapter"


def block_quantizer(section: Any, note: Note) -> Quantizer | None:
    """What quantizes the transformer's blocks, with its recovery adapter; None when they are not quantized.

    Says what changes the numbers beyond the chosen type. Raises UserError when the adapter's file is of no use.
    """
    model = section.model
    if not model.quantize:
        return None
    layers = family_for(model).linear_layers(model_folder(model, note))
    recovery = _recovery(model, layers, note) if model.accuracy_recovery_adapter else None
    return partial(quantizer, recovery=recovery)


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
