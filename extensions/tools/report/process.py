"""Writes the page of each run in a folder.

The page itself is made in `page`. `type: report` and `run.py report` run it, for
finished runs and for those that are still training.
"""

from __future__ import annotations

import logging
from pathlib import Path

from extensions.tools.report.config import FILE, ReportConfig
from extensions.tools.report.page import report_page
from extensions.tools.shared.html_page import is_page
from jobs.process import BaseExtensionProcess
from toolkit.files.writing import readable_size, why_not_replaced, write_text
from toolkit.train.run_reader import runs_in

logger = logging.getLogger(__name__)


class ReportProcess(BaseExtensionProcess):
    """Writes one page for each run. It only reads a run, so one that still trains is
    not disturbed.

    Example::

        python run.py report output/my_char
    """

    section: ReportConfig

    def run(self) -> None:
        super().run()
        section = self.section
        how = section.embed, section.hashes, section.share
        for run in runs_in(section.folder()):
            given = section.output
            path = Path(given).expanduser() if given else run.folder / FILE
            reason = why_not_replaced(path, is_page)
            if reason:
                logger.warning(reason)
                continue
            write_text(path, report_page(run, path.parent, *how))
            logger.info(f"{path}: {readable_size(path.stat().st_size)}")
