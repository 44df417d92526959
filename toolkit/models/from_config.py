"""Modules of diffusers from the arguments that a user gives: checked by name and tried
before any memory is taken."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from toolkit.errors import UserError, did_you_mean
from toolkit.system.device import is_out_of_memory


def build(kind: type[Any], arguments: Mapping[str, Any], key: str) -> Any:
    """A module with random weights, drawn from torch's global generator. key: of the
    arguments, for messages.

    Raises UserError for arguments that `kind` does not have or cannot be made of.
    """
    refuse_arguments(kind, arguments, key)
    return _made(kind, arguments, key)


def refuse_arguments(kind: type[Any], arguments: Mapping[str, Any], key: str) -> None:
    """Raises what `build` raises; nothing is allocated."""
    known = []
    for name in inspect.signature(kind.__init__).parameters:
        if name != "self":
            known.append(name)
    unknown = sorted(arguments.keys() - set(known))
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise UserError(
            f"{key}.{unknown[0]}: {kind.__name__} has no such argument. {hint}"
        )
    with torch.device("meta"):
        _made(kind, arguments, key)


def _made(kind: type[Any], arguments: Mapping[str, Any], key: str) -> Any:
    try:
        return kind(**arguments)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{key}: {kind.__name__} cannot be made of it: {reason}"
        ) from error
