"""The bench of learning: each variant is a job that trains, and changes what it
says."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.figures import learning
from benchmarks.figures.learning import MEASURED, Example, Job, Variant, training
from benchmarks.mascot_classifier import MascotClassifier
from tests.faults.nursery import Nursery
from toolkit.config import load_job
from toolkit.extension import discover

VARIANTS = [(example, variant) for example in MEASURED for variant in example.variants]


@pytest.mark.parametrize(
    ("example", "variant"),
    VARIANTS,
    ids=[f"{e.file.stem}-{v.__name__}" for e, v in VARIANTS],
)
def test_a_variant_is_a_job_without_mistakes_that_differs_from_the_example(
    example: Example, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(learning.ROOT)
    job = example.job()
    variant(job)
    same = (learning.as_it_is, learning.resumed, *learning.IN_PROCESS)
    assert (job == example.job()) is (variant in same)
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    assert load_job(file, discover().find_config).processes


@pytest.fixture
def forked(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the bench are forked from one that has imported everything."""

    class Forked:
        def __init__(self, command: list[str], cwd: Path, **_: object) -> None:
            _, _, *given = command
            self.child = nursery.fork(
                given, cwd, "said", main="benchmarks.figures.learning"
            )
            self.poll, self.wait = self.child.poll, self.child.wait

        def terminate(self) -> None:
            self.child.send(signal.SIGTERM)

    def run(*command: list[str], check: bool, **options: Any) -> None:
        Forked(*command, **options).child.ends_with(0)

    stand_in = SimpleNamespace(Popen=Forked, run=run, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(learning, "subprocess", stand_in)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "variants"), [(0, ["resumed"]), (1, ["positions_lost"])]
)
@pytest.mark.usefixtures("forked")
def test_variants_are_trained_and_measured(
    number: int,
    variants: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole: Callable[[Example], Job] = Example.job

    def short(self: Example) -> Job:
        job = whole(self)
        for section in job["config"]["process"]:
            section |= {key: 4 for key in ("count", "edits_of_two") if section.get(key)}
        training(job)["train"] |= {"steps": 4, "batch_size": 1}
        training(job)["save"]["save_every"] = 1
        training(job)["sample"]["sample_steps"] = 1
        return job

    monkeypatch.setattr(Example, "job", short)
    monkeypatch.setattr(learning, "trained", MascotClassifier)
    example = MEASURED[number].file.stem
    learning.main(["--example", example, "--variant", *variants, "--count", "2"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"][example]
    assert list(figures) == ["before", *variants]
    assert all(0 <= share <= 1 for row in figures.values() for share in row.values())
