"""Files of other programs that become a job at once, as the loader asks for them.

`musubi` and `not_read` make one each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from toolkit.config.reading.located import ConfigNode, Diagnostics

SCRIPT = "<script>"
"""The key of a pasted command's script beside those of its flags."""


class ForeignJobs(NamedTuple):
    """A `toolkit.config.reading.foreign.ForeignFile`, whose own text is not kept: a job
    that is written from it is in our keys.

    Example::

        jobs = ForeignJobs(reads, as_job)
        if jobs.reads(root):
            root = jobs.as_job(root, folder, name, diagnostics, {})
    """

    reads: Callable[[ConfigNode], bool]
    """Whether a file that is not a job is of this kind."""

    as_job: Callable[
        [ConfigNode, Path, str | None, Diagnostics, Mapping[str, str]], ConfigNode
    ]
    """The root of the job that one describes."""

    keeps_text: bool = False
