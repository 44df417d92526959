"""Kinds of adapter that are not read, recognized by the names of their tensors, so that
a refusal names the kind of a file. Called by `lora_formats` and `adapter_health`.

Source: peft 0.21.2, the `prefix` of each tuner and the keys that it saves
(`tests/toolkit/networks/ test_unread_kinds.py` asks the installed peft for them);
LyCORIS 4.1.3, `weight_list` of its modules; ComfyUI's names of whole changes.

    unread_kind("lycoris_to_q.lambda_layer")  # "a T-LoRA, ..."
"""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

SUFFIXES: dict[str, str] = _TABLE["suffixes"]
"""Suffix of a key -> the kind, with its article."""

NAMES: dict[str, str] = _TABLE["names"]
"""Start of one of the last two dotted parts of a key -> the kind, with its article."""


def unread_kind(key: str) -> str:
    """The kind of adapter that has a tensor of this name, with its article; empty where
    the name is unknown.

    >>> unread_kind("transformer_blocks.0.attn.to_q.vera_lambda_b")
    'a VeRA of peft'
    """
    named = re.search(r"\.lora_[AB]\.(\w+)\.weight$", key)
    if named:
        return f"an adapter with a name ({named[1]}), which peft's save_pretrained leaves out"
    by_suffix = (what for suffix, what in SUFFIXES.items() if key.endswith(suffix))
    # earlier parts are the module's own name, which may begin like a kind's
    by_name = (
        what
        for part in key.split(".")[-2:]
        for name, what in NAMES.items()
        if part.startswith(name)
    )
    return next(chain(by_suffix, by_name), "")
