"""Jobs built from drop-in extensions of the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import ExtensionJob
from toolkit.config import load_job
from toolkit.extension import discover


@pytest.fixture
def build_job(
    tmp_path: Path, write_job: Callable[..., Path]
) -> Callable[..., ExtensionJob]:
    """A job of these processes, whose types are found in the test's `drop_ins`
    folder."""

    def build(*processes: dict, **job: object) -> ExtensionJob:
        table = discover([tmp_path / "drop_ins"])
        return ExtensionJob(
            load_job(write_job(*processes, **job), table.find_config), table
        )

    return build
