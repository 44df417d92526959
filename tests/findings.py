"""What the checks of a section find, by severity."""

from __future__ import annotations

from toolkit.config.reading.base import StrictModel, all_findings
from toolkit.config.reading.process import Diagnostic, JobContext

JOB = JobContext("job")


def errors(section: StrictModel, job: JobContext = JOB) -> list[Diagnostic]:
    """The errors of a section and of all below it."""
    return [found for found in all_findings(section, job) if found.severity == "error"]


def warnings(section: StrictModel, job: JobContext = JOB) -> list[Diagnostic]:
    """The warnings of a section and of all below it."""
    return [
        found for found in all_findings(section, job) if found.severity == "warning"
    ]
