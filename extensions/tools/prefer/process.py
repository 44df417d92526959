"""Makes the images of a section, and the file that lists the images of each prompt.

It does not ask for votes: the web page and a table do. `type: prefer` and
`run.py prefer` run it; `train.preference` of a training job reads the votes.
"""

from __future__ import annotations

import logging

from extensions.tools.prefer.config import PreferConfig
from extensions.tools.shared.candidates import VOTES, Group, add_groups
from extensions.tools.shared.generation import LoraFile, PictureMaker
from jobs.process import BaseExtensionProcess
from toolkit.commands import command

logger = logging.getLogger(__name__)


class PreferProcess(BaseExtensionProcess):
    """Lists the candidates first, so people can vote while the images are made. A stop
    keeps the finished images.

    Example::

        python run.py prefer output/my_char --prompts prompts.txt --count 4
    """

    section: PreferConfig

    def run(self) -> None:
        super().run()
        section = self.section.resolved()
        loras = [LoraFile.of(text) for text in section.lora]
        maker = PictureMaker(section, [lora.path for lora in loras])
        pictures = []
        for item in section.items():
            first = section.seed if item.seed is None else item.seed
            cfg = maker.cfg_of(item, section.cfg)
            pictures += [
                maker.picture(item, first + place, cfg, loras)
                for place in range(section.count)
            ]
        groups = (Group.of(one.settings, one.name, maker.folder) for one in pictures)
        add_groups(maker.folder, groups)
        maker.make(pictures)
        logger.info(
            f"{maker.folder}: {len(pictures)} images to vote on: {command('ui')}, Datasets, {maker.folder.name}. "
            f"Each vote is a line of {maker.folder / VOTES}"
        )
