"""`logging`: what is printed, and which trackers draw the run's curves; `metrics.jsonl` always has every step."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from toolkit.config.base import StrictModel
from toolkit.config.compat.output import LOGGING
from toolkit.config.field_types import PathStr, literal_with_aliases
from toolkit.redact import REDACTED, contains_secret

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Every tracker -> the Python package it needs."""


def _none_if_zero(value: Any) -> Any:
    """0 and false stand for "no folder" in jobs of other programs."""
    return "" if isinstance(value, bool | int) and not value else value


class LoggingConfig(StrictModel):
    """`logging`: what is printed, and where curves are drawn. `metrics.jsonl` has every optimizer step in any case."""

    log_every: int = Field(default=0, ge=0)
    """Optimizer steps between two progress lines where the output is no terminal; 0: a line every 10 s. Also the steps
    over which a tracker's loss by noise level is averaged; 0: 50. All other curves have every step."""

    logging_dir: Annotated[PathStr, BeforeValidator(_none_if_zero)] = ""
    """Folder of TensorBoard files: those of this run go to `<logging_dir>/<log_prefix><name>/`. Empty or 0: none."""

    log_with: Annotated[
        Literal["auto", "tensorboard", "wandb", "all"],
        *literal_with_aliases("auto", "tensorboard", "wandb", "all"),
    ] = "auto"
    """Who draws curves: `tensorboard` (needs logging_dir), `wandb` (Weights & Biases, `pip install wandb`) or `all`.
    auto or empty: TensorBoard when logging_dir is given."""

    log_prefix: PathStr = ""
    """Put before the name of the run's TensorBoard folder, as it is."""

    log_tracker_name: PathStr = ""
    """Folder inside the run's TensorBoard folder, and the W&B project when wandb_project is not given."""

    log_config: bool = False
    """Also give the trackers the job's settings, without secrets."""

    wandb_project: str = ""
    """W&B project. Empty: log_tracker_name, else `atelier`."""

    wandb_run_name: str = ""
    """Name of the W&B run. Empty: the job's name."""

    wandb_entity: str = ""
    """W&B user or team. Empty: the account's default."""

    wandb_api_key: str = Field(default="", exclude=True, repr=False)
    """Better left out: the environment variable WANDB_API_KEY, or what `wandb login` stored, is used then. It is kept
    in no file."""

    foreign: ClassVar = LOGGING

    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers that draw this run's curves."""
        if self.log_with == "auto":
            return ("tensorboard",) if self.logging_dir else ()
        return tuple(PACKAGES) if self.log_with == "all" else (self.log_with,)

    def errors(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what would keep a tracker from working."""
        trackers = self.trackers()
        for name in trackers:
            package = PACKAGES[name]
            if not _is_installed(package):
                key = "log_with" if self.log_with != "auto" else "logging_dir"
                yield key, f"needs the package {package!r}, which is not installed. Run: pip install {package}"
        if "tensorboard" in trackers:
            if not self.logging_dir:
                yield "log_with", f"{self.log_with!r} writes TensorBoard files. Give logging_dir a folder for them."
            elif (folder := Path(self.logging_dir).expanduser()).exists() and not folder.is_dir():
                yield "logging_dir", f"{self.logging_dir!r} is not a folder. Give a folder."
            for key in ("logging_dir", "log_prefix", "log_tracker_name"):
                if contains_secret(getattr(self, key)):
                    yield key, "is part of a folder's name, and names are not secret on a disk. Leave the secret out."
        if "wandb" in trackers:
            if self.wandb_api_key == REDACTED:
                yield "wandb_api_key", "was blacked out when this file was saved. Set WANDB_API_KEY instead."
            elif not self.wandb_api_key and not _can_do_without_key():
                remedy = "Set the variable WANDB_API_KEY, or WANDB_MODE=offline to keep everything on this machine."
                yield "log_with", f"Weights & Biases needs an API key, and there is none. {remedy}"

    def unused_keys(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what is given though the tracker it concerns is not used."""
        trackers = self.trackers()
        for key in ("logging_dir", "log_prefix"):
            if getattr(self, key) and "tensorboard" not in trackers:
                yield key, f"has no effect: log_with is {self.log_with!r}, and nothing writes TensorBoard files."
        for key in ("log_tracker_name", "log_config"):
            if getattr(self, key) and not trackers:
                yield key, "has no effect without logging_dir or log_with."
        for key in ("wandb_project", "wandb_run_name", "wandb_entity", "wandb_api_key"):
            if getattr(self, key) and "wandb" not in trackers:
                yield key, "has no effect without 'log_with: wandb' (or 'all')."


def _is_installed(package: str) -> bool:
    """Without importing it. A mere folder of that name, such as W&B's own `wandb/`, is no package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _can_do_without_key() -> bool:
    """Whether the environment or a netrc file has a W&B key, or the mode needs none."""
    if os.environ.get("WANDB_MODE", "").lower() in ("offline", "dryrun", "disabled"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    return any(_netrc_knows(file, host) for file in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc") if file)


def _netrc_knows(file: str, host: str) -> bool:
    try:
        return netrc.netrc(Path(file).expanduser()).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False
