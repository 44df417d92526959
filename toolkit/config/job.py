"""What a config file becomes: `JobConfig` and its processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class ProcessEntry:
    """One entry of `config.process`."""

    index: int
    """Place in `config.process`, from 0."""

    type: str
    """The process's type as written."""

    name: str | None
    raw: dict[str, Any]
    """The entry as plain data: defaults merged in, variables filled in, names as the user wrote them."""

    section: BaseModel | None
    """The checked section; None for an extension without a config model."""


@dataclass(frozen=True)
class JobConfig:
    """A checked config file."""

    job: str
    name: str
    meta: dict[str, Any]
    """For the LoRA's metadata: `[name]` is filled in, `${VAR}` is not."""

    processes: tuple[ProcessEntry, ...]
    warnings: tuple[str, ...]
    """Lines for the user; nothing in them stops the job."""

    path: Path
    unexpanded_text: str
    """YAML to keep beside the results: `${VAR}` as written, the job's real name, secrets redacted."""
