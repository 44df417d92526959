"""Writes the job of a character: the example for the GPU with the lines that end in `<- yours` filled in."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from typing import NamedTuple

from extensions.tools.new.config import NewConfig
from jobs.process import BaseExtensionProcess
from toolkit.config.model import ModelConfig
from toolkit.errors import RunError
from toolkit.files.writing import CONFIG_ROOT, TOOLKIT_ROOT, write_text
from toolkit.models.families import model_bytes
from toolkit.system.nvidia import ACCIDENTAL_CPU_LIMIT, least_memory
from toolkit.train.next_commands import command

logger = logging.getLogger(__name__)

EXAMPLES = CONFIG_ROOT / "examples"

Edit = tuple[str, str]
"""Regular expression (of whole lines) and what replaces its one match."""

SWAP: Edit = (r"^( +)(qtype: int4 .*)$", r"\1\2\n\1blocks_to_swap: {} # blocks of the transformer wait in main memory")


class Card(NamedTuple):
    """What a GPU of this memory needs."""

    least_gb: int
    example: str
    """Pattern of its file."""

    edits: tuple[Edit, ...] = ()
    """Of the example; docs/first_character.md shows them."""


CARDS = (
    Card(80, "train_*_80gb.yaml"),
    Card(32, "train_*_48gb.yaml"),
    Card(20, "train_*_24gb.yaml"),
    Card(16, "train_*_24gb.yaml", ((SWAP[0], SWAP[1].format(8)),)),
    Card(
        0,
        "train_*_24gb.yaml",
        (
            (SWAP[0], SWAP[1].format(30)),
            (r"qtype_te: int8", "qtype_te: int4"),
            (r"width: 1024", "width: 768"),
            (r"height: 1024", "height: 768"),
            (r"^ +width: 832\n +height: 1248\n", ""),
        ),
    ),
)

NO_REFERENCE: Edit = (r"^ +- prompt: .*drinks the coffee.*\n(?: +(?:#|ctrl_img).*\n)+", "")
"""The sample with a control image of the example photographs."""

SMALL: tuple[Edit, ...] = (
    (r"(?s)    - type: mascots.*(?=    - type: sd_trainer)", ""),
    (r"(?s)        - folder_path: \S+others/pictures.*?\n\n", "\n"),
    (r"(?s)( +)prompts: .*(?=meta:)", r'\1samples:\n\1  - prompt: "[trigger]"    # <- yours\n'),
    (r"^ +num_repeats: .*\n", ""),
    (r"^( +)(training_seed: .*)$", r'\1trigger_word: ""     # <- yours\n\1\2'),
)
"""From the quickstart to a job on a folder, for a model that is as small."""


WITHOUT_GPU = 24
"""GB of the GPU that a job is written for on a machine without one."""


class NewProcess(BaseExtensionProcess):
    """The job is written first; the checks run on the file, as their own commands would."""

    section: NewConfig

    def run(self) -> None:
        """Raises RunError where the job has mistakes; what `lint` finds in the images is only shown."""
        super().run()
        section, path = self.section, self.section.path()
        gpu = section.gpu or round(least_memory() / 2**30)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, job_text(section, gpu or WITHOUT_GPU))
        logger.info(
            f"{path}: written for a GPU of {gpu or WITHOUT_GPU} GB" + ("" if gpu else " (none here; see --gpu)")
        )
        preview = section.preview()
        _run_py("lint", path, "--preview", "--output", preview)
        if _run_py(path, "--dry-run"):
            raise RunError(f"{path}: is written and has the mistakes above. Correct them in it.")
        logger.info(f"next: look at {preview}, correct what was found, put your prompts into {path}, then")
        logger.info(f"  {command(path)}")


def job_text(section: NewConfig, gpu: int) -> str:
    """The YAML of the job for a GPU of so many GB."""
    model = section.model
    is_small = bool(model) and model_bytes(ModelConfig(name_or_path=model)) <= ACCIDENTAL_CPU_LIMIT
    card = next(card for card in CARDS if gpu >= card.least_gb)
    pattern, edits = ("quickstart.yaml", SMALL) if is_small else (card.example, (NO_REFERENCE, *card.edits))
    (example,) = EXAMPLES.glob(pattern)
    trigger = section.trigger_word or section.job_name
    yours = {
        r"(?<=config:\n)  name: \S+": f"  name: {_quoted(section.job_name)}",
        r"trigger_word: \S+": f"trigger_word: {_quoted(trigger)}",
        r"folder_path: \S+": f"folder_path: {_quoted(section.folder)}",
        **({r"name_or_path: \S+": f"name_or_path: {_quoted(model)}"} if model else {}),
    }
    text = example.read_text(encoding="utf-8")
    for pattern, replacement in (*edits, *yours.items()):
        filled = replacement.replace("\\", "\\\\") if pattern in yours else replacement
        text, count = re.subn(pattern, filled, text, flags=re.MULTILINE)
        assert count == 1, f"{example.name}: {pattern!r} matches {count} times"
    _, _, body = text.partition("\njob: ")
    return f"# Written by `run.py new` from config/examples/{example.name}. Guide: docs/first_character.md\njob: {body}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is one of YAML


def _run_py(*arguments: object) -> int:
    """Runs a command of the program on the same streams; returns its exit code."""
    sys.stdout.flush()
    return subprocess.run([sys.executable, str(TOOLKIT_ROOT / "run.py"), *map(str, arguments)]).returncode
