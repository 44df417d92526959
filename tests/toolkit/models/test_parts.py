"""Model folders made of others' parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from toolkit.models import parts
from toolkit.models.parts import place_parts


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model folder with a part that the index does not name, and a link as the hub's
    snapshots have them."""
    folder, blob = tmp_path / "base", tmp_path / "blob"
    blob.write_text("weights")
    for part in ("vae/deeper", "transformer", "other"):
        (folder / part).mkdir(parents=True)
    (folder / "vae/deeper/weights").symlink_to(blob)
    (folder / "other/file").write_text("mine")
    index = {
        "_class_name": "P",
        "vae": ["d", "V"],
        "transformer": ["d", "T"],
        "checker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def placed(base: Path, tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    place_parts(base, tmp_path / "out", without={"transformer"})
    return tmp_path / "out"


def test_only_parts_that_the_index_names_are_taken_and_links_are_followed(
    base: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(parts, "LINKED_BYTES", 1)
    out = placed(base, tmp_path)
    files = {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()
    }
    assert files == {"model_index.json", "vae/deeper/weights"}
    weights = out / "vae/deeper/weights"
    assert not weights.is_symlink() and os.path.samefile(weights, tmp_path / "blob")


def test_small_files_and_those_that_cannot_be_linked_are_copied(
    base: Path, tmp_path: Path, monkeypatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(parts, "LINKED_BYTES", 1)
    monkeypatch.setattr(os, "link", refuse)
    weights = placed(base, tmp_path) / "vae/deeper/weights"
    assert weights.read_text() == "weights" and not os.path.samefile(
        weights, tmp_path / "blob"
    )
