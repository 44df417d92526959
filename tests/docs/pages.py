"""The blocks of README and docs, and the jobs that their YAML makes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import yaml

from tests.conftest import ROOT
from tests.processes import output_of
from tests.toolkit.data.shard_server import write_shard
from toolkit.data.scan.partners import with_affix

PAGES = ("README.md", *output_of("git", "ls-files", "docs/*.md").split())

EXAMPLES = {"docs/full_finetuning.md": "train_qwen_image_edit_2509_80gb.yaml"}
"""Page -> the example that its blocks change, where that is another one."""

EXAMPLE = "train_qwen_image_edit_2509_24gb.yaml"
PHOTOS = ROOT / "config" / "examples" / "photos"
FOLDERS = ("folder_path", "control_path", "mask_path")
FILES = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")


@dataclass(frozen=True)
class Block:
    """What stands between two fences of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.language}"


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page in their order; of these languages, where some are given.
    Without `wrong_and_right`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    pairs = {block.line for pair in wrong_and_right(text) for block in pair}
    return [
        block
        for block in fenced(page, text)
        if block.line not in pairs and (not languages or block.language in languages)
    ]


def fenced(page: str, text: str) -> list[Block]:
    """All blocks of the text of a page."""
    return [
        Block(page, text[: match.start()].count("\n") + 1, match[2], dedent(match[3]))
        for match in re.finditer(r"(?ms)^( *)```(.*?)\n(.*?)^\1```$", text)
    ]


def wrong_and_right(text: str) -> list[tuple[Block, Block]]:
    """The pairs of blocks that a page shows below `Wrong:` and `Right:`;
    test_troubleshooting.py tries them."""
    found = fenced("docs/troubleshooting.md", text)
    lines = text.splitlines()
    wrong = [block for block in found if lines[block.line - 3].endswith("Wrong:")]
    right = [block for block in found if lines[block.line - 3].endswith("Right:")]
    return list(zip(wrong, right, strict=True))


def merged(base: Any, change: Any) -> Any:
    """A block's keys in a job: mappings merge, everything else is replaced."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


def whole_job(block: Block) -> dict[str, Any]:
    """The block itself, or the example with what the block says of its process."""
    given = yaml.safe_load(block.text)
    if "job" in given:
        return given
    example = ROOT / "config" / "examples" / EXAMPLES.get(block.page, EXAMPLE)
    job = yaml.safe_load(example.read_text(encoding="utf-8"))
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
    """Photographs with captions in each folder that the job names, a photograph for
    each image."""
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
                shutil.copy(
                    photo,
                    place
                    / entry["folder_path"]
                    / f"{with_affix(photo.stem, suffix)}{photo.suffix}",
                )
    for pattern in values(job, ("url",)):
        if not list(place.glob(pattern)):
            write_shard(place / pattern.replace("*", "0"), 8, (64, 64))
    for name in values(job, FILES):
        if not (place / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PHOTOS / "40_photo" / "coffee.jpg", place / name)


def lora_files(job: dict[str, Any]) -> Iterator[str]:
    """The LoRA files that a job names."""
    yield from values(job, ("lora", "assistant", "pretrained_lora_path"))
    for process in job["config"]["process"]:
        for entry in process.get("model", {}).get("base_loras", ()):
            yield entry if isinstance(entry, str) else entry["path"]
