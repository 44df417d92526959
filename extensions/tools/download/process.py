"""Downloads what the hub has under a name, and shows how far it is."""

from __future__ import annotations

from extensions.tools.download.config import DownloadConfig
from jobs.process import BaseExtensionProcess
from toolkit.config.sections.model_files import downloaded_bytes
from toolkit.files.log import StatusLine
from toolkit.files.now import told_to
from toolkit.files.writing import readable_size
from toolkit.models.hub import download_anything
from toolkit.train.now import RunNow


class DownloadProcess(BaseExtensionProcess):
    """Brings a model before a job needs it.

    Example::

        python run.py download Qwen/Qwen-Image-2512
    """

    section: DownloadConfig

    def run(self) -> None:
        super().run()
        name, revision = self.section.model, self.section.revision or None
        status = StatusLine()
        if self.section.is_here():
            status.finish(f"{name!r} is on this disk: nothing has to be downloaded.")
            return
        with told_to(RunNow(status)):
            path = download_anything(name, revision, "model")
        repository = "/".join(name.split("/")[:2])
        status.finish(
            f"{name}: {readable_size(downloaded_bytes(repository))} in {path}"
        )
