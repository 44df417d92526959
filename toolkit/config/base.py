"""`StrictModel`, the base of every config section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from toolkit.config.compat.foreign import ForeignNames
from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import ConfigNode

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

    foreign: ClassVar[ForeignNames] = ForeignNames()
    """What this section takes of the keys of other programs."""

    may_be_empty: ClassVar[frozenset[str]] = frozenset()
    """Fields for which an empty string is a value; for all others it means "not given"."""

    on_resume: ClassVar[Mapping[str, ChangeKind | Callable[[Mapping[str, Any]], ChangeKind]]] = {}
    """Field, or ALL_OTHERS -> what its change means for a run that goes on, with all below it; may depend on the
    section's new values, plain data. What a section below says itself goes before; unsaid, a change of the result."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """The tables of a section composed of others are theirs and its own."""
        bases = [base.__dict__ for base in reversed(cls.__mro__)]
        cls.foreign = ForeignNames.combined(own["foreign"] for own in bases if "foreign" in own)
        cls.on_resume = {key: kind for own in bases for key, kind in own.get("on_resume", {}).items()}
        super().__pydantic_init_subclass__(**kwargs)

    @classmethod
    def rewrite(cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics) -> dict[str, ConfigNode]:
        """Turns other shapes of this section's own keys into its fields. Gets known and given keys only."""
        return entries
