"""What the template's keys accept."""

from __future__ import annotations

from pathlib import Path

from extensions.example.config import ExampleConfig
from toolkit.config import JobContext


def test_defaults() -> None:
    config = ExampleConfig(type="example", folder_path="x")
    assert config.output == "output/example.json"
    assert ".jpg" in config.suffixes


def test_a_missing_folder_is_found(tmp_path: Path) -> None:
    job = JobContext("job")
    (finding,) = ExampleConfig(
        type="example", folder_path=str(tmp_path / "none")
    ).check(job)
    assert finding.key == ("folder_path",)
    assert "does not exist" in finding.message
    assert not list(ExampleConfig(type="example", folder_path=str(tmp_path)).check(job))


def test_a_folder_that_an_earlier_process_writes_is_not_missing(tmp_path: Path) -> None:
    later = tmp_path / "later"
    job = JobContext("job", frozenset([later.resolve()]))
    assert not list(ExampleConfig(type="example", folder_path=str(later)).check(job))
