"""Which images have a caption: those for which training finds one."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions.tools.caption.config import CaptionConfig
from extensions.tools.caption.files import TextFiles, find_images


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"caption": "mine", "rating": 5}'),
        ("a.cap", "mine"),
        ("a.png.txt", "mine"),
    ],
)
def test_a_caption_that_training_reads_is_not_written_twice(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / name).write_text(text)
    files = TextFiles(CaptionConfig.model_construct(folder=str(tmp_path)))
    images, _ = find_images(files.config)
    assert files.missing(images) == []
    config = files.config.model_copy(update={"overwrite": True})
    assert TextFiles(config).write(images[0], "new")
    written = "".join((tmp_path / name).read_text().split())
    assert written == text.replace("mine", "new").replace(" ", "")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", name, ".trash"}


def test_json_of_another_program_is_no_caption(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.json").write_text('{"seed": 7}')
    files = TextFiles(CaptionConfig.model_construct(folder=str(tmp_path)))
    images, _ = find_images(files.config)
    assert files.missing(images) == images
    assert files.write(images[0], "new")
    assert (tmp_path / "a.txt").read_text() == "new\n"
