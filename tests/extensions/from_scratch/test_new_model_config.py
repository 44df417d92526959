"""The section: what has to be there."""

from __future__ import annotations

from pathlib import Path

from extensions.from_scratch.new_model_config import NewModelConfig
from toolkit.config.process import JobContext


def found(job: JobContext = JobContext("job"), **keys: str) -> list[str]:  # noqa: B008 - a constant
    section = NewModelConfig(type="new_model", **keys)
    return [f"{'.'.join(map(str, d.key))}: {d.message}" for d in section.check(job)]


def test_what_is_missing_or_in_the_way_is_told_at_its_key(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    keys = {"path": str(tmp_path / "file" / "new"), "base": str(tmp_path), "vae": str(tmp_path)}
    file, base, vae = found(**keys)
    assert file.startswith("path: ") and "is a file" in file
    assert base == f"base: {str(tmp_path)!r} holds no model_index.json. Give the folder of a model."
    assert vae == f"vae: {str(tmp_path)!r} holds no config.json. Give the folder of a model."
    assert found(path=str(tmp_path / "new"), base=str(tiny_model), vae=str(tiny_model / "vae")) == []


def test_what_earlier_processes_write_is_not_missing(tmp_path: Path) -> None:
    job = JobContext("job", frozenset({tmp_path / "run", tmp_path / "tiny"}))
    assert found(job, path=str(tmp_path / "new"), base=str(tmp_path / "tiny"), vae=str(tmp_path / "run" / "vae")) == []
