"""Optimizers by the short names of `train.optimizer`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from toolkit.errors import UserError, did_you_mean
from toolkit.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": "torch.optim:AdamW",
        "adam": "torch.optim:Adam",
        "adamw8bit": "bitsandbytes.optim:AdamW8bit",
        "lion8bit": "bitsandbytes.optim:Lion8bit",
        "adafactor": "transformers.optimization:Adafactor",
    },
)

DEFAULTS: dict[str, dict[str, Any]] = {
    # Adafactor's own learning rate would ignore `train.lr`.
    "adafactor": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
}
"""Arguments an optimizer gets unless `optimizer_params` says otherwise."""


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, arguments: Mapping[str, Any]
) -> Optimizer:
    """The optimizer `name` with learning rate `lr` and the user's `optimizer_params`.

    Raises UserError for an argument the optimizer does not take.
    """
    optimizer_class = OPTIMIZERS.load(name)
    known = set(inspect.signature(optimizer_class).parameters) - {"self", "params", "lr"}
    for argument in arguments:
        if argument not in known:
            raise UserError(f"train.optimizer_params: {name} has no {argument!r}. {did_you_mean(argument, known)}")
    return optimizer_class(list(parameters), lr=lr, **{**DEFAULTS.get(name, {}), **arguments})


def state_tensors(optimizer: Optimizer, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state by parameter name: tensors as `<parameter>/<entry>`, everything else as JSON values.

    names: of the parameters, in the order the optimizer was given them. Nested entries (bitsandbytes keeps its
    8-bit state one level deeper) have one more part in their name.
    """
    flat = {
        f"{names[index]}/{path}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for path, value in _flatten(entries)
    }
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def load_state_tensors(
    optimizer: Optimizer, names: list[str], tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """The inverse of `state_tensors`, into a fresh optimizer over the same parameters."""
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**plain, **tensors}.items():
        parameter, *path, entry = key.split("/")
        place = state.setdefault(index_of[parameter], {})
        for part in path:
            place = place.setdefault(part, {})
        place[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _flatten(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value
