"""The example in the help of each tool, typed as it stands once the quickstart has run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, child_environment
from toolkit.config.tool import ToolConfig
from toolkit.extension import discover

FIRST = ("merge",)
"""Those whose results another one reads."""

FINDS = {"doctor", "lint"}
"""Those that end with 1 where they find something."""


@pytest.mark.slow
def test_the_examples_run_on_what_the_quickstart_leaves(tmp_path: Path) -> None:
    """All but that of the page, which does not end, and that of captions, which downloads a model."""
    (tmp_path / "config").mkdir()  # `new` writes into it
    (tmp_path / "config" / "examples").symlink_to(ROOT / "config" / "examples")
    start = f"{sys.executable} {ROOT / 'run.py'}"

    def typed(words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            f"{start} {words}", shell=True, cwd=tmp_path, env=child_environment(), capture_output=True, text=True
        )

    assert typed("config/examples/quickstart.yaml").returncode == 0
    tools = discover()
    failed = {}
    for uid in sorted(tools.tools(), key=lambda uid: uid not in FIRST):
        model = tools.find_command(uid)
        assert issubclass(model, ToolConfig)
        if uid in ("ui", "caption"):
            continue
        done = typed(f"{uid} {model.example}")
        if done.returncode not in ((0, 1) if uid in FINDS else (0,)) or "Traceback" in done.stderr:
            failed[uid] = (done.returncode, done.stderr[-500:])
    assert failed == {}
