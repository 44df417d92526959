"""Makes the images of a section, and the file that lists the images of each prompt.

It does not ask for votes: the web page and a table do. `type: prefer` and
`run.py prefer` run it; `train.preference` of a training job reads the votes.
"""

from __future__ import annotations

import logging

from extensions.tools.prefer.config import PreferConfig
from extensions.tools.shared.candidates import VOTES, Group, add_groups
from extensions.tools.shared.generation import LoraFile, PictureMaker
from extensions.tools.shared.keys import split_strength
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
        maker = PictureMaker(
            section, [split_strength(text)[0] for text in section.lora]
        )
        loras = [LoraFile.of(text) for text in section.lora]
        pictures = []
        for item in section.items():
            for first in [section.seed if item.seed is None else item.seed]:
                for place in range(section.count):
                    pictures.append(
                        maker.picture(
                            item, first + place, maker.cfg_of(item, section.cfg), loras
                        )
                    )
        add_groups(
            maker.folder,
            (
                Group.of(picture.settings, picture.name, maker.folder)
                for picture in pictures
            ),
        )
        maker.make(pictures)
        logger.info(
            f"{maker.folder}: {len(pictures)} images to vote on: {command('ui')}, Datasets, {maker.folder.name}. "
            f"Each vote is a line of {maker.folder / VOTES}"
        )
