"""The keys of `run`, `webhook` and `upload` in `callbacks`."""

from __future__ import annotations

import os
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from toolkit.config import CallbackConfig
from toolkit.files.redact import REDACTED, is_common, register_secret

ALLOWED = "ATELIER_COMMANDS"
"""Environment variable that allows the commands of jobs: a job file is data otherwise
(SECURITY.md)."""

Event = Literal["encoded", "start", "sample", "save", "end", "error"]


class NoticeConfig(CallbackConfig):
    """What `run` and `webhook` have in common."""

    on: Annotated[tuple[Event, ...], Field(min_length=1)] = ("save", "end", "error")
    """At which events: encoded, start, sample, save, end, error. A stop is an end."""

    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that one may take. The end of the run waits at most so long for the last
    ones."""


class CommandConfig(NoticeConfig):
    """`type: run`: runs a command in a shell, with the event as JSON on its standard
    input. ATELIER_COMMANDS=1 in the environment allows it.

    Example::

        callbacks: [{type: run, command: "jq -r .text >> runs.log", on: [save, end]}]
    """

    command: Annotated[str, Field(min_length=1)]
    """The command. Its output is dropped; of one that fails the last line is told."""

    @field_validator("command")
    @classmethod
    def _allowed(cls, command: str) -> str:
        if os.environ.get(ALLOWED) != "1":
            raise ValueError(
                f"commands of a job are not run without your word. Set {ALLOWED}=1 in the "
                f"environment, if you trust this job: export {ALLOWED}=1"
            )
        return command


class WebhookConfig(NoticeConfig):
    """`type: webhook`: sends the event as JSON to an address (POST). `text` and
    `content` in it are a line for Slack, Mattermost and Discord.

    Example::

        callbacks: [{type: webhook, url: "${WEBHOOK_URL}"}]
    """

    url: str
    """The address. It is a secret, and is written nowhere."""

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        if url == REDACTED:
            raise ValueError(
                "a saved job has lost the address. Write 'url: ${WEBHOOK_URL}', and set the variable"
            )
        if not is_common(url):
            register_secret([url])
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname)
            known = known and (parts.port is None or parts.port > 0)
        except ValueError:  # a port that is none
            known = False
        if not known or any(letter.isspace() for letter in url):
            raise ValueError("not an address. Write https://HOST/PATH")
        if parts.username is not None:
            raise ValueError(
                "a user name in an address is not sent. Leave out what stands before '@'. "
                "'type: run' can send one: curl -u \"${USER_AND_PASSWORD}\""
            )
        return url


class UploadConfig(CallbackConfig):
    """`type: upload`: copies saves and states to a bucket while training goes on. On a
    machine without the run, `resume: auto` goes on from the newest state there.

    Example::

        callbacks: [{type: upload, to: "s3://my-bucket/loras"}]
    """

    to: Annotated[str, Field(min_length=1)]
    """Folder of a bucket (s3://, gs://), a repository (hf://owner/name) or another place
    that fsspec knows. Each run has a folder of its name in it. Credentials come from the
    environment."""

    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds that the end of the run waits for the last copies."""

    @field_validator("to")
    @classmethod
    def _can_be_reached(cls, to: str) -> str:
        from fsspec import get_filesystem_class

        scheme, mark, rest = to.partition("://")
        if not mark or not rest.strip("/"):
            raise ValueError(
                "not an address. Write s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, hf://OWNER/NAME or file:///FOLDER"
            )
        try:
            get_filesystem_class(scheme)
        except ImportError as error:
            needed = {"s3": "s3fs", "gs": "gcsfs"}.get(scheme)
            remedy = f": pip install {needed}" if needed else f" ({error})"
            raise ValueError(
                f"{scheme}:// needs a package that is not there{remedy}"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"fsspec does not know {scheme}://. Write one of: s3://, gs://, hf://"
            ) from error
        return to.rstrip("/")
