"""The names of the program, and the addresses of its documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit import version
from toolkit.version import with_addresses


def test_pages_are_addresses_where_the_program_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "docs/models.md says why (docs/few_step_loras.md). /a/docs/x.md, ../docs/x.md and docs/models.txt stay."
    assert with_addresses(text) == text
    monkeypatch.setattr(version, "IS_INSTALLED", True)
    monkeypatch.setattr(version, "_DOCS", tmp_path / "my docs")
    base = f"file://{tmp_path}/my%20docs"
    assert with_addresses(text) == (
        f"{base}/models.md says why ({base}/few_step_loras.md). /a/docs/x.md, ../docs/x.md and docs/models.txt stay."
    )
