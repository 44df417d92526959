"""The job that learns from votes, where none can be made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from extensions.tools.ui.job_text import JobText
from extensions.tools.ui.preference_job import base_job, preference_job
from toolkit.errors import UserError


def test_a_job_that_cannot_be_made_is_to_be_written_by_hand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("Write a job: docs/preferences.md")):
        base_job(None, "", "", tmp_path, ())
    job = JobText("job: extension\nconfig: {name: a, process: [{type: sd_trainer}]}\n")
    with pytest.raises(
        UserError,
        match=re.escape("it has no 'train'. Write one by hand: docs/preferences.md"),
    ):
        preference_job(job, "votes", "votes.jsonl", "", 4)
