"""`run.py queue`: the queue from a terminal."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from extensions.tools.ui.queue import Queue, Runner, planned, refusal
from extensions.tools.ui.queue_config import QueueConfig, queue_folder
from jobs.process import BaseExtensionProcess
from toolkit.config.tool import ToolConfig, load_tool
from toolkit.errors import UserError
from toolkit.extension import discover

logger = logging.getLogger(__name__)


class QueueProcess(BaseExtensionProcess):
    """Does one thing with the queue. A kill at any moment leaves each entry whole, and what runs goes on."""

    section: QueueConfig

    def run(self) -> None:
        """Raises UserError for what cannot be done, RunError where another runner works."""
        super().run()
        queue, action, words = Queue(queue_folder(self.section.output)), self.section.action, self.section.words
        if action == "run":
            Runner(queue).run()
        elif action == "list":
            for entry in queue.entries():
                about = "".join(
                    f", {text}" for text in (entry.attempts > 1 and f"{entry.attempts} starts", entry.why) if text
                )
                logger.info(f"{entry.id}  {entry.state:8}  {shlex.join(entry.argv)}{about}")
        elif action == "add":
            entry = queue.add(words, checked(words))
            runner = "" if queue.has_runner() else " Next: python run.py queue run"
            logger.info(f"{entry.id}: {entry.name} waits.{runner}")
        else:
            getattr(queue, action)(*words)
            logger.info(f"{action}: done")


def checked(argv: tuple[str, ...]) -> str:
    """A name for a command whose settings are right. Raises UserError for mistakes in them."""
    if reason := refusal(argv, str(Path.cwd())):
        raise UserError(reason)
    uid, *flags = argv
    if uid not in discover().tools():
        return str(planned(argv, str(Path.cwd())).get("job", uid))
    model = discover().find_command(uid)
    if model is not None and issubclass(model, ToolConfig):
        load_tool(uid, model, flags)
    return uid
