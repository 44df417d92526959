"""The times that the guides quote are those of the plans of `run.py new`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from extensions.tools.shared.examples import MODELS, written_job
from jobs.dry_run import plan_job
from tests.conftest import ROOT
from toolkit.config import load_job
from toolkit.extension import discover
from toolkit.plan.cards import assumed_card

UNITS = {"min": 60, "h": 3600}
QUOTED = re.compile(r"([\d.]+) (min|h) (?:on an |\()(H100|RTX \d{4})")


@pytest.mark.parametrize(("page", "row"), [("docs/first_character.md", "| training |"), ("README.md", "| time |")])
def test_the_quoted_times_are_those_of_the_plan(
    page: str, row: str, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith(row)]
    quoted = {name: float(number) * UNITS[unit] for number, unit, name in QUOTED.findall(line)}
    folder = make_pictures(tmp_path / "pictures", *"abcdefgh", size=(1100, 1100))
    planned = {}
    for gpu in MODELS[0].cards:
        card = assumed_card(gpu)
        if card.name in quoted:
            job = tmp_path / "job.yaml"
            job.write_text(written_job("zuzu", str(folder), "zuzu", "", gpu), encoding="utf-8")
            (process,) = plan_job(load_job(str(job), discover().find_config), card=card.name).processes
            assert process.outlook and process.outlook.time
            planned[card.name] = process.outlook.time.seconds
    assert len(planned) >= 2 and planned == pytest.approx(quoted, rel=0.1)
