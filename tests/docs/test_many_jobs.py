"""docs/many_jobs.md: its block of Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import blocks

JOB = """
job: extension
config:
  name: my_char
  process:
    - type: sd_trainer
      training_folder: output
      device: cpu
      network: {linear: 2}
      datasets: [{folder_path: PHOTOS, resolution: 64}]
      train: {steps: 1, disable_sampling: true}
      logging: {report: false}
      model: {name_or_path: MODEL}
"""


@pytest.mark.slow
def test_the_block_of_python_trains(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = ROOT / "config" / "examples" / "pairs" / "after"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "my_char.yaml").write_text(
        JOB.replace("PHOTOS", str(photos)).replace("MODEL", str(tiny_model))
    )
    (block,) = blocks("docs/many_jobs.md", "python")
    exec(compile(block.text, "many_jobs.md", "exec"), {})
    said = capsys.readouterr().out
    for rate in ("1e-4", "2e-4"):
        name = f"my_char_{rate}"
        assert f"0 output/{name} ['output/{name}/{name}.safetensors']" in said
        assert f"\noutput/{name} finished " in said
