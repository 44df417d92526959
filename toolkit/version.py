"""The program's name and version, as they are written to files, and the name of its
command.

`with_addresses` replaces the names of documentation pages in a message with their
addresses, where the program is installed. The log, the metadata of LoRA files and the help use this module. It imports
nothing of the program.
"""

import re
from pathlib import Path

NAME = "Atelier"
VERSION = "0.3.0"

IS_INSTALLED = Path(__file__).resolve().parents[2].name in (
    "site-packages",
    "dist-packages",
)
"""Whether it runs as a package; else from a checkout."""

COMMAND = "atelier" if IS_INSTALLED else "run.py"
"""As messages and the help name it."""

_DOCS = Path(__file__).resolve().parents[1] / "docs"


def with_addresses(text: str) -> str:
    """A text with the pages of the documentation as addresses that can be opened, such
    as `file:///.../docs/models.md` for `docs/models.md`. Unchanged in a checkout, which
    has them under these names."""
    if not IS_INSTALLED:
        return text
    return re.sub(
        r"(?<![\w/.-])docs/(\w+\.md)", lambda match: (_DOCS / match[1]).as_uri(), text
    )
