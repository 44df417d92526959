"""The bench of noise levels: each way and seed is a training of its own, and the means
are those of its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.figures import levels
from benchmarks.figures.learning import Job, training
from benchmarks.mascot_classifier import MascotClassifier


def test_a_line_has_means_and_the_differences_seed_by_seed() -> None:
    first, other = {"scene": [0.5, 0.7]}, {"scene": [0.6, 0.8]}
    assert levels.line_of(first, first) == "scene 60.0 +- 10.0 %"
    assert levels.line_of(other, first) == "scene 70.0 +- 10.0 % (+10.0 +- 0.0 %)"


@pytest.mark.slow
def test_every_way_is_trained_on_the_same_pictures_and_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def seen(job: Job) -> None:
        section = training(job) if len(job["config"]["process"]) == 1 else {"train": {}}
        if "timestep_type" in section["train"]:
            asked.append((section["train"]["timestep_type"], section["training_seed"]))
        run(job)

    run = levels._run
    monkeypatch.setattr(levels, "_run", seen)
    monkeypatch.setattr(levels, "trained", MascotClassifier)
    here = Path.cwd()
    levels.main(
        ["--seeds", "1", "--steps", "2", "--count", "2", "--way", "weighted", "sigmoid"]
    )
    assert asked == [("weighted", 100), ("sigmoid", 100)] and Path.cwd() == here
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figures.keys() == {"weighted", "sigmoid"}
    assert all(
        len(values) == 1 and 0 <= values[0] <= 1
        for row in figures.values()
        for values in row.values()
    )
