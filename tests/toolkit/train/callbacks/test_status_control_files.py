"""The control folder: files that a person or a page drops in."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from toolkit.train.callbacks.status import ControlFilesCallback, ask_to_stop


@pytest.fixture
def done() -> list[str]:
    return []


@pytest.fixture
def hook(done) -> ControlFilesCallback:
    actions = {
        name: lambda run, name=name: done.append(f"{name} at {run.state.step}")
        for name in ("save_now", "sample_now")
    }
    return ControlFilesCallback({**actions, "stop": ask_to_stop})


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
@pytest.mark.parametrize("name", ["save_now", "sample_now", "SAVE_NOW", "Sample_Now"])
def test_a_request_is_answered_once_and_its_file_or_folder_removed(
    toy, hook, done, result, name: str, make
) -> None:
    run = toy.run(5)
    hook.on_start(run)
    hook.after_step(run)
    assert done == []
    run.state.step = 2
    make(run.folder / "control" / name)
    hook.after_step(run)
    hook.after_step(run)
    assert done == [f"{name.lower()} at 2"]
    assert list((run.folder / "control").iterdir()) == []
    assert not run.stopping


def test_other_names_are_told_once_and_left_alone(
    toy, hook, done, result, said
) -> None:
    run = toy.run(1)
    hook.on_start(run)
    (run.folder / "control" / "pause").touch()
    hook.after_step(run)
    hook.after_step(run)
    remedy = (
        "is not a known request. Give an empty file save_now or sample_now or stop."
    )
    assert said == [f"{run.folder}/control/pause: {remedy}"]
    assert (
        len(list((run.folder / "control").iterdir())) == 1
        and done == []
        and not run.stopping
    )


def test_a_deleted_folder_is_no_request(toy, hook, done) -> None:
    run = toy.run(1)
    hook.on_start(run)
    (run.folder / "control").rmdir()
    hook.after_step(run)
    assert done == []


@pytest.mark.parametrize("failing", ["scandir", "unlink"])
def test_a_volume_that_fails_for_a_moment_is_told_once_and_ends_nothing(
    toy, hook, done, result, said, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    run = toy.run(1)
    hook.on_start(run)
    (run.folder / "control" / "save_now").touch()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, fail)
        hook.after_step(run)
        hook.after_step(run)
    assert done == [] and len(said) == 1
    assert f"{run.folder}/control" in said[0] and "Stale file handle" in said[0]
    hook.after_step(run)
    assert done == ["save_now at 0"]
