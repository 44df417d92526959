"""`StrictModel`, the base of every config section.

A section declares its keys as fields. The docstring under a field is its description in
docs/config.md, in the JSON Schema and in `--help`. Class variables say which other
shapes a key may have, which keys were removed, and what a changed value means for a run
that resumes. A subclass overrides `rewrite` and `check`.

The sections in `toolkit/config/sections` and in extensions subclass it. `normalise.py`
reads the class variables, `validate.py` builds the sections, and `loader.py` calls
`all_findings`. Nothing here reads a file.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler

from toolkit.config.reading.findings import Findings, JobContext, below, warning
from toolkit.config.reading.foreign import ForeignName
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.errors import Diagnostic

Entries = dict[str, ConfigNode]
"""Key -> value of one section."""

ChangeKind = Literal["harmless", "changes the result", "impossible", "place"]
"""What it means for a resume that a key has another value: nothing of what is trained
depends on it; the rest of the run is another one; the saved weights would mean
something else, or not fit; the base model is somewhere else, and its contents decide
(impossible with a checkpoint that does not record them)."""

ALL_OTHERS = "*"


class StrictModel(BaseModel):
    """A section: unknown keys are refused, it cannot change, and the docstring under a
    field describes it. Defaults are taken as they are: only what a job gives is
    validated.

    pydantic builds it at the first validation, and `descriptions` reads the docstrings:
    a dry run needs few sections and no description, and the rest would cost it a fourth
    of its time.

    >>> class Paint(StrictModel):
    ...     colour: str = "white"
    ...     coats: int = 2
    >>> Paint(coats=3).is_default("colour")
    True
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        defer_build=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    other_shapes: ClassVar[Mapping[str, ForeignName]] = {}
    """Keys of our own that are not fields: `rewrite` turns them into some."""

    may_be_empty: ClassVar[frozenset[str]] = frozenset()
    """Fields for which an empty string is a value; for all others it means "not
    given"."""

    lone_key: ClassVar[str] = ""
    """The key that a text, number or switch in the place of this section is meant for;
    "": none, or such a value means something."""

    common_words: ClassVar[Mapping[str, str]] = {}
    """Unknown keys that people write -> the key that they mean, or a sentence with what
    to do."""

    short_for: ClassVar[str] = ""
    """The key that such a value is short for; "": none."""

    not_used: ClassVar[frozenset[str]] = frozenset()
    """Sections that are accepted and not used: their values are not reported."""

    on_resume: ClassVar[
        Mapping[str, ChangeKind | Callable[[Mapping[str, Any]], ChangeKind]]
    ] = {}
    """Field, or ALL_OTHERS -> what its change means for a run that resumes, with all
    below it; may depend on the section's new values, plain data. What a section below
    says itself goes before; unsaid, a change of the result."""

    saved_weights: ClassVar[tuple[str, ...]] = ()
    """Keys that name weights, which are also found by the names that musubi-tuner gives
    to the files of a run."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """The table of a section composed of others is theirs and its own."""
        tables = [base.__dict__.get("on_resume", {}) for base in reversed(cls.__mro__)]
        cls.on_resume = {key: kind for table in tables for key, kind in table.items()}
        super().__pydantic_init_subclass__(**kwargs)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """With the descriptions of the fields."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in descriptions(cls).items():
            properties[name]["description"] = text
        return schema

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """Turns other shapes of this section's own keys into its fields. Gets known and
        given keys only."""
        return entries

    def check(self, job: JobContext) -> Findings:
        """Errors and warnings about the values of this section; those below it say
        their own. No image is opened."""
        return ()

    def is_default(self, key: str) -> bool:
        """Whether the value of a field equals its default, whether or not it was given.
        Raises KeyError for a name that is not a field."""
        default = (
            type(self)
            .model_fields[key]
            .get_default(call_default_factory=True, validated_data=dict(self))
        )
        return bool(getattr(self, key) == default)

    def unused(self, keys: str, reason: str) -> Findings:
        """A warning for each of these keys, separated by spaces, that differs from its
        default."""
        for key in keys.split():
            if not self.is_default(key):
                yield warning(key, f"has no effect{reason}")


@cache
def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Field -> the docstring under it, read from the source of the class that declares
    it."""
    texts: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if StrictModel not in cls.__mro__[1:]:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for declared, below_it in zip(body, [*body[1:], None], strict=True):
            match declared:
                case ast.AnnAssign(target=ast.Name(id=name)):
                    texts.pop(name, None)
                    match below_it:
                        case ast.Expr(value=ast.Constant(value=str(text))):
                            texts[name] = inspect.cleandoc(text)
    return {name: text for name, text in texts.items() if name in section.model_fields}


def all_findings(section: BaseModel, job: JobContext) -> Iterator[Diagnostic]:
    """Findings of all sections below this one, then of this one: of two errors at one
    place the first is shown. A model that is not a `StrictModel` has no findings, but
    those below it may."""
    not_used = section.not_used if isinstance(section, StrictModel) else ()
    for name, value in section:
        if isinstance(value, BaseModel) and name not in not_used:
            yield from below(name, all_findings(value, job))
        elif isinstance(value, tuple) and name not in not_used:
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from below(name, below(index, all_findings(item, job)))
    if isinstance(section, StrictModel):
        yield from section.check(job)
