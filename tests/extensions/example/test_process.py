"""The template does its work, and so does a copy of it under another name, beside a
broken one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from extensions.example.process import count_images
from toolkit.files.writing import EXTENSIONS_ROOT


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for file in ("a.jpg", "b.PNG", "note.txt", "deep/er/c.webp"):
        path = tmp_path / "pictures" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "pictures"


def test_images_are_counted_by_folder(pictures: Path) -> None:
    assert count_images(pictures, (".jpg", ".png", ".webp")) == {".": 2, "deep/er": 1}


def test_it_runs_as_a_job(
    pictures: Path, run_py: Callable, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    job = write_job(
        {"type": "example", "folder_path": "pictures", "output": "new/report.json"}
    )
    result = run_py(job)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report == {"job": "job", "folders": {".": 2, "deep/er": 1}, "images": 3}


def test_a_copy_under_another_name_runs_beside_a_broken_one(
    pictures: Path,
    run_py: Callable,
    write_job: Callable[..., Path],
    write_extension: Callable[..., Path],
    tmp_path: Path,
) -> None:
    copy = tmp_path / "drop_ins" / "my_count"
    shutil.copytree(
        EXTENSIONS_ROOT / "example", copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    init = (copy / "__init__.py").read_text()
    (copy / "__init__.py").write_text(
        init.replace('uid = "example"', 'uid = "my_count"')
    )
    write_extension("a_broken", "import no_such_module")
    job = write_job(
        {"type": "my_count", "folder_path": "pictures", "output": "report.json"}
    )
    result = run_py(job, env={"EXTENSIONS_PATH": str(tmp_path / "drop_ins")})
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads((tmp_path / "report.json").read_text())["images"] == 3
