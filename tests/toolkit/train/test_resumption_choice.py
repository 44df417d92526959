"""Where a run begins, and what becomes of the files that are later: moved, never
deleted, never overwritten."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from tests.conftest import heard
from tests.toolkit.train.states import saved
from toolkit.errors import RunError
from toolkit.train.checkpoint_store import checkpoint_dir, checkpoint_folders
from toolkit.train.lock import FILE as LOCK_FILE
from toolkit.train.resumption import (
    archive_later_files,
    archive_run,
    find_checkpoint,
    keep_end,
)

ODD_NAMES = [
    "plain",
    "a[b]*?c",
    "a+(b){2}.x|y$",
    "ünï 🦊 name",
    "a_000000009",
    "[!a]",
    "a.b",
]


def damage(state: Path) -> None:
    path = state / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def choose(
    folder: Path, resume: str | int = "auto", restart: bool = False
) -> tuple[Path | None, list[str]]:
    with heard() as said:
        checkpoint, aside = find_checkpoint(folder, resume, restart)
        if aside:
            archive_run(folder)
        return checkpoint, said


# ------------------------------------------------------------ where to begin


def test_auto_takes_the_newest_good_state_and_says_what_it_skipped(
    tmp_path: Path,
) -> None:
    older, newer = saved(tmp_path, 2, 4)
    for path in (newer, *newer.iterdir()):
        os.utime(path, (1, 1))
    assert choose(tmp_path) == (newer, [])
    damage(newer)
    state, said = choose(tmp_path)
    assert state == older
    assert len(said) == 1 and str(newer) in said[0] and "weights.safetensors" in said[0]


@pytest.mark.parametrize("resume", ["auto", "never", 2])
def test_a_step_means_that_state_and_auto_the_last(tmp_path: Path, resume) -> None:
    run = tmp_path / "run"
    older, newer = saved(run, 2, 4)
    state, _ = choose(run, resume)
    assert state == {"auto": newer, "never": None, 2: older}[resume]
    if resume != "never":
        assert checkpoint_folders(checkpoint_dir(run)) == [older, newer]


@pytest.mark.parametrize("resume", ["auto", 2, "path"])
def test_nothing_is_touched_while_a_state_is_chosen(tmp_path: Path, resume) -> None:
    older, _ = saved(tmp_path, 2, 4)
    before = contents(tmp_path)
    choose(tmp_path, str(older) if resume == "path" else resume)
    assert contents(tmp_path) == before


def test_a_state_folder_may_lie_elsewhere(tmp_path: Path) -> None:
    [state] = saved(tmp_path / "other run", 2)
    assert choose(tmp_path / "run", str(state))[0] == state


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (3, "does not exist"),
        (4, "weights.safetensors"),
        ("{folder}/state/nowhere", "name"),
        ("{folder}/backup", "step_ and nine digits"),
        ("{folder}/state/step_000000007", "does not exist"),
    ],
)
def test_a_wanted_state_that_is_not_good_is_an_error_that_lists_the_others(
    tmp_path: Path, wanted, reason
) -> None:
    damage(saved(tmp_path, 2, 4)[-1])
    os.rename(saved(tmp_path / "else", 2)[0], tmp_path / "backup")
    before = contents(tmp_path)
    with pytest.raises(RunError, match="Steps with a state here: 2, 4") as refused:
        choose(
            tmp_path,
            wanted.format(folder=tmp_path) if isinstance(wanted, str) else wanted,
        )
    assert reason in str(refused.value)
    assert contents(tmp_path) == before


# ------------------------------------------------------------ begin anew


def test_states_of_which_none_is_good_are_not_begun_over(tmp_path: Path) -> None:
    for state in saved(tmp_path, 2, 4):
        damage(state)
    before = contents(tmp_path)
    with pytest.raises(RunError, match="--restart"):
        choose(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ODD_NAMES)
def test_never_and_restart_move_everything_aside_but_the_lock(
    tmp_path: Path, name: str
) -> None:
    run = tmp_path / name
    for turn, (resume, restart) in enumerate(
        [("never", False), ("auto", True)], start=1
    ):
        for state in saved(run, 2, 4):
            damage(state)
        (run / "metrics.jsonl").write_text(f"{turn}")
        (run / ".hidden").touch()
        (run / LOCK_FILE).write_text("held")
        before = contents(run)
        state, said = choose(run, resume, restart)
        target = tmp_path / f"{name}.old-{turn}"
        assert (state, names(run)) == (None, [LOCK_FILE])
        assert contents(target) == {
            path: text for path, text in before.items() if path != LOCK_FILE
        }
        assert str(target) in said[-1]
    assert (tmp_path / f"{name}.old-1" / "metrics.jsonl").read_text() == "1"


def test_restart_keeps_a_good_state(tmp_path: Path) -> None:
    older, newer = saved(tmp_path, 2, 4)
    damage(newer)
    assert choose(tmp_path, restart=True)[0] == older


def test_never_without_an_old_run_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).touch()
    assert choose(tmp_path / "run", "never") == (None, [])
    assert names(tmp_path) == ["run"]


# ------------------------------------------------------------ what is later


def make_files(run: Path, name: str, final_step: int = 6) -> None:
    saved(run, 2, 4)
    for step in (2, 4, 6):
        for raw in ("", "_raw"):
            (run / f"{name}_{step:09d}{raw}.safetensors").write_text(f"{step}{raw}")
    metadata = {"training_info": json.dumps({"step": final_step})}
    save_file({"w": numpy.ones(3)}, run / f"{name}.safetensors", metadata)
    (run / "samples").mkdir(exist_ok=True)
    for step in (0, 2, 4, 6):
        (run / "samples" / f"{step:09d}_0.jpg").write_text(f"sample {step}")
    for other in (
        "notes.txt",
        f"{name}x_000000004.safetensors",
        f"x{name}_000000004.safetensors",
        "log.txt",
    ):
        (run / other).write_text("mine")
    (run / "samples" / "my favourite__4_0.jpg").write_text("mine")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_is_later_is_moved_and_nothing_else(
    said: list[str], tmp_path: Path, name: str
) -> None:
    run = tmp_path / name
    make_files(run, name)
    before = contents(run)
    archive_later_files(run, name, 2)
    moved = contents(run / "superseded" / "1")
    assert sorted(moved) == sorted(
        [
            *(
                f"step_000000004/{file}"
                for file in names(run / "superseded/1/step_000000004")
            ),
            *(
                f"{name}_{step:09d}{raw}.safetensors"
                for step in (4, 6)
                for raw in ("", "_raw")
            ),
            f"{name}.safetensors",
            *(f"{step:09d}_0.jpg" for step in (4, 6)),
        ]
    )
    kept = {
        path: text
        for path, text in contents(run).items()
        if not path.startswith("superseded/")
    }
    assert kept.items() <= before.items()
    assert len(kept) + len(moved) == len(before), "something was lost"
    assert len(said) == 1 and "superseded" in said[0]
    assert (run / f"{name}x_000000004.safetensors").read_text() == "mine"


@pytest.mark.parametrize(("step_in_it", "stays"), [(2, True), (3, False), (None, True)])
def test_the_best_file_goes_with_what_is_later_when_it_says_its_step(
    tmp_path: Path, step_in_it, stays: bool
) -> None:
    metadata = (
        {"training_info": json.dumps({"step": step_in_it})} if step_in_it else None
    )
    save_file({"w": numpy.ones(3)}, tmp_path / "run_best.safetensors", metadata)
    archive_later_files(tmp_path, "run", 2)
    assert (tmp_path / "run_best.safetensors").exists() is stays


@pytest.mark.parametrize(("step", "stays"), [(1, False), (2, True)])
def test_model_folders_are_moved_as_files_are_and_other_runs_are_not(
    tmp_path: Path, step: int, stays: bool
) -> None:
    for name in ("run", "run_000000002", "run_000000004"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").touch()
    (tmp_path / "run" / "training.json").write_text(
        json.dumps({"training_info": json.dumps({"step": 2})})
    )
    # the folder of a process that is called so
    (tmp_path / "run_raw" / "state").mkdir(parents=True)
    archive_later_files(tmp_path, "run", step)
    assert [
        (tmp_path / name).exists()
        for name in ("run", "run_000000002", "run_000000004", "run_raw")
    ] == [
        stays,
        stays,
        False,
        True,
    ]


def test_a_second_time_goes_to_a_folder_of_its_own(tmp_path: Path) -> None:
    for turn in ("1", "2"):
        make_files(tmp_path, "job")
        archive_later_files(tmp_path, "job", 4)
        assert names(tmp_path / "superseded") == ["1", "2"][: int(turn)]
        assert "job_000000006.safetensors" in names(tmp_path / "superseded" / turn)


@pytest.mark.parametrize(
    ("step", "moved"), [(5, True), (6, False), (7, False), (None, True)]
)
def test_the_final_file_counts_by_the_step_it_was_written_at(
    tmp_path: Path, step, moved: bool
) -> None:
    make_files(tmp_path, "job", final_step=6)
    archive_later_files(tmp_path, "job", step)
    assert (tmp_path / "job.safetensors").exists() is not moved


def test_a_final_file_that_does_not_tell_its_step_is_moved_rather_than_overwritten(
    tmp_path: Path,
) -> None:
    (tmp_path / "job.safetensors").write_text("damaged")
    archive_later_files(tmp_path, "job", 2)
    assert (tmp_path / "superseded" / "1" / "job.safetensors").read_text() == "damaged"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_end_of_a_run_that_goes_on_is_kept_under_its_step(
    said: list[str], tmp_path: Path, name: str
) -> None:
    run = tmp_path / name
    for step in (5, 6):  # 6 has a file of its own already
        make_files(run, name, final_step=step)
        shutil.copy(run / f"{name}.safetensors", run / f"{name}_raw.safetensors")
        before = contents(run)
        keep_end(run, name)
        ends = {f"{name}.safetensors", f"{name}_raw.safetensors"}
        kept = {f"{name}_000000005.safetensors", f"{name}_000000005_raw.safetensors"}
        after = contents(run)
        assert (after.keys() - before.keys(), before.keys() - after.keys()) == (
            (kept, ends) if step == 5 else (set(), set())
        )
        assert sorted(after.values()) == sorted(before.values())
    assert (
        len(said) == 2 and f"the end of step 5 is kept as {name}_000000005" in said[0]
    )


def test_where_nothing_is_later_nothing_is_said_or_made(
    said: list[str], tmp_path: Path
) -> None:
    make_files(tmp_path, "job")
    before = contents(tmp_path)
    archive_later_files(tmp_path, "job", 6)
    assert (contents(tmp_path), said) == (before, [])
    archive_later_files(tmp_path / "not there", "job", None)
    assert said == []


def test_a_run_that_begins_anew_takes_nothing_over(
    said: list[str], tmp_path: Path
) -> None:
    make_files(tmp_path, "job")
    archive_later_files(tmp_path, "job", None)
    assert not list(tmp_path.glob("job_0*")) and not list(tmp_path.glob("state/step_*"))
    assert names(tmp_path / "samples") == ["my favourite__4_0.jpg"]
    assert "of an earlier run" in said[0]
