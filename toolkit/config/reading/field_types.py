"""Field types that several sections share.

A type is an `Annotated` with a validator: a name out of a list (`OneOf`), a path
(`PathStr`), a list that may be given as a single value (`StrOrList`, `PathOrList`), a
dtype, and control images in slot order (`<key>: one or a list`, or `<key>_1`,
`<key>_2`, ...). The validators raise `value_error`, whose message reaches the user as
it is. The module also has the hints for paths that lead nowhere.

The sections use the types, here and in extensions. Rules between keys are not here, but
in the `check` of a section.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_before_validator_function

from toolkit.config.reading.located import ConfigNode, Diagnostics, odd_characters
from toolkit.files.writing import from_above


def value_error(message: str) -> PydanticCustomError:
    """An error that a validator raises; the message reaches the user as it is."""
    return PydanticCustomError("mistake", "{message}", {"message": message})


SWITCH = {
    "true": True,
    "yes": True,
    "on": True,
    "false": False,
    "no": False,
    "off": False,
}
"""What a switch may be written as; YAML 1.2 reads all but the first of each kind as
text."""


class OneOf:
    """A name out of a list, in upper or lower case. The names are the given ones, or
    the values of the field's Literal.

    >>> from pydantic import TypeAdapter
    >>> TypeAdapter(Dtype).validate_python("BF16")
    'bfloat16'
    """

    def __init__(
        self,
        *names: str,
        spellings: Mapping[str, str] | None = None,
        instead: Mapping[str, str] | None = None,
        or_bool: Collection[bool] = (),
        more: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """spellings: other spelling -> name. instead, more: as of `reader_of`. or_bool:
        which of true and false are values too."""
        self.names = names
        self.more = more
        self.spellings = spellings or {}
        self.instead = instead or {}
        self.or_bool = or_bool

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        self.names = self.names or get_args(source)
        also = "".join(f" or {value}".lower() for value in self.or_bool)
        read_name = reader_of(self.names, self.spellings, also, self.instead, self.more)

        def read(value: Any) -> Any:
            folded = str(value).strip().lower()
            is_switch = SWITCH.get(folded) in self.or_bool and folded not in self.names
            return SWITCH[folded] if is_switch else read_name(value)

        return no_info_before_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        names = [*self.names, *self.more(), *self.spellings]
        return (
            {"enum": [*self.or_bool, *names]}
            if self.or_bool
            else {"type": "string", "enum": names}
        )


def reader_of(
    names: Collection[str],
    spellings: Mapping[str, str],
    also: str = "",
    instead: Mapping[str, str] | None = None,
    more: Callable[[], Iterable[str]] = tuple,
) -> Callable[[Any], str]:
    """From a value to the name that is meant; raises what a validator raises.

    also: what else may be written. instead: beginning of another program's value ->
    what to do here. more: the names that extensions add, asked for where a name is none
    of the others; signs in them need not be the same.
    """

    def read(value: Any) -> str:
        if not isinstance(value, str | bool):
            raise value_error(f"is not a name. Use {_listed(names)}{also}.")
        folded = str(value).strip().lower()
        if folded in names:
            return folded
        if folded in spellings:
            return spellings[folded]
        added = {_letters(name): name for name in more()}
        if _letters(folded) in added:
            return added[_letters(folded)]
        every = [*names, *added.values()]
        for beginning, remedy in (instead or {}).items():
            if folded.startswith(beginning):
                shown = folded if isinstance(value, bool) else repr(value)
                raise value_error(f"{shown} is not supported. {remedy}")
        if isinstance(value, bool):
            raise value_error(f"is not a name. Use {_listed(names)}{also}.")
        # Nearer than elsewhere: the names of other programs' choices are not to be
        # taken for typing errors.
        known = [*every, *spellings]
        near = [name for name in known if len(folded) > 4 and name.startswith(folded)]
        near = near or get_close_matches(folded, known, n=1, cutoff=0.75)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise value_error(f"{value!r} is unknown. {hint}Use {_listed(every)}{also}.")

    return read


def _letters(name: str) -> str:
    """A name by which other programs' spellings are recognised.

    >>> _letters("z_image")
    'zimage'
    """
    return re.sub(r"[-_. ]", "", name)


def _listed(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)


RANDOM = "random"
"""A seed that is drawn when a run begins; -1 is the same, as in other programs."""


def seed_reader(drawn: int) -> BeforeValidator:
    """Reads `random` and -1 as `drawn`, the number by which a field knows a seed that
    is drawn.

    -1 draws a seed for ai-toolkit's samples (27a03a91, `GenerateImageConfig`) and in
    AUTOMATIC1111's web UI; no seed at all in sd-scripts (48d368fa, `train_network.py`)
    and diffusers' scripts.
    """

    def read(value: Any) -> Any:
        word = str(value).strip().lower()
        if word in (RANDOM, "-1"):
            return drawn
        if isinstance(value, str) and not re.fullmatch(r"[-+]?[\d.,]+", word):
            raise value_error(
                f"{value!r} is not a seed. Write a whole number, or {RANDOM}."
            )
        return value

    return BeforeValidator(read, json_schema_input_type=int | Literal["random"])


AUTO_OR_BOOL = bool | Literal["auto"]
AutoOrBool = Annotated[AUTO_OR_BOOL, OneOf("auto", or_bool=(True, False))]
"""true, false, or "auto": the program decides."""


PER_PARAMETER_OPTIMIZERS = ("adamw", "adam", "sgd", "adafactor")
"""Optimizers known to step a parameter by nothing but its own gradient and state."""

CHECKPOINTING_LEVELS = (
    "none",
    "cheap",
    "keep_attention",
    "offload_attention",
    "full",
    "full_offload",
    "block_offload",
)
"""Values of `train.gradient_checkpointing`: what is kept for the backward pass, from
everything to nothing on the device, and then nothing there while a block is computed
again either."""

AUTO_LEVELS = tuple(
    level
    for level in CHECKPOINTING_LEVELS
    if level not in ("offload_attention", "block_offload")
)
"""Those that `auto` chooses from on a GPU."""

OFFLOADING_LEVELS = ("full_offload", "block_offload")
"""Levels at which the inputs of blocks wait in CPU memory; on the CPU they save
nothing."""

UNCOMPILED_LEVELS = ("block_offload",)
"""Levels that exclude `train.compile`: a compiled block decides by itself what it
saves."""


Checkpointing = Annotated[
    bool | str, OneOf("auto", *CHECKPOINTING_LEVELS, or_bool=(True, False))
]
"""A level, "auto", or true and false for `full` and `none`."""


def _possible_path(value: str) -> str:
    if "\0" in value:
        raise value_error("holds a zero byte, which no path can.")
    longest = max(len(os.fsencode(part)) for part in re.split(r"[/\\]", value))
    if longest > LONGEST_NAME or len(os.fsencode(value)) > LONGEST_PATH:
        raise value_error(f"{value[:40]!r}... is too long for a path.")
    if value.startswith("~") and os.path.expanduser(value) == value:
        raise value_error(
            f"{value!r} begins with the name of a user that this machine does not know."
        )
    try:
        os.path.realpath(os.path.expanduser(value), strict=True)
    except (FileNotFoundError, NotADirectoryError):
        pass  # perhaps not there yet
    except OSError as error:  # links in a circle, a folder that may not be entered: later checks would meet it unawares
        raise value_error(f"{value!r} cannot be reached: {error.strerror}.") from error
    return value


LONGEST_NAME, LONGEST_PATH = 255, 4000
"""Bytes that common file systems allow for one name, and for a whole path."""

PathStr = Annotated[str, AfterValidator(_possible_path)]
"""Text that can name a file or folder."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def _no_address(value: str) -> str:
    match = _ADDRESS.match(value)
    if match and match[1].lower() == "file":
        raise value_error(
            f"{value!r} is an address. Write {re.sub('^[^/]*/+', '/', value)!r}."
        )
    if match:
        raise value_error(
            f"{value!r} is an address, and files are written to this machine. Give a folder: one in which the bucket "
            "is mounted, or one whose files you copy there."
        )
    if value.startswith("$") and not os.path.exists(value):
        raise value_error(f"{value!r} does not exist. {path_hint(value)}")
    return value


WritePathStr = Annotated[PathStr, AfterValidator(_no_address)]
"""Text that can name a file or folder to write."""


_PATH_HINTS = (
    (
        r"\$(?:env:)?([A-Za-z_]\w*)",
        "Write '${{{1}}}' for a variable of the environment.",
    ),
    (
        r"[\x00-\x1f]",
        "A backslash within double quotes became {0!r}. Write '/', or use single quotes.",
    ),
    (
        r"^([A-Za-z]:)[/\\]",
        "{0!r} begins a path of Windows: --map {1}=NEW says where it is now; in WSL, C: is '/mnt/c'.",
    ),
    (
        r"^https?://(?:www\.)?(?:huggingface|hf)\.co/([\w.-]+/[\w.-]+)/(?:resolve|blob)/[^/]+/([^?]+)",
        "Run 'hf download {1} {2}', and give the file whose path it prints.",
    ),
    (
        r"^https?://(?:www\.)?(?:huggingface|hf)\.co/(?!datasets/)([\w.-]+/[\w.-]+)",
        "It is the address of a page of the hub: write its id, {1!r}.",
    ),
)


def path_hint(path: str) -> str:
    """A hint at the likely mistake in a path that does not exist; empty where none is
    recognised."""
    for pattern, words in _PATH_HINTS:
        if match := re.search(pattern, path):
            return words.format(match.group(), *match.groups())
    return odd_characters(path)


def near_path(path: str) -> str:
    """A sentence with the path that is spelt most like one that leads nowhere, part by
    part, such as one in capital letters or with backslashes; empty without."""
    given = Path(path.replace("\\", "/")).expanduser()
    folder = Path(given.anchor)
    for part in given.parts[1:] if given.anchor else given.parts:
        if not os.path.lexists(folder / part):
            names: dict[str, str] = {}
            with suppress(OSError, ValueError):
                names = {name.lower(): name for name in os.listdir(folder)}
            near = get_close_matches(part.lower(), names, n=1, cutoff=0.75)
            if not near:
                return from_above(path)
            part = names[near[0]]
        folder = folder / part
    return f"Did you mean {str(folder)!r}? "


def moved_hint(path: str) -> str:
    """A hint at `--map` for a path of another machine; empty unless the folder above
    the path is missing."""
    missing = [
        str(folder) for folder in Path(path).parents if not os.path.exists(folder)
    ]
    return (
        f" Of another machine: --map {missing[-1]}=NEW."
        if path.startswith("/") and missing
        else ""
    )


def path_alone(value: Any) -> Any:
    """A section that may be written as a path alone: a text becomes a mapping with that
    one key. Other values stay.

    >>> path_alone("a.safetensors")
    {'path': 'a.safetensors'}
    """
    return {"path": value} if isinstance(value, str) else value


def as_list(value: Any) -> Any:
    """A single value as a list of one, for a validator. Lists, tuples and mappings
    stay.

    >>> as_list("a.png"), as_list(["a.png"])
    (['a.png'], ['a.png'])
    """
    return value if isinstance(value, list | tuple | dict) else [value]


def schema_of_list(item: dict[str, Any]) -> WithJsonSchema:
    """The JSON Schema of a field that takes one item or a list of them."""
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item}]})


StrOrList = Annotated[
    tuple[str, ...], BeforeValidator(as_list), schema_of_list({"type": "string"})
]
"""One string or a list of strings."""

PathOrList = Annotated[
    tuple[PathStr, ...], BeforeValidator(as_list), schema_of_list({"type": "string"})
]
"""One path or a list of paths."""

_DTYPES = {
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "float": "float32",
}

Dtype = Annotated[Literal["float16", "bfloat16", "float32"], OneOf(spellings=_DTYPES)]
"""A floating-point type under its usual names."""


MAX_SLOTS = 10

Slots = Annotated[
    tuple[PathStr, ...],
    BeforeValidator(as_list),
    Field(max_length=MAX_SLOTS),
    schema_of_list({"type": "string"}),
]
"""Up to ten paths; a model may take fewer (`ModelFacts.max_references`)."""


def slot_names(key: str) -> tuple[str, ...]:
    """The names of the ten numbered keys of one list, from 1.

    >>> slot_names("ctrl_img")[:2]
    ('ctrl_img_1', 'ctrl_img_2')
    """
    return tuple(f"{key}_{number}" for number in range(1, MAX_SLOTS + 1))


def gather_slots(
    entries: dict[str, ConfigNode], key: str, diagnostics: Diagnostics
) -> None:
    """Replaces `<key>_1` to `<key>_10` by one list under `key`, in place and in the
    order of the numbers. Reports an error where the same section gives `key` too.
    entries: key -> value of the section."""
    numbered = [entries.pop(name) for name in slot_names(key) if name in entries]
    if not numbered:
        return
    if key in entries and not entries[key].from_defaults:
        diagnostics.error(
            numbered[0],
            f"{key!r} and {numbered[0].path[-1]!r} are both given. Keep one way of writing it.",
            at_key=True,
        )
        return
    entries[key] = replace(numbered[0], value=numbered, plain=False)
