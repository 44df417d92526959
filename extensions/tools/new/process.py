"""Writes the job of a character: that of the model's examples for the GPU, filled in."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

from extensions.tools.new import examples
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

SMALL: tuple[Edit, ...] = (
    (r"(?s)    - type: mascots.*(?=    - type: sd_trainer)", ""),
    (r"(?s)        - folder_path: \S+others/pictures.*?\n\n", "\n"),
    (r"(?s)( +)prompts: .*(?=meta:)", r'\1samples:\n\1  - prompt: "[trigger]"    # <- yours\n'),
    (r"^ +num_repeats: .*\n", ""),
    (r"^( +)(training_seed: .*)$", r'\1trigger_word: ""     # <- yours\n\1\2'),
)
"""From the quickstart to a job on a folder, for a model that is as small."""


WRITTEN = "Written by `run.py new`"

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
    trigger = section.trigger_word or section.job_name
    name, folder, quoted_trigger = map(_quoted, (section.job_name, section.folder, trigger))
    if section.model and model_bytes(ModelConfig(name_or_path=section.model)) <= ACCIDENTAL_CPU_LIMIT:
        return _small_job(name, folder, quoted_trigger, _quoted(section.model))
    model = examples.model_of(section.model) if section.model else examples.MODELS[0]
    own = {"name": name, "folder": folder, "trigger": quoted_trigger, "id": _quoted(section.model or model.id)}
    return f"# {WRITTEN}. Guide: docs/first_character.md\n{examples.job_text(model, gpu, **own)}"


def _small_job(name: str, folder: str, trigger: str, model: str) -> str:
    example = EXAMPLES / "quickstart.yaml"
    yours = {
        r"(?<=config:\n)  name: \S+": f"  name: {name}",
        r"trigger_word: \S+": f"trigger_word: {trigger}",
        r"folder_path: \S+": f"folder_path: {folder}",
        r"name_or_path: \S+": f"name_or_path: {model}",
    }
    text = example.read_text(encoding="utf-8")
    for pattern, replacement in (*SMALL, *yours.items()):
        filled = replacement.replace("\\", "\\\\") if pattern in yours else replacement
        text, count = re.subn(pattern, filled, text, flags=re.MULTILINE)
        assert count == 1, f"{example.name}: {pattern!r} matches {count} times"
    _, _, body = text.partition("\njob: ")
    return f"# {WRITTEN} from config/examples/{example.name}. Guide: docs/first_character.md\njob: {body}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is one of YAML


def _run_py(*arguments: object) -> int:
    """Runs a command of the program on the same streams; returns its exit code."""
    sys.stdout.flush()
    return subprocess.run([sys.executable, str(TOOLKIT_ROOT / "run.py"), *map(str, arguments)]).returncode
