"""`lint` tells what the words of a job's captions and prompts would teach wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.running import section_of
from tests.toolkit.data.scan.test_words import PROSE, found
from toolkit.config import load_job
from toolkit.config.sections.trainer import ImageTrainingSection
from toolkit.extension import discover


def lint(path: Path) -> list[str]:
    from extensions.tools.lint.checks import run_checks
    from extensions.tools.lint.dataset import read_datasets

    section = section_of("lint", [str(path)])
    findings = [
        finding
        for data in read_datasets(section, lambda *_: None)
        for finding in run_checks(data, section)
    ]
    return [
        f"{Path(finding.place).name}: {finding.message}"
        for finding in findings
        if finding.check == "prompts"
    ]


def test_a_job_is_checked_without_its_trigger_word_and_its_regularisation(
    folder: Path, make_pictures, write_job, trainer
) -> None:
    """Captions of the folder: `ohwx man at place 0`. Those of regularisation images do
    not count."""
    reg = make_pictures(folder.parent / "reg", "a", "b", "c")
    for stem in "abc":
        (reg / f"{stem}.txt").write_text(PROSE[0])
    datasets = [
        {"folder_path": "photos", "resolution": 256},
        {"folder_path": str(reg), "is_reg": True, "resolution": 64},
    ]
    for prompt, expected in (
        ("[trigger] man in a room", []),
        (f"[trigger] {PROSE[0]}", ["photos: captions have 4 words (the median), and 1 of 1 sample prompts have 83, "
                                   "which is far longer than nearly all of them"]),
    ):  # fmt: skip
        job = write_job(
            trainer(
                folder,
                datasets=datasets,
                trigger_word="ohwx",
                sample={"prompts": [prompt]},
            )
        )
        assert lint(job) == expected


EXAMPLES = ROOT / "config" / "examples"


@pytest.mark.parametrize(
    "example", sorted(path.name for path in EXAMPLES.glob("*.yaml"))
)
def test_no_example_is_told(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the captions that are in the repository, or that the job's own processes
    write."""
    monkeypatch.chdir(ROOT)
    job = load_job(EXAMPLES / example, discover().find_config)
    for entry in job.processes:
        section = entry.section
        folders = [
            Path(one.folder_path)
            for one in getattr(section, "datasets", ())
            if not one.is_reg
        ]
        has_prompts = isinstance(section, ImageTrainingSection) and hasattr(
            section, "sample_pictures"
        )
        if not has_prompts or not all(folder.is_dir() for folder in folders):
            continue  # an autoencoder, or pictures that the job draws first
        captions = [
            file.read_text() for folder in folders for file in folder.rglob("*.txt")
        ]
        prompts = tuple(item.prompt for item in section.sample_pictures())
        assert captions and found(captions, section.trigger_word, prompts) == []
    assert yaml.safe_load((EXAMPLES / example).read_text())
