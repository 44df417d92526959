"""Generates the images of a grid, and its page.

The images are made by `PictureMaker` of `extensions.tools.shared.generation`. An image
with the same settings is not made again. `type: grid` and `run.py grid` run it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from extensions.tools.grid.config import INDEX, GridConfig
from extensions.tools.grid.page import Column, Row, grid_page
from extensions.tools.shared.generation import LoraFile, PictureMaker
from extensions.tools.shared.keys import split_strength
from jobs.process import BaseExtensionProcess
from toolkit.files.writing import write_text

logger = logging.getLogger(__name__)


class GridProcess(BaseExtensionProcess):
    """Generates the images and their page. The page exists from the beginning and shows
    the finished images; a stop keeps both.

    Example::

        python run.py grid --lora output/my_char/my_char.safetensors --prompt "a cat"
    """

    section: GridConfig

    def run(self) -> None:
        super().run()
        section = self.section
        also = [LoraFile.of(text) for text in section.also]
        loras = list(self._loras())
        maker = PictureMaker(section, [lora.path for lora in (*also, *loras)])
        columns = [(), *((lora,) for lora in loras)]
        heads = [Column.of(loras) for loras in columns]
        title = Path(loras[-1].path).stem
        index = maker.folder / INDEX
        cfgs = section.cfg or (None,)
        rows = []
        for item in section.items():
            for cfg in dict.fromkeys(maker.cfg_of(item, scale) for scale in cfgs):
                for seed in section.seed if item.seed is None else (item.seed,):
                    pictures = [
                        maker.picture(item, seed, cfg, (*also, *shown))
                        for shown in columns
                    ]
                    rows.append(Row(pictures))

        def write(*_: object) -> None:
            write_text(index, grid_page(heads, rows, maker.folder, title))

        write()
        maker.make([picture for row in rows for picture in row.pictures], write)
        logger.info(f"{len(rows)} x {len(columns)} images: open {index} in a browser")

    def _loras(self) -> Iterator[LoraFile]:
        """A file with a strength for each column."""
        for text in self.section.lora:
            fixed = split_strength(text)[0] != text
            for strength in (None,) if fixed else self.section.strength:
                yield LoraFile.of(text, strength)
