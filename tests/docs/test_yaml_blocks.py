"""The YAML blocks and commands of the pages: each is planned by a dry run, with photographs in place of one's own."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.toolkit.data.shard_server import write_shard
from toolkit.files.safetensors_io import framed

Run = Callable[..., subprocess.CompletedProcess]

EXAMPLE = "config/examples/train_qwen_image_edit_2509_24gb.yaml"
PHOTOS = ROOT / "config" / "examples" / "photos"
ADVICE = ("first_character", "before_and_after_pairs", "ten_keys", "troubleshooting")
"""Pages whose commands are run, too."""

PAGES = (*ADVICE, "datasets", "few_step_loras")
FOLDERS = ("folder_path", "control_path", "mask_path")
FILES = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return [
        re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)
        for indent, block in re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    ]


YAML = [(page, index, block) for page in PAGES for index, block in enumerate(blocks(page, "yaml"))]
COMMANDS = [
    line for page in ADVICE for block in blocks(page, "bash") for line in block.splitlines() if "run.py" in line
]


def merged(base: Any, change: Any) -> Any:
    """A block's keys in a job: mappings merge, everything else is replaced."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


def whole_job(block: str) -> dict[str, Any]:
    """The block itself, or the 24 GB example with what the block says of its process."""
    given = yaml.safe_load(block)
    if "job" in given:
        return given
    job = yaml.safe_load((ROOT / EXAMPLE).read_text(encoding="utf-8"))
    job["config"]["process"][0] = merged(job["config"]["process"][0], given)
    return job


def values(node: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """All texts under these keys, of lists each."""
    if isinstance(node, list):
        for entry in node:
            yield from values(entry, keys)
    if isinstance(node, dict):
        for key, value in node.items():
            if key in keys and value:
                yield from [value] if isinstance(value, str) else value
            yield from values(value, keys)


def put_photos(job: dict[str, Any], place: Path) -> None:
    """Photographs with captions in each folder that the job names, a photograph for each image."""
    photos = [path for path in PHOTOS.rglob("*") if path.suffix in (".jpg", ".txt")]
    for name in values(job, FOLDERS):
        folder = place / name
        if not folder.exists():
            folder.mkdir(parents=True)
            for photo in photos:
                shutil.copy(photo, folder)
    for entry in job["config"]["process"][0].get("datasets", ()):
        for suffix in values(entry, ("image_suffix", "control_suffix")):
            for photo in photos:
                shutil.copy(photo, place / entry["folder_path"] / f"{photo.stem}{suffix}{photo.suffix}")
    for pattern in values(job, ("url",)):
        write_shard(place / pattern.replace("*", "0"), 2)
    for name in values(job, ("lora", "assistant")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(framed("{}"))
    for name in values(job, FILES):
        if not (place / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PHOTOS / "40_photo" / "coffee.jpg", place / name)


@pytest.mark.parametrize(("page", "index", "block"), YAML, ids=[f"{page}-{index}" for page, index, _ in YAML])
def test_a_block_is_a_job_or_fits_into_the_example(
    run_py: Run, tmp_path: Path, page: str, index: int, block: str
) -> None:
    job = whole_job(block)
    shutil.copytree(PHOTOS, tmp_path / "config" / "examples" / "photos")
    put_photos(job, tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    planned = run_py("job.yaml", "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    if page in ADVICE:
        assert planned.stderr == ""


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_a_command_of_the_pages_can_be_given(run_py: Run, tmp_path: Path, command: str) -> None:
    """As written, but planned only; config/my_character.yaml is what `run.py new` makes of an example."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    program, script, *arguments = shlex.split(command, comments=True)
    assert (program, script) == (".venv/bin/python", "run.py")
    if arguments[0] in ("new", "lint"):
        shutil.copytree(PHOTOS, tmp_path / "datasets" / "mychar")
    else:
        shutil.copy(ROOT / EXAMPLE, tmp_path / "config" / "my_character.yaml")
    is_planned = arguments[0] in ("new", "lint") or "--dry-run" in arguments
    planned = run_py(*arguments, *([] if is_planned else ["--dry-run"]), cwd=tmp_path)
    assert planned.returncode == (arguments[0] == "lint"), planned.stderr  # it finds that the photographs are small
    assert (tmp_path / "lint.html").exists() == ("--preview" in arguments)


def test_the_block_for_12_gb_has_the_peak_of_the_table(run_py: Run, tmp_path: Path) -> None:
    """The table's figures are held to the plans of `run.py new` in tests/docs/test_gpu_table.py."""
    page = (ROOT / "docs" / "first_character.md").read_text(encoding="utf-8")
    peak = re.search(r"^\| 12 GB \|.*\| (\S+) GB \|$", page, re.MULTILINE)
    small = next(block for block in blocks("first_character", "yaml") if "blocks_to_swap" in block)
    job = whole_job(small)
    shutil.copytree(PHOTOS, tmp_path / "config" / "examples" / "photos")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    plan = run_py("job.yaml", "--dry-run", cwd=tmp_path)
    assert peak and re.search(rf"peak {peak[1]} GB on the GPU .*: fits a 12 GB GPU", plan.stdout), plan.stdout


def test_what_the_pages_copy_is_there() -> None:
    copied = [line.split() for page in ADVICE for block in blocks(page, "bash") for line in block.splitlines()]
    sources = [words[1] for words in copied if words[0] == "cp"]
    assert sources and all((ROOT / source).is_file() for source in sources)


def test_blocks_and_commands_are_found() -> None:
    assert {page for page, _, _ in YAML} >= {"first_character", "before_and_after_pairs", "datasets"}
    assert len(COMMANDS) > 3
