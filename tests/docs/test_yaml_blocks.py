"""The YAML blocks and commands of the pages: each is planned by a dry run, with
photographs in place of one's own."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

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
from toolkit.files.safetensors_io import framed

Run = Callable[..., subprocess.CompletedProcess]

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


@pytest.mark.parametrize("block", YAML, ids=str)
def test_a_block_is_a_job_or_fits_into_the_example(
    run_py: Run, tmp_path: Path, block: Block
) -> None:
    job = whole_job(block)
    shutil.copytree(PHOTOS, tmp_path / "config" / "examples" / "photos")
    put_photos(job, tmp_path)
    # docs/datasets.md
    (tmp_path / "kept.txt").write_text("a person in a garden\n", encoding="utf-8")
    for name in lora_files(job):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(framed("{}"))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    planned = run_py("job.yaml", "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    if Path(block.page).stem in ADVICE:
        assert planned.stderr == ""


def test_the_block_of_layers_is_a_job(run_py: Run, tmp_path: Path) -> None:
    """Its images have layers, which photographs have not."""
    layers = next(
        block
        for block in blocks("docs/models.md", "yaml")
        if "layers_suffix" in block.text
    )
    job = whole_job(layers)
    del job["config"]["process"][0]["model"]["arch"]  # the example's
    write_layers(tmp_path / "datasets" / "posters", 3, stem="a")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    planned = run_py("job.yaml", "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "Qwen-Image-Layered" in planned.stdout


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_a_command_of_the_pages_can_be_given(
    run_py: Run, tmp_path: Path, command: str
) -> None:
    """As written, but planned only; config/my_character.yaml is what `run.py new` makes
    of an example."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    program, script, *arguments = shlex.split(command, comments=True)
    assert (program, script) == (".venv/bin/python", "run.py")
    if arguments[0] in ("new", "lint"):
        shutil.copytree(PHOTOS, tmp_path / "datasets" / "mychar")
    else:
        shutil.copy(
            ROOT / "config" / "examples" / EXAMPLE,
            tmp_path / "config" / "my_character.yaml",
        )
    is_planned = arguments[0] in ("new", "lint") or "--dry-run" in arguments
    planned = run_py(*arguments, *([] if is_planned else ["--dry-run"]), cwd=tmp_path)
    # it finds that the photographs are small
    assert planned.returncode == (arguments[0] == "lint"), planned.stderr
    assert (tmp_path / "lint.html").exists() == ("--preview" in arguments)


def test_the_block_for_12_gb_has_the_peak_of_the_table(
    run_py: Run, tmp_path: Path
) -> None:
    """The table's figures are held to the plans of `run.py new` in
    tests/docs/test_gpu_table.py."""
    page = (ROOT / "docs" / "first_character.md").read_text(encoding="utf-8")
    peak = re.search(r"^\| 12 GB \|.*\| (\S+) GB \|$", page, re.MULTILINE)
    small = next(
        block
        for block in blocks("docs/first_character.md", "yaml")
        if "blocks_to_swap" in block.text
    )
    job = whole_job(small)
    shutil.copytree(PHOTOS, tmp_path / "config" / "examples" / "photos")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    plan = run_py("job.yaml", "--dry-run", cwd=tmp_path)
    assert peak and re.search(
        rf"peak {peak[1]} GB on (?:a|the) GPU.*: fits a 12 GB GPU", plan.stdout
    ), plan.stdout


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
