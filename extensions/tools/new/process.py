"""The process of `new`: writes a job, then checks its images and shows its plan.

The text of the job comes from the section (`config`). The checks are the commands
`lint` and `--dry-run`, run on the file as a user would run them. No training is
started. The table of tools (`extensions/tools/__init__.py`) names the process.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from extensions.tools.new.config import NewConfig
from extensions.tools.shared.examples import (
    MASCOTS,
    WITHOUT_GPU,
    are_photographs,
    layers_in,
    left_out_in,
    numbers_in,
)
from jobs.process import BaseExtensionProcess
from toolkit.commands import command
from toolkit.errors import RunError
from toolkit.files.writing import TOOLKIT_ROOT, write_text
from toolkit.plan.cards import ASSUMED, assumed_card

logger = logging.getLogger(__name__)


class NewProcess(BaseExtensionProcess):
    """Writes the job first, and then runs the checks on the file as separate commands.

    Example::

        python run.py new my_char datasets/photos --gpu 24
    """

    section: NewConfig

    def run(self) -> None:
        """Raises RunError where a start of the job would refuse it or its images, and
        UserError where the GPU is too small for the model. Other findings of `lint` are
        only shown."""
        super().run()
        section, path = self.section, self.section.path()
        was_there = path.exists()
        text = section.job_text()
        gpu = section.gpu_gb()
        write_text(path, text)
        done = "is there as written before" if was_there else "written"
        assumed = section.assumed_gb()
        card = assumed_card(assumed) if assumed else None
        such = (
            f", such as {card.called}" if card and card.name in ASSUMED.values() else ""
        )
        missing = "" if gpu else " (none here; see --gpu)"
        logger.info(
            f"{path}: {done} for a GPU of {gpu or WITHOUT_GPU} GB{such}{missing}"
        )
        layers = layers_in(section.folder)
        if layers and layers.key in text:
            logger.info(
                f"layers: {layers.layers} of {layers.image} ({layers.key}); docs/datasets.md"
            )
        else:
            pairs = section.pairs()
            if pairs:
                logger.info(f"{pairs.describe()}; docs/before_and_after_pairs.md")
        left_out = left_out_in(section.folder)
        if left_out:
            logger.info(
                f"left out, as their names keep them from the training: {', '.join(left_out)}"
            )
        why = numbers_in(section.folder)
        if why:
            what = f"the numbers of its folders {why}, and are not taken for repeats"
            logger.info(
                f"{section.folder}: {what}. If they are, take 'num_repeats: 1' out"
            )
        if Path(section.model).name == MASCOTS and are_photographs(section.folder):
            what = "draws flat mascots only, and photographs become mush: it is there to try the program"
            logger.warning(f"{section.model} {what}")
        preview = section.preview()
        has_findings = bool(_run_py("lint", path, "--preview", "--output", preview))
        if _run_py(path, "--dry-run", *(["--card", card.name] if card else [])):
            raise RunError(
                f"{path} was written, but a start would refuse what stands above. Correct it, in the images or in "
                f"the job, then: {command(path)} --dry-run"
            )
        steps = [
            f"check {preview}",
            *(["fix what was found"] if has_findings else []),
            f"put your prompts into {path}",
        ]
        if not section.may_start_here():  # the plan says why
            logger.info(f"to try the program here: {section.command_to_try()}")
            where = f"copy {path} and its images to a machine with a GPU of {gpu or WITHOUT_GPU} GB"
            logger.info(f"to train it: {', '.join(steps)}, {where}, and there")
        else:
            logger.info(f"next: {', '.join(steps)}, then")
        logger.info(f"  {command(path)}")


def _run_py(*arguments: object) -> int:
    """Runs a command of the program on the same streams; returns its exit code."""
    sys.stdout.flush()
    return subprocess.run(
        [sys.executable, str(TOOLKIT_ROOT / "run.py"), *map(str, arguments)]
    ).returncode
