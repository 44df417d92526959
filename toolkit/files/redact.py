"""Keeps secrets out of the program's output, its files, and the metadata of LoRAs.

There are two kinds of secrets. The first are registered values (`register_secret`): the
values of environment variables with names such as `HF_TOKEN`, also where a config has
`${VAR}`. They are found in capital and small letters. The second are texts with the
form of a token. `redact_text` replaces both and suits every text and file. `redact` is
for a config, where a key such as `token` also marks a secret, and 40 hex digits are a
wandb key. `files.writing` and `files.log` redact everything that they write.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

REDACTED = "<redacted>"

SHORTEST = 6
"""Shorter values are not treated as secrets: replacing them would make ordinary text
unreadable."""

_PART = 4
"""Characters of a value that reveal it where a message shortens it."""

ALWAYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
"""Environment variables whose values are tokens, whatever they look like: libraries
read them."""

_SECRET_VARIABLE = re.compile(
    r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL|(?<![A-Z])(?:PASS|PASSWD|PASSPHRASE|AUTH|CREDS?|COOKIES?)(?![A-Z])|_PWD$",
    re.IGNORECASE,
)

_SHORTEST_OF_ENVIRONMENT = 8
_PLAIN = re.compile(
    r"[A-Za-z]?[a-z]+|[A-Z]+|~?\.{0,2}/?|~/.*|\.{1,2}/.*|[A-Za-z]:\\.*|[a-z][a-z0-9+.-]*://[\w.:-]*/?",
    re.DOTALL,
)
"""A word, a path or the address of a host: they are common in ordinary text and are
certainly not secrets."""

_SECRET_KEY = re.compile(
    r"(?:(?:^|[_-])(?:token|secret)|(?<!image)(?<!label)(?<!caption)[_-]key|^apikey|password|passwd)$",
    re.IGNORECASE,
)
"""The three exceptions are keys of a stream (`image_key` and others)."""

_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*(?::-)?\}")

# `key: value` on one line, quoted or not, in block or flow style.
_PAIR = re.compile(
    r"""(?P<before>(?:^|[\s{,])["']?(?P<key>[\w-]+)["']?[ \t]*:[ \t]+)"""
    r"""(?P<value>"(?:\\.|[^"\\\n])*"|'(?:''|[^'\n])*'|(?:\$\{[^}\n]*\}|[^\s,}\]#"'&*|>])[^,}\]\n]*?)"""
    r"""(?=[ \t]*(?:$|[,}\]]|[ \t]\#))""",
    re.MULTILINE,
)

_SHAPE_MARKS = (
    "hf_",
    "wandb_v",
    "rpa_",
    "ghp_",
    "github_pat_",
    "earer",
    "uthorization",
    "://",
)
"""A text without any of these has no secret's shape; to look for them is much faster
than the pattern."""

# A full-length token needs no word boundary before it: in JSON the n of a line end
# stands there.
_SHAPES = re.compile(
    r"""
      \bhf_[A-Za-z0-9]{16,} | hf_[A-Za-z0-9]{30,} | hf_oauth_[\w.-]{16,}
    | wandb_v\d_\w{16,}
    | rpa_[A-Za-z0-9]{30,}
    | ghp_[A-Za-z0-9]{30,} | github_pat_\w{30,}
    | (?P<header>\b[Aa]uthorization["']?:[ \t]*["']?(?:[Bb]earer|[Bb]asic)[ \t]+) [\w.~+/=-]+
    | (?P<bearer>\bBearer[ \t]+) (?: [\w.~+/=-]{16,} | (?=\w*(?:\d|[.~+/=]\w)) [\w.~+/=-]+ )
    | (?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,20}://) [^/\s"'?\#]+ (?=@)
    """,
    re.VERBOSE,
)

_HEX_40 = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])")
# A commit has the form of a wandb key, but it is not a secret, and a run cannot be
# repeated without it.
_NAMES_A_COMMIT = re.compile(r"(?:revision|commit|sha|hash)[\"']?\s*[:=]\s*[\"']?$")

_SHA256 = re.compile(r"[0-9a-f]{64}")


# ---------------------------------------------------------------- values that were told


_values: set[str] = set()
_forms: list[str] = []
"""All of `_values` in each form they may be written in, longest first."""

_known: re.Pattern[str] | None = None
"""Any of `_forms`."""


def register_secret(values: Iterable[str]) -> None:
    """Redacts these values from now on in everything this process writes. Each line of
    a value with several lines is a value too."""
    global _forms, _known
    parts = {part.strip() for value in values for part in (value, *value.splitlines())}
    long = {part for part in parts if len(part) >= SHORTEST}
    new = {part for part in long if part.lower() not in REDACTED} - _values
    if new:
        _values.update(new)
        forms = set[str]().union(*map(_forms_of, _values))
        _forms = sorted(forms, key=len, reverse=True)
        _known = re.compile("|".join(map(_whole, _forms)), re.IGNORECASE)


def remember_environment(env: Mapping[str, str]) -> None:
    """Remembers the secrets of the environment, by the names of its variables.

    Variables such as `SSH_AUTH_SOCK` and `TOKENIZERS_PARALLELISM` have similar names,
    but their values are paths, words or short. Such values are not redacted: this would
    make ordinary text unreadable.
    """
    register_secret(
        value
        for name, value in env.items()
        if name in ALWAYS or (is_secret_variable(name) and not is_common(value))
    )


def is_secret_variable(name: str) -> bool:
    """Whether the value of the environment variable `name` is a secret, by its name.

    >>> is_secret_variable("HF_TOKEN"), is_secret_variable("HOME")
    (True, False)
    """
    return _SECRET_VARIABLE.search(name) is not None


def is_common(value: str) -> bool:
    """Whether a value of the environment is too ordinary to be replaced wherever it
    stands."""
    if len(value) < _SHORTEST_OF_ENVIRONMENT or _PLAIN.fullmatch(value):
        return True
    # Base64 may begin with a slash as well, but then no folder has that name.
    return (
        value.startswith("/")
        and "\0" not in value
        and os.path.lexists("/" + value.split("/")[1])
    )


def _forms_of(value: str) -> set[str]:
    """`value` as it looks in text, in a repr, in JSON, in one of these inside the
    other, in a shell and in a URL."""
    forms = {value}
    for _ in range(2):
        for form in tuple(forms):
            in_json = (json.dumps(form), json.dumps(form, ensure_ascii=False))
            forms |= {repr(form)[1:-1], repr(form + '"')[1:-2]}
            forms |= {text[1:-1] for text in in_json}
    in_shell = value.replace("'", "'\"'\"'")  # as shlex.quote, within its quotes
    return forms | {in_shell, quote(value, safe="", errors="surrogateescape")}


def _whole(form: str) -> str:
    """A pattern for `form`. Digits match only as a separate number, not within another
    one."""
    if form.isdecimal():
        return rf"(?<!\d)(?<!\d\.){form}(?!\d|\.\d)"
    return re.escape(form)


# ---------------------------------------------------------------- replacing


def redact_text(text: str) -> str:
    """`text` with remembered values, tokens and the user part of URLs replaced by
    `<redacted>`.

    >>> redact_text("cloned from https://anna:pass@example.com/data")
    'cloned from https://<redacted>@example.com/data'
    """
    if _known:
        text = _known.sub(REDACTED, text)
        text = _black_out_parts(text)
    if any(mark in text for mark in _SHAPE_MARKS):
        text = _SHAPES.sub(
            lambda m: (m["header"] or m["bearer"] or m["scheme"] or "") + REDACTED, text
        )
    return text


def _black_out_parts(text: str) -> str:
    """Replaces the rest of a value in a message that shortens long values: its beginning
    before `...`, its end after it."""
    if "..." not in text and "…" not in text:
        return text
    before, *rest = re.split(r"(\.\.\.|…)", text)
    done = []
    for mark, after in zip(rest[::2], rest[1::2], strict=True):
        for form in map(_in_any_case, _forms):
            plain_before, plain_after = _in_any_case(before), _in_any_case(after)
            at = plain_before.rfind(form[:_PART])
            if at >= 0 and form.startswith(plain_before[at:]):
                before = before[:at] + REDACTED
            at = plain_after.find(form[-_PART:])
            if at >= 0 and form.endswith(plain_after[: at + _PART]):
                after = REDACTED + after[at + _PART :]
        done += [before, mark]
        before = after
    return "".join([*done, before])


def _in_any_case(text: str) -> str:
    """The text in small letters, with the same length: letters whose small form has two
    characters are kept."""
    return "".join(
        small if len(small := letter.lower()) == 1 else letter for letter in text
    )


MOST_LEVELS = 100
"""Lists and objects within each other: no file of the program has so many, and a file
made to have thousands would end its reader."""


def contains_secret(text: str) -> bool:
    """Whether `redact_text` would change `text`.

    >>> contains_secret("https://anna:pass@example.com"), contains_secret("a cat")
    (True, False)
    """
    return redact_text(text) != text


def redact_json(
    data: Any, *, by_key: bool = False, key: str = "", levels: int = MOST_LEVELS
) -> Any:
    """JSON data with every string redacted; numbers and the sha256 of files stay.

    by_key: also replace the values whose key is named like a secret. levels: lists and
    objects within each other that are looked into; what lies deeper is replaced.
    """
    if isinstance(data, dict | list | tuple) and not levels:
        return REDACTED
    if isinstance(data, dict):
        return {
            redact_text(name) if isinstance(name, str) else name: redact_json(
                value, by_key=by_key, key=str(name), levels=levels - 1
            )
            for name, value in data.items()
        }
    if isinstance(data, list | tuple):
        inside = partial(redact_json, by_key=by_key, key=key, levels=levels - 1)
        return [*map(inside, data)]
    if by_key and is_secret(key, data):
        return REDACTED
    if not isinstance(data, str) or (_SHA256.fullmatch(data) and data not in _values):
        return data
    return redact_text(data)


# ---------------------------------------------------------------- configs


def redact(text: str) -> str:
    """A config's text with all that `redact_text` finds, values of secret keys and
    wandb keys replaced.

    >>> redact("wandb_api_key: local-0123")
    'wandb_api_key: <redacted>'
    """
    text = redact_text(_PAIR.sub(_redact_pair, text))
    return _HEX_40.sub(
        lambda match: match.group() if _is_commit(match) else REDACTED, text
    )


def is_secret(key: str, value: object) -> bool:
    """Whether a config value is a secret by the name of its key. A bare `${VAR}` is
    not."""
    if (
        value is None
        or isinstance(value, bool)
        or value in ("", REDACTED)
        or not _SECRET_KEY.search(key)
    ):
        return False
    return not _VARIABLE.fullmatch(str(value))


def wandb_keys(text: str) -> list[str]:
    """The wandb keys of the old form (40 hex digits) in a config's text."""
    return [match.group() for match in _HEX_40.finditer(text) if not _is_commit(match)]


def _redact_pair(match: re.Match[str]) -> str:
    if match["value"].lower() not in ("null", "~", "true", "false") and is_secret(
        match["key"], match["value"].strip("\"'")
    ):
        return match["before"] + REDACTED
    return match.group()


def _is_commit(match: re.Match[str]) -> bool:
    line_start = match.string.rfind("\n", 0, match.start()) + 1
    return _NAMES_A_COMMIT.search(match.string[line_start : match.start()]) is not None
