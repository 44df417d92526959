"""`StrictModel`, the base of every config section, and `ForeignNames`: what a section takes, or refuses, of the keys of
other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from toolkit.config.findings import Diagnostic, Findings, JobContext, below, warning
from toolkit.config.located import ConfigNode, Diagnostics

Entries = dict[str, ConfigNode]
"""Key -> value of one section."""

Reshape = Callable[[type[BaseModel], Entries, Diagnostics], Entries]


@dataclass(frozen=True)
class ForeignNames:
    """Keys of other programs in one section. None of them is one of the section's own."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of fields: old name -> field."""

    shapes: Mapping[str, str] = field(default_factory=dict)
    """Names that are no fields but that `reshape` turns into fields -> what they stand for."""

    no_effect: Mapping[str, str] = field(default_factory=dict)
    """Names that are accepted with a warning -> why they do nothing here."""

    refused_when_on: Mapping[str, str] = field(default_factory=dict)
    """Switches of `no_effect` that are refused unless they are false -> why, and the remedy."""

    unsupported: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Names that are known and refused -> the values that ask for nothing and therefore pass."""

    needs: Mapping[str, str] = field(default_factory=dict)
    """Names of `unsupported` that say more of a switch of `unsupported` -> that switch: nothing where it is off."""

    reshapes: tuple[Reshape, ...] = ()
    """Turn `shapes` of a section into its fields, one after the other, before aliases are folded. They get known and
    given keys only."""

    @classmethod
    def combined(cls, parts: Iterable[ForeignNames]) -> ForeignNames:
        """Those of a section that is composed of others, of which each has its own."""
        parts = tuple(parts)

        def merged(table: str) -> dict[str, Any]:
            return {name: said for part in parts for name, said in getattr(part, table).items()}

        tables = ("aliases", "shapes", "no_effect", "refused_when_on", "unsupported", "needs")
        steps = dict.fromkeys(step for part in parts for step in part.reshapes)
        return cls(**{table: merged(table) for table in tables}, reshapes=tuple(steps))

    def reshape(self, section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
        """The entries of a section with its own fields only."""
        for step in self.reshapes:
            entries = step(section, entries, diagnostics)
        return entries

    def names(self) -> set[str]:
        """All of them."""
        return {*self.aliases, *self.shapes, *self.no_effect, *self.unsupported}


def each(names: str, said: str) -> dict[str, str]:
    """Rows of `no_effect`: names separated by spaces, all with the same reason."""
    return dict.fromkeys(names.split(), said)


def refuse(names: str, *harmless: Any) -> dict[str, tuple[Any, ...]]:
    """Rows of `unsupported`: names separated by spaces, all with the same harmless values."""
    return dict.fromkeys(names.split(), harmless)


ChangeKind = Literal["harmless", "changes the result", "impossible", "place"]
"""What it means for a resume that a key has another value: nothing of what is trained depends on it; the rest of the
run is another one; the saved weights would mean something else, or not fit; the base model is somewhere else, and its
contents decide (impossible with a checkpoint that does not record them)."""

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

    example: ClassVar[str] = ""
    """What to write instead of a mere text or switch in the place of this section; "": its keys stand for themselves,
    or such a value means something."""

    not_used: ClassVar[frozenset[str]] = frozenset()
    """Sections that are accepted and not used: nothing is said of their values."""

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

    def check(self, job: JobContext) -> Findings:
        """Errors and warnings about the values of this section; those below it say their own. No image is opened."""
        return ()

    def is_default(self, key: str) -> bool:
        """Whether a key has its default, given or not."""
        default = type(self).model_fields[key].get_default(call_default_factory=True, validated_data=dict(self))
        return bool(getattr(self, key) == default)

    def unused(self, keys: str, reason: str) -> Findings:
        """Warnings about those of the keys, separated by spaces, that differ from their default."""
        return (warning(key, f"has no effect{reason}") for key in keys.split() if not self.is_default(key))


def all_findings(section: BaseModel, job: JobContext) -> Iterator[Diagnostic]:
    """Of all sections below this one, then of this one: of two errors at one place the first is shown. A model that is
    not a `StrictModel` has no findings, but those below it may."""
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
