"""The YAML blocks and commands of the pages: each is planned by a dry run, with
photographs in place of one's own."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.dry_run import plan_job
from run import main
from tests.conftest import ROOT
from tests.docs.pages import (
    EXAMPLE,
    PHOTOS,
    Block,
    blocks,
    lora_files,
    put_photos,
    whole_job,
)
from tests.layer_files import write_layers
from toolkit.config import load_job
from toolkit.extension import discover
from toolkit.files.safetensors_io import framed

ADVICE = ("first_character", "before_and_after_pairs", "ten_keys", "troubleshooting")
"""Pages whose commands are run, too."""

YAML = [
    block
    for page in (*ADVICE, "datasets", "few_step_loras")
    for block in blocks(f"docs/{page}.md", "yaml")
]
COMMANDS = [
    line
    for page in ADVICE
    for block in blocks(f"docs/{page}.md", "bash")
    for line in block.text.splitlines()
    if "run.py" in line
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all blocks, which are planned and not run; what one of
    them names is there for the others, too."""
    folder = tmp_path_factory.mktemp("blocks")
    shutil.copytree(PHOTOS, folder / "config" / "examples" / "photos")
    # docs/datasets.md
    (folder / "kept.txt").write_text("a person in a garden\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        yield folder


def planned(job: dict[str, Any], place: Path) -> tuple[str, list[str]]:
    """The text of the plan of a job, and its warnings. Raises UserError where it has a
    mistake."""
    (place / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    config = load_job("job.yaml", discover().find_config)
    return plan_job(config).render(), config.warnings


@pytest.mark.parametrize("block", YAML, ids=str)
def test_a_block_is_a_job_or_fits_into_the_example(photos: Path, block: Block) -> None:
    job = whole_job(block)
    put_photos(job, photos)
    for name in lora_files(job):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(framed("{}"))
    _, warnings = planned(job, photos)
    assert not warnings or Path(block.page).stem not in ADVICE


def test_the_block_of_layers_is_a_job(photos: Path) -> None:
    """Its images have layers, which photographs have not."""
    layers = next(
        block
        for block in blocks("docs/models.md", "yaml")
        if "layers_suffix" in block.text
    )
    job = whole_job(layers)
    del job["config"]["process"][0]["model"]["arch"]  # the example's
    write_layers(photos / "datasets" / "posters", 3, stem="a")
    assert "Qwen-Image-Layered" in planned(job, photos)[0]


@pytest.mark.slow
@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_a_command_of_the_pages_can_be_given(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """As written, but planned only; config/my_char.yaml is what `run.py new` makes
    of an example."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()  # `new` writes into it
    (tmp_path / "config" / "examples").symlink_to(ROOT / "config" / "examples")
    program, script, *arguments = shlex.split(command, comments=True)
    assert (program, script) == (".venv/bin/python", "run.py")
    if arguments[0] in ("new", "lint"):
        shutil.copytree(PHOTOS, tmp_path / "datasets" / "my_char")
    else:
        shutil.copy(
            ROOT / "config" / "examples" / EXAMPLE,
            tmp_path / "config" / "my_char.yaml",
        )
    is_planned = arguments[0] in ("new", "lint") or "--dry-run" in arguments
    code = main([*arguments, *([] if is_planned else ["--dry-run"])])
    # it finds that the photographs are small
    assert code == (arguments[0] == "lint"), capsys.readouterr().err
    assert (tmp_path / "lint.html").exists() == ("--preview" in arguments)


def test_what_the_pages_copy_is_there() -> None:
    bash = [
        block.text for page in ADVICE for block in blocks(f"docs/{page}.md", "bash")
    ]
    copied = [line.split() for text in bash for line in text.splitlines()]
    sources = [words[1] for words in copied if words[0] == "cp"]
    assert sources and all((ROOT / source).is_file() for source in sources)


def test_blocks_and_commands_are_found() -> None:
    pages = {Path(block.page).stem for block in YAML}
    assert pages >= {"first_character", "before_and_after_pairs", "datasets"}
    assert len(COMMANDS) > 3
