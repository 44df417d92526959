"""Blacks out secrets, so that a config or a message can be kept or shown."""

from __future__ import annotations

import re

REDACTED = "<redacted>"

_SECRET_KEY = re.compile(r"(?:(?:^|[_-])(?:token|secret)|[_-]key|^apikey|password|passwd)$", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*(?::-)?\}")

# `key: value` on one line, quoted or not, in block or flow style.
_PAIR = re.compile(
    r"""(?P<before>(?:^|[\s{,])["']?(?P<key>[\w-]+)["']?[ \t]*:[ \t]+)"""
    r"""(?P<value>"(?:\\.|[^"\\\n])*"|'(?:''|[^'\n])*'|(?:\$\{[^}\n]*\}|[^\s,}\]#"'&*|>])[^,}\]\n]*?)"""
    r"""(?=[ \t]*(?:$|[,}\]]|[ \t]\#))""",
    re.MULTILINE,
)

_HUGGING_FACE = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_WANDB = re.compile(r"\bwandb_v\d_\w{16,}")
_BEARER = re.compile(r"\b(Bearer|[Aa]uthorization: *bearer)\s+[\w.~+/=-]+")
_USERINFO = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]{0,20}://)[^/\s@\"']+@")
_HEX_40 = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])")
# A commit has the form of a wandb key, but it is no secret and a run cannot be repeated without it.
_NAMES_A_COMMIT = re.compile(r"(?:revision|commit|sha|hash)[\"']?\s*[:=]\s*[\"']?$")


def redact(text: str) -> str:
    """`text` with tokens, keys, passwords and the user part of URLs replaced by `<redacted>`."""
    text = _PAIR.sub(_redact_pair, text)
    for pattern in (_HUGGING_FACE, _WANDB):
        text = pattern.sub(REDACTED, text)
    text = _BEARER.sub(rf"\1 {REDACTED}", text)
    text = _USERINFO.sub(rf"\1{REDACTED}@", text)
    return _HEX_40.sub(_redact_hex, text)


def is_secret(key: str, value: object) -> bool:
    """Whether a config value is a secret by the name of its key. A bare `${VAR}` is not."""
    if value is None or isinstance(value, bool) or value in ("", REDACTED) or not _SECRET_KEY.search(key):
        return False
    return not _VARIABLE.fullmatch(str(value))


def _redact_pair(match: re.Match[str]) -> str:
    if match["value"].lower() not in ("null", "~", "true", "false") and is_secret(
        match["key"], match["value"].strip("\"'")
    ):
        return match["before"] + REDACTED
    return match.group()


def _redact_hex(match: re.Match[str]) -> str:
    line_start = match.string.rfind("\n", 0, match.start()) + 1
    before = match.string[line_start : match.start()]
    return match.group() if _NAMES_A_COMMIT.search(before) else REDACTED
