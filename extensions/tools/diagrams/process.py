"""Draws the diagrams of each run in a folder.

It reads the metrics that a run has logged, and writes PNG files and a summary.
`type: diagrams` and `run.py diagrams` run it; the drawing is in
`extensions.tools.shared.diagrams`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from extensions.tools.diagrams.config import DiagramsConfig
from extensions.tools.shared.diagrams import draw_diagrams
from jobs.process import BaseExtensionProcess
from toolkit.files.run_files import GRAPH
from toolkit.train.run_reader import RunInfo, runs_in

logger = logging.getLogger(__name__)


class DiagramsProcess(BaseExtensionProcess):
    """Draws the curves of runs. It only reads a run, so one that still trains is not
    disturbed.

    Example::

        python run.py diagrams output/my_char
    """

    section: DiagramsConfig

    def run(self) -> None:
        super().run()
        runs = runs_in(self.section.folder())
        for run in runs:
            given = self.section.output
            output = Path(given).expanduser() if given else run.folder / GRAPH
            of_run = f"_{run.name}" if len(runs) > 1 else ""
            suffix = self.section.suffix or (of_run if given else "")
            files = draw_diagrams(run.folder, output, suffix)
            drawn = f"{len(files)} files in {output}"
            logger.info(f"{run.folder}: {drawn if files else 'no step recorded yet'}")
            if not given and run.folder != self.section.folder():
                self._draw_above(run, of_run)

    def _draw_above(self, run: RunInfo, suffix: str) -> None:
        """Also draws a run into `graph/` of the given folder, where FluxFlow's guide
        has its diagrams."""
        together = self.section.folder() / GRAPH
        if draw_diagrams(run.folder, together, suffix):
            named = f", with {suffix} behind their names" if suffix else ""
            logger.info(f"{together}: the same{named}")
