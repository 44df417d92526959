"""`StrictModel`, the base of every config section, and the tables by which a section knows names it does not use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from toolkit.config.node import Node
from toolkit.config.report import Report

ChangeKind = Literal["harmless", "changes the result", "impossible"]
"""What it means for a resume that a key has another value: nothing of what is trained depends on it; the rest of the
run is another one; the saved weights would mean something else, or not fit."""

ALL_OTHERS = "*"


class StrictModel(BaseModel):
    """A section: unknown keys are refused, it cannot change, and the docstring under a field describes it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of fields: old name -> field."""

    shapes: ClassVar[Mapping[str, str]] = {}
    """Names that are no fields but that `reshape` turns into fields -> what they stand for."""

    refused_when_on: ClassVar[Mapping[str, str]] = {}
    """Switches of `no_effect` that are refused unless they are false -> why, and the remedy."""

    no_effect: ClassVar[Mapping[str, str]] = {}
    """Names that are accepted with a warning -> why they do nothing here."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Names that are known and refused -> the values that ask for nothing and therefore pass."""

    may_be_empty: ClassVar[frozenset[str]] = frozenset()
    """Fields for which an empty string is a value; for all others it means "not given"."""

    on_resume: ClassVar[Mapping[str, ChangeKind | Callable[[Mapping[str, Any]], ChangeKind]]] = {}
    """Field, or ALL_OTHERS -> what its change means for a run that goes on, with all below it; may depend on the
    section's new values, plain data. What a section below says itself goes before; unsaid, a change of the result."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """The tables of a section composed of others are theirs and its own."""
        for table in ("aliases", "shapes", "refused_when_on", "no_effect", "unsupported", "on_resume"):
            given = [base.__dict__[table] for base in reversed(cls.__mro__) if table in base.__dict__]
            setattr(cls, table, {name: said for part in given for name, said in part.items()})
        super().__pydantic_init_subclass__(**kwargs)

    @classmethod
    def reshape(cls, entries: dict[str, Node], report: Report) -> dict[str, Node]:
        """Turns other shapes of this section into its fields. Gets known and given keys only."""
        return entries
