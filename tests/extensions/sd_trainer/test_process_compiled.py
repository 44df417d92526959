"""A whole job whose compiled blocks fail somewhere ends with the files of one that
never compiled any."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.failing_programs import ERRORS, NAME, Fails, never, programs
from tests.running import lines, run_job
from toolkit.train.checkpoint_store import read_checkpoint_json
from toolkit.train.run_reader import list_checkpoints

RESULTS = (
    "metrics.jsonl",
    "validation.jsonl",
    "samples/*",
    "*.safetensors",
)
NOT_COMPARED = ("time", "step_s", "data_s", "compile_s")


def results_of(folder: Path) -> dict[str, object]:
    """What a run left, without times."""
    found: dict[str, object] = {}
    for path in sorted(path for pattern in RESULTS for path in folder.glob(pattern)):
        if path.suffix == ".jsonl":
            found[path.name] = [
                {k: v for k, v in row.items() if k not in NOT_COMPARED}
                for row in lines(path)
            ]
        else:
            found[path.name] = path.read_bytes()
    return found


def states_of(folder: Path) -> dict[int, tuple[dict, bool]]:
    """Step -> the counters of its state, and whether blocks ran compiled."""
    found = [
        (state.step, read_checkpoint_json(state.path))
        for state in list_checkpoints(folder)
    ]
    return {
        step: (document["state"], document["compiled"]["blocks"])
        for step, document in found
    }


@pytest.fixture
def run(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs a job on the CPU as if its blocks were compiled there (`auto`), and returns
    its folder."""
    photos = make_pictures(tmp_path / "photos", "a", "b", "c")

    def run(
        name: str,
        fails: Fails | None,
        steps: int = 2,
        factor: float = 1.0,
        train: Mapping[str, object] | None = None,
        allow_change: bool = True,
        **changes: object,
    ) -> Path:
        """fails: None where the blocks are not compiled. factor: as of `Backend`.
        train: further keys of it."""
        monkeypatch.setattr(
            "extensions.sd_trainer.setup.decide_compiling", lambda *_: fails is not None
        )
        compiling = {"backend": NAME} if fails else False
        keys = {
            "steps": steps,
            "gradient_accumulation": 2,
            "compile": compiling,
            **(train or {}),
        }
        section = trainer(
            photos, train=keys, training_folder=str(tmp_path / name), **changes
        )
        # Each layer takes long to be traced.
        section["network"]["network_kwargs"] = {"only_if_contains": ["to_q"]}
        with programs(fails or never, factor):
            run_job(write_job(section), allow_change=allow_change)
        return tmp_path / name / "job"

    return run


def fails_in(kind: str, after: int = 0) -> Fails:
    """An error in that pass, but for the first calls of it."""
    seen = []

    def fails(of: str, tensors: list) -> Exception | None:
        seen.extend([of] * (of == kind))
        return ERRORS[0] if of == kind and len(seen) > after else None

    return fails


SAMPLE = {
    "sample": {
        "prompts": ["a"],
        "width": 64,
        "height": 64,
        "sample_steps": 2,
        "sample_every": 0,
    }
}
VALIDATION = {"validation": {"fraction": 0.4, "every": 2}}


@pytest.mark.slow
def test_everything_is_what_uncompiled_blocks_make(run, said: list[str]) -> None:
    """What the programs compute before they fail, while the first image is generated,
    is wrong, and leaves no trace."""
    eager = run("eager", None, **SAMPLE, **VALIDATION)
    found = run("auto", fails_in("sampling", 3), factor=1.5, **SAMPLE, **VALIDATION)
    assert results_of(found) == results_of(eager) and states_of(found) == states_of(
        eager
    )
    assert [row["step"] for row in lines(found / "metrics.jsonl")] == [1, 2]
    assert (
        sum("a compiled block failed, all run uncompiled" in line for line in said) == 1
    )


@pytest.mark.slow
def test_a_step_in_the_middle_is_that_of_a_run_that_goes_on_uncompiled(
    run, said: list[str]
) -> None:
    """The programs work for two steps, and fail in the third at the second backward
    pass of a block."""
    often = {"save": {"dtype": "float32", "save_every": 2}}
    of_steps = 2 + 2 * 2 * 2  # two blocks of the trial, and of two batches of two steps
    found = run("auto", fails_in("backward", of_steps + 1), steps=4, **often)
    assert not any(line.startswith("compiled ") for line in said)
    run("resumed", never, **often)
    assert re.fullmatch(
        r"compiled \d+ programs? in \d+ s",
        next(line for line in said if line.startswith("compiled ")),
    )
    resumed = run("resumed", None, steps=4, **often)
    of_one, of_two = results_of(found), results_of(resumed)
    # which name other jobs
    del (
        of_one["job_000000002.safetensors"],
        of_two["job_000000002.safetensors"],
    )
    assert of_one == of_two and states_of(found) == states_of(resumed)
    assert [compiled for _, compiled in states_of(found).values()] == [True, False]
    rows = lines(found / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # the trial has compiled the one size
    assert not any("compile_s" in row for row in rows)
