"""Builds modules of diffusers from the arguments that a user gives. The names are
checked, and the module is tried on torch's meta device, before any memory is taken.

It draws random weights and reads no file. `qwen_image.new` and `qwen_image21.new` build
transformers with it; the trainers of new autoencoders and models build theirs, and
check the arguments at the start of a job.

    vae = build(AutoencoderKLQwenImage, {"base_dim": 32}, "vae")
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from toolkit.errors import UserError, did_you_mean
from toolkit.system.device import is_out_of_memory


def build(kind: type[Any], arguments: Mapping[str, Any], key: str) -> Any:
    """A module of this class with random weights, drawn from torch's global generator.

    key: of the arguments, for messages. Raises UserError for arguments that the class
    does not have, or cannot be made from.
    """
    refuse_arguments(kind, arguments, key)
    return _made(kind, arguments, key)


def refuse_arguments(kind: type[Any], arguments: Mapping[str, Any], key: str) -> None:
    """Raises the errors of `build`, without allocating memory.

    >>> refuse_arguments(torch.nn.Linear, {"in_features": 4, "out_features": 2}, "net")
    >>> refuse_arguments(torch.nn.Linear, {"in_feature": 4}, "net")
    Traceback (most recent call last):
    ...
    toolkit.errors.UserError: net.in_feature: Linear has no such argument. ...
    """
    known = [
        name for name in inspect.signature(kind.__init__).parameters if name != "self"
    ]
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
