"""The text of a config file, and JSON with comments made readable for the YAML reader."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import SourceLocation

_NOWHERE = SourceLocation(0, 0)

# A string, a line comment, a block comment (perhaps unfinished), or a tab between tokens.
_JSON_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?(?:\*/|\Z)|\t', re.DOTALL)


def read_text(path: str | Path, diagnostics: Diagnostics) -> str:
    """The file as text. Raises ConfigErrors when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        diagnostics.fatal(_NOWHERE, (), f"does not exist (working directory: {Path.cwd()})")
    except UnicodeDecodeError as error:
        diagnostics.fatal(_NOWHERE, (), f"is not UTF-8 text (byte {error.start}). Save it as UTF-8.")
    except OSError as error:
        diagnostics.fatal(_NOWHERE, (), f"cannot be read: {error.strerror}")


def is_json(path: str | Path) -> bool:
    """Whether the file is JSON, perhaps with comments, by its name."""
    return Path(path).suffix.lower() in (".json", ".jsonc")


def strip_json_comments(text: str) -> str:
    """JSON without comments and tabs, every other character in its old place."""
    return _JSON_TOKEN.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    token = match.group()
    return token if token.startswith('"') else re.sub(r"[^\n]", " ", token)
