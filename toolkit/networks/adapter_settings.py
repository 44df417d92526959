"""The settings that peft and diffusers store with an adapter, and their meaning for its
matrices.

A file of peft has only matrices. Their strength is in `adapter_config.json` next to it,
or in the file's header where diffusers wrote it. With some settings the matrices alone
are not the change: such files are refused by name. `FIELDS` has a row for every field
of peft's config classes; `tests/toolkit/networks/test_adapter_settings.py` walks the
installed classes, so that a new field fails a test before it can be misread. Imports no
torch. Called by `lora_formats` and `multiplied_files`, which read the files, by
`adapter_health` and `programs`, and by the tool that converts files.

Source: peft 0.21.2, tuners/{lora,loha,lokr,oft,boft}/config.py and layer.py,
utils/other.py (`get_pattern_key`); diffusers 0.42.1, loaders/lora_base.py
(`lora_adapter_metadata`).

    settings = read_settings(metadata)
    if settings is not None:
        scale = settings.scale("transformer_blocks.0.attn.to_q", "lora", rank=16)
"""

from __future__ import annotations

import json
import math
import re
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.config.sections.network import MATCH_SECONDS, matching
from toolkit.errors import UserError
from toolkit.files.safetensors_io import MOST_TENSORS

HEADER_METADATA = "lora_adapter_metadata"
"""Key of the header in which diffusers stores the settings."""

CONFIG_FILE = "adapter_config.json"
"""The file in which peft stores the settings. `read_tensors` keeps its text in the
metadata under this name."""

PEFT_PREFIX = "base_model.model."
"""Start of each key that peft itself saves."""

DEFAULT_ALPHA = 8.0
"""The alpha of a config that does not give one: the default of peft's classes."""

MOST_EXPRESSIONS = 1000
"""Regular expressions in one config. diffusers writes one plain name for each layer;
people write a handful."""

LONGEST_EXPRESSION = 10_000
"""Most characters of an expression. Longer ones take minutes to compile."""


@dataclass(frozen=True)
class Refused:
    """A setting with which the matrices alone are not the change. Empty values (null,
    false, {}) are harmless.

    >>> Refused("it also trains norms", remedy="Merge it with peft.").harmless
    ()
    """

    reason: str
    harmless: Sequence[object] = ()
    """Values that leave the matrices their meaning."""

    remedy: str = "Merge it into its model with peft, and extract a LoRA of that (run.py extract)."


SCALES = "scales"
HARMLESS = "harmless"

_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _fields(kind: str) -> dict[str, str | Refused]:
    row = _TABLE[kind]
    return {
        **(_fields(row["as"]) if "as" in row else {}),
        **{name: key for key in (SCALES, HARMLESS) for name in row.get(key, ())},
        **{name: Refused(**one) for name, one in row.get("refused", {}).items()},
    }


FIELDS = {kind: _fields(kind) for kind in ("LORA", "LOHA", "LOKR", "OFT", "BOFT")}
"""`peft_type` -> field of its config -> whether it scales the change, is harmless, or
is refused (adapter_settings.toml)."""

ALPHA_OF = {"lora": "lora_alpha", "loha": "alpha", "lokr": "alpha"}
"""Kind of the matrices -> the field that has their alpha."""


OFT_SINCE = (0, 18)
"""The first version of peft with the series of an OFT that is read here. The series of
older versions ends differently."""

MOST_TERMS = 1000
"""Most terms of that series; people write 5."""


@dataclass(frozen=True)
class OftSettings:
    """How peft makes the rotations of an OFT from its matrices.

    >>> OftSettings(neumann_terms=5).coft_eps is None
    True
    """

    neumann_terms: int | None = None
    """Terms of the series that approximates the rotation; None: the rotation is exact."""

    coft_eps: float | None = None
    """The limit of the rotation in a constrained OFT; None: it is not constrained."""

    is_shared: bool = False
    """Whether one block is used for all."""


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of one file. `scale` gives their factor for a layer; `fault` is the
    reason why the file cannot be read.

    >>> header = {"lora_adapter_metadata": '{"r": 16, "lora_alpha": 8}'}
    >>> settings = read_settings(header)
    >>> settings.scale("to_q", "lora", rank=16), settings.fault
    (0.5, ('', ''))
    """

    source: str
    """The place where they were found, for messages."""

    values: Mapping[str, Any]
    _patterns: dict[str, Patterns] = field(default_factory=dict)

    def scale(self, module: str, kind: str, rank: int | None) -> float:
        """The factor of a layer's change.

        module: its name without a prefix. kind: of its matrices, a key of ALPHA_OF.
        rank: the inner size of its matrices, which overrides the settings; None for a
        LoKr with two whole factors, whose rank is only in the settings (peft divides by
        it all the same, LyCORIS does not scale such layers).
        """
        if kind == "lokr" and is_before_peft_014(self.values):
            return 1.0
        alpha = self._number(module, "alpha_pattern", ALPHA_OF[kind], DEFAULT_ALPHA)
        if rank is None:
            return alpha / self._number(module, "rank_pattern", "r", DEFAULT_ALPHA)
        if kind == "lora" and self.is_rank_stabilised:
            return alpha / math.sqrt(rank)
        return alpha / rank

    @property
    def is_rank_stabilised(self) -> bool:
        """Whether the alpha of a LoRA is divided by the root of its rank (rsLoRA)."""
        return bool(self.values.get("use_rslora"))

    def _number(self, module: str, pattern: str, key: str, default: float) -> float:
        value = self._patterns[pattern].value_for(module)
        if value is None:
            value = self.values.get(key)
        return default if value is None else float(value)

    def oft(self) -> OftSettings:
        """The settings of an OFT. Raises UserError, without the name of the file, where
        one of them is missing or impossible. Defaults are not assumed, because peft's
        have changed."""
        missing = [
            key
            for key in _OFT_KEYS
            if not isinstance(self.values.get(key), _OFT_KEYS[key])
        ]
        if missing:
            raise UserError(
                f"{self.source} says nothing of {missing[0]}, without which an OFT cannot be read. Save it with peft."
            )
        series, terms, eps = (
            self.values[key]
            for key in ("use_cayley_neumann", "num_cayley_neumann_terms", "eps")
        )
        if series and _version(self.values.get("peft_version")) < OFT_SINCE:
            raise UserError(
                f"{self.source} says use_cayley_neumann, and is not of peft 0.18 or later, which changed what it "
                f"means. Merge the file into its model with the peft that wrote it."
            )
        if not 1 <= terms <= MOST_TERMS or not 0 <= eps < math.inf:
            raise UserError(
                f"{self.source} says num_cayley_neumann_terms: {terms} and eps: {eps}, which no OFT has."
            )
        return OftSettings(
            neumann_terms=terms if series else None,
            coft_eps=float(eps) if self.values["coft"] else None,
            is_shared=self.values["block_share"],
        )

    @property
    def fault(self) -> tuple[str, str]:
        """(reason why a file with these settings is not read, remedy); two empty texts
        where it is read."""
        named = _kind_named(self.values)
        if named and named not in FIELDS:
            return (
                f"{self.source} says peft_type {_shown(named)}, a kind that is not read",
                "Merge it into its model with peft.",
            )
        fields = FIELDS.get(named, FIELDS["LORA"] | FIELDS["LOKR"])
        for key, value in self.values.items():
            meaning = fields.get(
                key,
                Refused(
                    "this setting is not known", remedy="Save it with peft 0.21.2."
                ),
            )
            if (
                isinstance(meaning, Refused)
                and value
                and not _is_one_of(value, meaning.harmless)
            ):
                return (
                    f"{self.source} says {_shown(key)}: {_short(value)}: {meaning.reason}",
                    meaning.remedy,
                )
        return "", ""


def read_settings(metadata: Mapping[str, str]) -> AdapterSettings | None:
    """The settings in a file's metadata (`lora_formats.read_tensors`), or None where
    it has none.

    Raises UserError, without the name of the file, for settings that are not JSON, that
    have another value in place of a number, or a pattern that is not a regular
    expression.

    >>> read_settings({}) is None
    True
    """
    for key, source in (
        (HEADER_METADATA, f"{HEADER_METADATA} in its header"),
        (CONFIG_FILE, CONFIG_FILE),
    ):
        if key in metadata:
            values = _parsed(metadata[key], source)
            if not values:  # they concern only other parts of a pipeline
                continue
            return AdapterSettings(
                source,
                values,
                {name: _patterns(values, name, source) for name in PATTERNS},
            )
    return None


PATTERNS = ("rank_pattern", "alpha_pattern")


def is_before_peft_014(values: Mapping[str, Any]) -> bool:
    """Whether peft 0.13 or older saved the config: it has all fields of that version,
    without the one that 0.14 added.

    Such a version did not scale a LoKr. It looked up a layer in `rank_pattern` and
    `alpha_pattern` by one key, the first of both that matches. Source: peft 0.9.0, 0.12.0 and 0.13.2,
    tuners/lokr/layer.py and tuners/lora/model.py.
    """
    return "auto_mapping" in values and "exclude_modules" not in values


_PART = "transformer."
"""Prefix of the fields of the trained part, in the header of a pipeline's file."""


def _parsed(text: str, source: str) -> dict[str, Any]:
    """Name -> value of a field. Fields of other parts of a pipeline (`text_encoder.r`)
    are left out. Where some fields have the prefix of the transformer, all others are
    left out, as in diffusers."""
    try:
        written = json.loads(text)
        of_part = {
            key: value for key, value in written.items() if key.startswith(_PART)
        }
        named = {
            key.removeprefix(_PART): value
            for key, value in (of_part or written).items()
        }
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{source} is not a JSON mapping ({error}).") from error
    values = {key: value for key, value in named.items() if "." not in key}
    for key in ("r", "lora_alpha", "alpha"):
        _check_number(values.get(key), source)
    # only the matrices of a LoKr may not show the rank; an OFT may have r: 0
    if _kind_named(values) in (
        "",
        "LOKR",
    ):
        _check_ranks([values.get("r")], source)
    return values


def _kind_named(values: Mapping[str, Any]) -> str:
    """`peft_type` in capitals, as a key of FIELDS; empty where it is not given."""
    return str(values.get("peft_type") or "").rpartition(".")[2].upper()


def _check_ranks(ranks: Iterable[float | None], source: str) -> None:
    for rank in ranks:
        if rank is not None and rank <= 0:
            raise UserError(f"{source} holds a rank of {rank:g}, which no adapter has.")


def _check_number(value: object, source: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and _is_finite(value)):
        raise UserError(f"{source} holds {_short(value)} where a number has to be.")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


class Patterns:
    """`rank_pattern` or `alpha_pattern`: the value of the first pattern that matches a
    module.

    peft matches `(.*\\.)?(PATTERN)$` at the start of the name. Most patterns are plain
    names, one for each layer, which are compared without a regular expression; "."
    matches any character in them too.

    >>> Patterns({"to_q": 4.0}, "adapter_config.json").value_for("blocks.0.to_q")
    4.0
    """

    def __init__(self, patterns: Mapping[str, float | None], source: str) -> None:
        self._source = source
        self._values = list(patterns.items())
        self._seconds = 0.0
        self._compiled: dict[str, re.Pattern[str]] = {}
        expressions = [pattern for pattern in patterns if not PLAIN.fullmatch(pattern)]
        if len(expressions) > MOST_EXPRESSIONS:
            raise UserError(
                f"{source} holds {len(expressions)} regular expressions; {MOST_EXPRESSIONS} are the most."
            )
        for pattern in expressions:
            if len(pattern) > LONGEST_EXPRESSION:
                raise UserError(
                    f"{source}: {pattern[:60]!r}... is longer than {LONGEST_EXPRESSION} characters."
                )
            try:
                self._compiled[pattern] = re.compile(_whole(pattern))
            except (re.error, OverflowError, RecursionError) as error:
                raise UserError(
                    f"{source}: {pattern[:60]!r} is not a regular expression ({str(error)[:200]})."
                ) from error

    def value_for(self, module: str) -> float | None:
        """The value of the first pattern that matches; None where none matches.

        Raises UserError once all layers together have taken longer than MATCH_SECONDS.
        """
        begun = time.monotonic()
        first = next(
            (
                value
                for pattern, value in self._values
                if self._matches(pattern, module)
            ),
            None,
        )
        self._seconds += time.monotonic() - begun
        if self._seconds > MATCH_SECONDS:
            raise UserError(
                f"{self._source}: its {len(self._values)} patterns are not done with the names of the layers after "
                f"{MATCH_SECONDS:g} s. Give each layer one plain name."
            )
        return first

    def _matches(self, pattern: str, module: str) -> bool:
        compiled = self._compiled.get(pattern)
        if compiled:
            return bool(matching(compiled, [module]))
        name = pattern.removeprefix("^")
        longer = len(module) - len(name)
        if longer > 0 and (pattern.startswith("^") or module[longer - 1] != "."):
            return False
        return longer >= 0 and _equal(name, module[longer:])


PLAIN = re.compile(r"\^?[\w.]+")
"""A pattern without an operator but `^` and `.`."""


def _whole(pattern: str) -> str:
    return rf"(.*\.)?({pattern})"


def _equal(name: str, module: str) -> bool:
    """Whether names of one length are the same, where a dot in `name` matches any
    character."""
    if name == module:
        return True
    if "." not in name:
        return False
    return all(ours in (".", theirs) for ours, theirs in zip(name, module, strict=True))


def _patterns(values: Mapping[str, Any], key: str, source: str) -> Patterns:
    patterns = values.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise UserError(
            f"{source} is not a JSON mapping ({key} is {_short(patterns)})."
        )
    if len(patterns) > MOST_TENSORS:
        raise UserError(
            f"{source} holds {len(patterns):,} entries in {key}; {MOST_TENSORS:,} are the most."
        )
    for value in patterns.values():
        _check_number(value, source)
    if key == "rank_pattern":
        _check_ranks(patterns.values(), source)
    if is_before_peft_014(values):
        patterns = {
            one: patterns.get(one)
            for name in PATTERNS
            for one in values.get(name) or {}
        }
    return Patterns(patterns, source)


_OFT_KEYS: dict[str, type | tuple[type, ...]] = {
    "use_cayley_neumann": bool,
    "num_cayley_neumann_terms": int,
    "coft": bool,
    "eps": (int, float),
    "block_share": bool,
}
"""Fields of an OFT -> their type."""


def _version(text: object) -> tuple[int, ...]:
    """The first two numbers of a version of peft, which is written since 0.18; () where
    none is given."""
    match = re.match(r"(\d+)\.(\d+)", text) if isinstance(text, str) else None
    return tuple(map(int, match.groups())) if match else ()


def _is_one_of(value: object, harmless: Sequence[object]) -> bool:
    if isinstance(value, str):
        return value.lower() in harmless
    return any(value is one for one in harmless)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shown(name: str) -> str:
    """A name as it is where it is a plain word, else as `_short` shows it."""
    return name if re.fullmatch(r"\w{1,60}", name, re.ASCII) else _short(name)
