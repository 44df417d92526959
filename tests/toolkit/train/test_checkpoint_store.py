"""State folders on disk: which one counts, what happens to damaged ones, and what is
kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from tests.toolkit.train.states import make_run, save_state, saved, take_steps
from toolkit.errors import RunError
from toolkit.train import checkpoint_store
from toolkit.train.checkpoint_store import (
    check_writable,
    checkpoint_dir,
    checkpoint_folders,
    free_disk_space,
    latest_checkpoint,
    remove_partial_writes,
    try_saving,
    verify,
)

FILES = [
    "MANIFEST.json",
    "ema.safetensors",
    "optimizer.safetensors",
    "state.json",
    "weights.safetensors",
]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    file.write_bytes(contents)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, flip) for name in FILES),
        *((name, Path.unlink) for name in FILES),
        ("weights.safetensors", truncate),
    ],
)
def test_a_damaged_state_is_passed_over_with_the_reason(
    said: list[str], tmp_path: Path, name: str, damage
) -> None:
    older, newer = saved(tmp_path, 2, 4)
    damage(newer / name)
    assert latest_checkpoint(checkpoint_dir(tmp_path)) == older
    assert len(said) == 1
    assert str(newer) in said[0] and name in said[0]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": 99, "files": {}}',
        '{"format": 1, "files": ["a"]}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:30],
)
def test_a_manifest_that_is_none_is_passed_over(tmp_path: Path, text: str) -> None:
    older, newer = saved(tmp_path, 2, 4)
    (newer / "MANIFEST.json").write_text(text)
    assert latest_checkpoint(checkpoint_dir(tmp_path)) == older


def test_a_manifest_of_other_files_or_another_step_is_passed_over(
    tmp_path: Path,
) -> None:
    older, newer = saved(tmp_path, 2, 4)
    text = (newer / "MANIFEST.json").read_text()
    for name in FILES[1:]:
        manifest = json.loads(text)
        del manifest["files"][name]
        (newer / "MANIFEST.json").write_text(json.dumps(manifest))
        assert verify(newer) == f"MANIFEST.json does not list {name}"
    (newer / "MANIFEST.json").write_text(text)
    assert verify(newer) is None
    renamed = newer.rename(newer.with_name("step_000000009"))
    assert verify(renamed) == "its name says step 9, MANIFEST.json says 4"
    assert latest_checkpoint(checkpoint_dir(tmp_path)) == older


def test_states_that_could_not_be_saved_are_told_at_the_start(
    tmp_path: Path, monkeypatch
) -> None:
    root = tmp_path / "state"
    check_writable(root)  # it will be made
    root.write_text("")
    with pytest.raises(RunError, match="is not a folder"):
        check_writable(root)
    root.unlink()
    root.mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write everywhere
        monkeypatch.setattr(checkpoint_store.os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match="cannot be written to"):
        check_writable(root)
    with pytest.raises(RunError, match=rf"^{root}: cannot be written to"):
        check_writable(root / "run" / "state")  # which would be made in it
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=rf"^{tmp_path}/file: is not a folder"):
        check_writable(tmp_path / "file" / "run" / "state")
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(
        RunError, match=r"metrics\.jsonl: is neither a file nor a folder\. Move it away"
    ):
        check_writable(root)


def test_the_highest_step_wins_whatever_the_file_times_and_the_spelling(
    tmp_path: Path,
) -> None:
    low, high = saved(tmp_path, 2, 4)
    for path in (high, *high.iterdir()):
        os.utime(path, (1, 1))
    assert latest_checkpoint(checkpoint_dir(tmp_path)) == high
    # A tenth digit: sorted as text it would come first.
    for path, step in ((low, 999999999), (high, 1000000000)):
        manifest = json.loads((path / "MANIFEST.json").read_text())
        (path / "MANIFEST.json").write_text(json.dumps(manifest | {"step": step}))
        path.rename(path.with_name(f"step_{step}"))
    assert latest_checkpoint(checkpoint_dir(tmp_path)).name == "step_1000000000"


def test_every_file_is_on_the_disk_before_the_manifest_and_the_manifest_before_the_name(
    tmp_path: Path, monkeypatch
) -> None:
    done: list[str] = []
    flush, write_json, replace = (
        checkpoint_store.fsync,
        checkpoint_store.write_json,
        os.replace,
    )
    monkeypatch.setattr(
        checkpoint_store, "fsync", lambda path: (done.append(path.name), flush(path))
    )
    monkeypatch.setattr(
        "toolkit.files.writing.fsync",
        lambda path: (done.append(path.name) if path.is_dir() else None, flush(path)),
    )
    monkeypatch.setattr(
        checkpoint_store,
        "write_json",
        lambda path, data: (write_json(path, data), done.append(path.name)),
    )
    monkeypatch.setattr(
        os,
        "replace",
        lambda source, to: (replace(source, to), done.append(f"-> {Path(to).name}")),
    )
    [path] = saved(tmp_path, 2)
    done = [".tmp" if name.startswith(".tmp-") else name for name in done]
    *files, manifest, folder, name, root = [
        name for name in done if not name.startswith("->") or "step" in name
    ]
    assert sorted(files) == FILES[1:]
    assert (manifest, folder, name, root) == (
        "MANIFEST.json",
        ".tmp",
        f"-> {path.name}",
        "state",
    )


def test_the_manifest_tells_what_is_in_the_files_not_what_was_meant(
    tmp_path: Path, monkeypatch
) -> None:
    """So that a state verifies only if its files read later as they did then."""
    save_file = checkpoint_store.save_file
    monkeypatch.setattr(
        checkpoint_store,
        "save_file",
        lambda tensors, path: (save_file(tensors, path), flip(path)),
    )
    [path] = saved(tmp_path, 2)
    manifest = json.loads((path / "MANIFEST.json").read_text())["files"]
    assert {name: entry["sha256"] for name, entry in manifest.items()} == {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest()
        for name in FILES[1:]
    }


def test_a_file_that_cannot_be_read_back_leaves_the_states_as_they_were(
    tmp_path: Path, monkeypatch
) -> None:
    [older] = saved(tmp_path, 2)
    sha256_of = checkpoint_store.sha256_of

    def bad_block(path: Path) -> str:
        if path.name == "weights.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return sha256_of(path)

    monkeypatch.setattr(checkpoint_store, "sha256_of", bad_block)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        saved(tmp_path, 4)
    assert list((tmp_path / "state").iterdir()) == [older]


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    [path] = saved(tmp_path, 2)
    truncate(path / "weights.safetensors")
    run = make_run(tmp_path)
    take_steps(run, 2)
    assert save_state(run) == path
    assert latest_checkpoint(checkpoint_dir(tmp_path)) == path


def test_what_this_process_wrote_is_not_read_again_to_decide_what_goes(
    tmp_path: Path, monkeypatch
) -> None:
    read: list[str] = []
    sha256_of = checkpoint_store.sha256_of
    monkeypatch.setattr(
        checkpoint_store,
        "sha256_of",
        lambda path: read.append(path.parent.name) or sha256_of(path),
    )
    saved(tmp_path, 2, 4, 10, 30)
    # only new ones, under their temporary names
    assert not any(folder.startswith("step_") for folder in read)
    latest_checkpoint(checkpoint_dir(tmp_path))
    assert read.count("step_000000030") == 4  # where a run begins from is read whole


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_state_that_was_damaged_since_does_not_count_among_those_kept(
    tmp_path: Path, damage
) -> None:
    older, newer = saved(tmp_path, 2, 4)
    damage(newer / "weights.safetensors")
    # of the same size and, on a fast machine, within one tick of the file system's
    # clock
    if damage is flip:
        os.utime(newer / "weights.safetensors", (1, 1))
    run = make_run(tmp_path)
    take_steps(run, 10)
    last = save_state(run, keep=2)
    assert checkpoint_folders(checkpoint_dir(tmp_path)) == [older, newer, last]


def test_a_state_of_another_process_is_read_before_an_older_one_goes(
    tmp_path: Path,
) -> None:
    older, newer = saved(tmp_path, 2, 4)
    contents = bytearray((newer / "weights.safetensors").read_bytes())
    checkpoint_store._known_good.clear()
    contents[-1] ^= 0xFF
    (newer / "weights.safetensors").write_bytes(contents)
    checkpoint_store.remove_old_states(checkpoint_dir(tmp_path), keep=1)
    assert checkpoint_folders(checkpoint_dir(tmp_path)) == [older, newer]


def test_leftovers_of_broken_off_saves_are_removed_and_nothing_else(
    tmp_path: Path,
) -> None:
    [path] = saved(tmp_path, 2)
    leftover = path.with_name(".tmp-4-99-abcdef01")
    shutil.copytree(path, leftover)
    half_a_model = tmp_path / ".job_000000004.0123abcd.tmp"
    (half_a_model / "vae").mkdir(parents=True)
    (tmp_path / ".tmpHcj9Oi").touch()  # of safetensors
    (tmp_path / ".tmpfile").touch()
    remove_partial_writes(checkpoint_dir(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [".tmpfile"]
    assert not leftover.exists() and not half_a_model.exists()
    assert latest_checkpoint(checkpoint_dir(tmp_path)) == path


# ------------------------------------------------------------ disk space


class Disk:
    """A disk whose free space grows by 100 bytes with each state that is removed."""

    Usage = namedtuple("Usage", "total used free")

    def __init__(self, root: Path, free: int, monkeypatch) -> None:
        self.root, self.most, self.free = root, len(checkpoint_folders(root)), free
        monkeypatch.setattr(checkpoint_store.shutil, "disk_usage", self.usage)

    def usage(self, _: Path) -> Usage:
        return self.Usage(
            0, 0, self.free + 100 * (self.most - len(checkpoint_folders(self.root)))
        )


@pytest.mark.parametrize(
    ("free", "begins", "left"),
    [
        (250, True, [2, 4, 10]),  # 2.5 times the size: nothing has to go
        (249, True, [4, 10]),
        (60, True, [10]),
        (0, True, [10]),  # 200 after both older ones
        (-100, False, [10]),  # one good state always stays
    ],
)
def test_older_states_make_room_until_one_good_one_is_left(
    said: list[str],
    tmp_path: Path,
    monkeypatch,
    free: int,
    begins: bool,
    left: list[int],
) -> None:
    run = make_run(tmp_path)
    for step in (2, 4, 10):
        take_steps(run, step - run.state.step)
        save_state(run, keep=0)
    root = checkpoint_dir(tmp_path)
    Disk(root, free, monkeypatch)
    assert free_disk_space(root, 100) is begins
    assert [checkpoint_store.step_of(path) for path in checkpoint_folders(root)] == left
    assert len(said) == 3 - len(left) + (not begins)


def test_the_state_that_stays_is_a_good_one(tmp_path: Path, monkeypatch) -> None:
    older, newer = saved(tmp_path, 2, 4)
    flip(newer / "weights.safetensors")
    Disk(checkpoint_dir(tmp_path), 0, monkeypatch)
    free_disk_space(checkpoint_dir(tmp_path), 100)
    assert checkpoint_folders(checkpoint_dir(tmp_path)) == [older]


def test_a_trial_save_leaves_nothing_and_says_nothing(
    said: list[str], tmp_path: Path
) -> None:
    try_saving(tmp_path, 1_000)
    assert list(tmp_path.iterdir()) == [] and said == []


@pytest.mark.parametrize("call", ["replace", "mkdir", "fsync"])
def test_a_trial_save_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch, call: str
) -> None:
    real = getattr(os, call)

    def fail(*arguments, **named):
        if call == "fsync" or ".tmp-" in str(arguments[0]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **named)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError) as failed:
        try_saving(tmp_path, 2_500_000)
    assert str(failed.value) == (
        f"{tmp_path}: cannot be written: a trial save of 2.5 MB ended with 'No space left on device'. Free some "
        "space, or give a training_folder on another disk."
    )
    assert list(tmp_path.iterdir()) == []
