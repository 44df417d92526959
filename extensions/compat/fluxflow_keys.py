"""The keys and flags of FluxFlow's training guide, and what each is here: one table,
fluxflow_keys.toml, for the reader of its files, the command line and
docs/coming_from_fluxflow.md. Imports nothing heavy: `run.py --help` reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import UserError, did_you_mean

Kind = Literal[
    "switch", "whole", "number", "text", "texts", "mapping", "names", "sizes"
]

DATA = "data"
MODEL = "model"
TRAINING = "training"
OUTPUT = "output"
SECTIONS = (DATA, MODEL, TRAINING, OUTPUT)

STEPS = "steps"
"""Stands for an entry of `training.pipeline.steps`, and for
`training.pipeline.defaults`."""


@dataclass(frozen=True)
class Key:
    """A key of the guide. It is a flag as well, `--<name>`, unless it holds a
    mapping.

    >>> keys()["use_webdataset"].is_flag
    True
    >>> keys()["data_path"].here
    '`datasets[].folder_path`'
    """

    kind: Kind
    places: tuple[str, ...]
    """Sections that may hold it."""

    here: str
    """What it is here, for the page: a key of the process in backticks, or a
    sentence."""

    least: float = -math.inf
    """Smallest number that means something."""

    most: float = math.inf
    """Largest number."""

    default: Any = None
    """The value where nothing is given, for the page."""

    @property
    def is_flag(self) -> bool:
        """Whether it can be given on the command line: not what only a step in a file
        has."""
        is_text = self.kind not in ("mapping", "names", "sizes")
        return is_text and self.places != (STEPS,)


@cache
def tables() -> Mapping[str, Mapping[str, Any]]:
    """The tables of fluxflow_keys.toml: `keys`, `not_here`, `other_grammars` and
    `without_effect`."""
    import tomllib  # here: most starts never ask

    text = Path(__file__).with_name("fluxflow_keys.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def keys() -> dict[str, Key]:
    """Each key of the guide."""
    return {
        name: Key(
            row["kind"],
            tuple(row["in"].split()),
            row["here"],
            row.get("least", -math.inf),
            row.get("most", math.inf),
            row.get("left_out"),
        )
        for name, row in tables()["keys"].items()
    }


@cache
def guide_flags() -> dict[str, Key]:
    """The keys that can be given on the command line."""
    return {name: key for name, key in keys().items() if key.is_flag}


def names_in(place: str) -> list[str]:
    """The keys that may stand in a section, or in STEPS."""
    return [name for name, key in keys().items() if place in key.places]


HELP = (
    "FluxFlow",
    "The flags of FluxFlow's training guide (--data_path, --train_vae, ...) make a job without a file, or change "
    "one of its files: docs/coming_from_fluxflow.md",
)
"""The heading and the text of the flags in `run.py --help`."""


def split_flags(
    argv: Sequence[str], own_options: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """The guide's flags with the texts behind them, and all other arguments.
    own_options: the program's own options.

    A switch has no text, or `true` or `false`. Raises UserError for all flags that
    neither knows, one that is given twice, and one without its value.
    """
    unknown: list[str] = []
    flags: dict[str, list[str]] = {}
    rest: list[str] = []
    waiting = list(argv)
    while waiting:
        token = waiting.pop(0)
        name, equals, value = token.removeprefix("--").partition("=")
        if token == "--":  # what follows are file names
            rest += [token, *waiting]
            break
        # two letters behind one dash are two short options
        if re.match(r"-[a-z]{2}", token) and f"-{token}" in own_options:
            unknown.append(f"{token}: unknown flag. Did you mean '-{token}'?")
            continue
        is_own = any(option.startswith(f"--{name}") for option in own_options)
        if (
            not token.startswith("--")
            or f"--{name}" in own_options
            or (is_own and name not in guide_flags())
        ):
            rest.append(token)
            continue
        if name not in guide_flags():
            hint = _near_own(name, own_options) or _not_a_flag(name)
            unknown.append(
                f"--{name}: unknown flag. {hint or _near(name, own_options)}"
            )
            continue
        if name in flags:
            raise UserError(f"--{name}: is given twice. Remove one of them.")
        flags[name] = [value] if equals else _values(keys()[name].kind, waiting)
        if not flags[name] and keys()[name].kind != "switch":
            raise UserError(f"--{name}: needs a value.")
    if unknown:
        raise UserError("\n".join(unknown))
    return flags, rest


def _values(kind: Kind, waiting: list[str]) -> list[str]:
    """The texts that belong to a flag, taken from what follows it."""
    values: list[str] = []
    while waiting and not waiting[0].startswith("--"):
        if kind == "switch" and waiting[0].lower() not in ("true", "false"):
            break
        values.append(waiting.pop(0))
        if kind != "texts":
            break
    return values


def _long(own_options: Sequence[str]) -> list[str]:
    """The program's own long options, without dashes."""
    return [
        option.removeprefix("--")
        for option in own_options
        if option.startswith("--") and "_" not in option
    ]


def _near_own(name: str, own_options: Sequence[str]) -> str:
    """The program's own option that is nearly a flag; empty where none is."""
    near = get_close_matches(
        name.replace("_", "-"), _long(own_options), n=1, cutoff=0.8
    )
    return f"Did you mean '--{near[0]}'?" if near else ""


def _not_a_flag(name: str) -> str:
    # here: it imports what reads jobs
    from extensions.compat.keys import not_a_flag

    return not_a_flag(name)


def _near(name: str, own_options: Sequence[str]) -> str:
    hint = did_you_mean(name, [*guide_flags(), *_long(own_options)], list_all=False)
    if hint.startswith("Did you mean"):
        return hint.replace("'", "'--", 1)
    return "run.py --help lists the program's own options, docs/coming_from_fluxflow.md the guide's flags."
