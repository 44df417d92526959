"""The process of `generate`: generates the images of a section, or decodes latents.

The images come from a `PictureMaker` (`shared/generation`), which also writes them.
With `interactive` further prompts are read from standard input. The table of tools
(`extensions/tools/__init__.py`) names the process.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from extensions.tools.generate.config import GenerateConfig
from extensions.tools.shared.generation import LoraFile, Picture, PictureMaker
from extensions.tools.shared.image_files import LATENTS, read_settings
from extensions.tools.shared.picture_config import (
    check_references,
    is_prompt,
    read_lines,
)
from jobs.process import BaseExtensionProcess
from toolkit.config.reading.process import JobContext
from toolkit.config.sections.output import SampleItem
from toolkit.errors import UserError

logger = logging.getLogger(__name__)

SUFFIXES = {
    "images": (".png",),
    "latent": (LATENTS,),
    "latent_images": (".png", LATENTS),
}
"""`output_type` -> the files of an image."""


class GenerateProcess(BaseExtensionProcess):
    """Writes an image for each prompt and seed. Images that are written stay when it is
    stopped.

    Example::

        python run.py generate --lora output/a.safetensors --prompt "a cat"
    """

    section: GenerateConfig

    def run(self) -> None:
        super().run()
        section = self.section.resolved()
        if section.latent_path:
            files = [Path(path).expanduser() for path in section.latent_path]
            PictureMaker(section, []).decode(files)
            return
        items = self.section.items()
        loras = [LoraFile.of(text) for text in section.lora]
        paths = [lora.path for lora in loras]
        maker = PictureMaker(section, paths, SUFFIXES[section.output_type])
        if self.section.like:
            self._tell_changes(maker, items, loras)
        maker.keeps_encoders = section.interactive
        maker.make(list(pictures(section, maker, items, loras)))
        if section.interactive:
            self._answer(section, maker, loras)

    def _answer(
        self, section: GenerateConfig, maker: PictureMaker, loras: Sequence[LoraFile]
    ) -> None:
        """Generates the prompts of standard input until it ends."""
        context = JobContext(self.job.name)
        while True:
            if sys.stdin.isatty():
                print("prompt> ", end="", flush=True)
            line = sys.stdin.readline()
            if not line:
                return
            if not is_prompt(line):
                continue
            try:
                told: list[str] = []
                items = read_lines([line.strip()], told)
                for warning in told:
                    logger.warning(warning)
                if tag := section.lora_in(items[0]):
                    raise UserError(tag)
                images = items[0].ctrl_img
                for finding in check_references(
                    ("prompt",), images, maker.family, context
                ):
                    raise UserError(finding.message)
                maker.make(list(pictures(section, maker, items, loras)))
            except UserError as error:
                logger.error(str(error))

    def _tell_changes(
        self,
        maker: PictureMaker,
        items: Sequence[SampleItem],
        loras: Sequence[LoraFile],
    ) -> None:
        """Warns where files that the image was generated with have changed."""
        then = read_settings(Path(self.section.like).expanduser())
        now = next(pictures(self.section.resolved(), maker, items, loras)).settings
        changed = [
            file["path"]
            for key in ("reference", "lora")
            if key not in self.section.model_fields_set
            for file, present in zip(then[key], now[key], strict=True)
            if file["sha256"] != present["sha256"]
        ]
        changed += [
            f"the model's {part}"
            for part, digest in then["base"].items()
            if maker.base.get(part) != digest
        ]
        if changed:
            logger.warning(
                f"{', '.join(changed)} changed since {self.section.like} was generated, so the result will differ"
            )


def pictures(
    section: GenerateConfig,
    maker: PictureMaker,
    items: Sequence[SampleItem],
    loras: Sequence[LoraFile],
) -> Iterator[Picture]:
    """An image of each item for each seed of the section. An item with its own seed
    gives one image."""
    for item in items:
        for seed in section.seed if item.seed is None else (item.seed,):
            yield maker.picture(item, seed, maker.cfg_of(item, section.cfg), loras)
