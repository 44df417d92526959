"""`StrictModel`, the base of every config section."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from toolkit.config.compat.foreign import ForeignNames
from toolkit.config.node import Node
from toolkit.config.report import Report


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

    @classmethod
    def reshape(cls, entries: dict[str, Node], report: Report) -> dict[str, Node]:
        """Turns other shapes of this section's own keys into its fields. Gets known and given keys only."""
        return entries
