"""The section of `type: ui`."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from toolkit.config.field_types import PathStr
from toolkit.config.process import Diagnostic, JobContext
from toolkit.config.tool import ToolConfig
from toolkit.files.writing import file_in_the_way

OWN = ".ui"
"""Folder of what the page itself writes, in that of the runs."""

MOST_PRICE = 1e6
"""Of an hour."""

TOKEN_VARIABLES = ("APP_AUTH", "AI_TOOLKIT_AUTH")
"""Environment variables that may hold the token, the first that does counts."""

SHORTEST_TOKEN = 8
"""Characters: a shorter one is guessed."""


def token() -> str:
    """The token that the page asks for; empty: none."""
    return next((value for name in TOKEN_VARIABLES if (value := os.environ.get(name, "").strip())), "")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class UiConfig(ToolConfig):
    """`type: ui`: serves a page that shows all runs live, edits datasets and captions, and starts jobs one after
    another. Open the address that it prints."""

    process_types: ClassVar[tuple[str, ...]] = ("ui",)

    output: PathStr = "output"
    """Folder of the runs, the `training_folder` of jobs."""

    datasets: PathStr = "datasets"
    """Folder whose subfolders are the datasets."""

    jobs: PathStr = "config"
    """Folder of the job files that the page writes."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs a token in APP_AUTH."""

    port: int = Field(default=8675, ge=1, le=65535)
    """Port to listen on."""

    price_per_hour: float = Field(default=0.0, ge=0, le=MOST_PRICE)
    """Price of the GPU per hour, for what a run has cost. 0: not shown."""

    def folder(self) -> Path:
        """`output` as a path."""
        return Path(self.output).expanduser()

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """An address that others reach without a token, and files where folders are to be."""
        if not token() and not is_loopback(self.host):
            yield Diagnostic(
                ("host",),
                f"{self.host!r} is reached by others, who could train and read everything here. Set a token of at "
                f"least {SHORTEST_TOKEN} characters in the environment variable {TOKEN_VARIABLES[0]}.",
            )
        if 0 < len(token()) < SHORTEST_TOKEN:
            names = " or ".join(TOKEN_VARIABLES)
            yield Diagnostic(
                ("host",), f"the token in {names} is too short: give at least {SHORTEST_TOKEN} characters."
            )
        for key in ("output", "datasets", "jobs"):
            if file := file_in_the_way(Path(getattr(self, key)).expanduser()):
                yield Diagnostic((key,), f"'{file}' is a file. Give a folder.")
