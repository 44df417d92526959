"""What is read of runs: of real jobs in processes of their own, and of folders with odd
and broken files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.faults.conftest import Job, job, pictures, small_section, whole  # noqa: F401 - fixtures
from tests.light_start import FORBID
from tests.processes import python
from toolkit.errors import RunError
from toolkit.train import lock
from toolkit.train.callbacks.metrics import truncate_after_step
from toolkit.train.lock import run_lock
from toolkit.train.run_reader import (
    RunStatus,
    list_checkpoints,
    list_dataset_files,
    list_network_files,
    list_runs,
    list_samples,
    read_events,
    read_losses_by_image,
    read_run,
    rows_by_step,
)

ROOT = Path(__file__).resolve().parents[3]
STEP = "toolkit.train.flow_step:FlowMatchingStep.__call__"


def steps_in(path: Path) -> list[dict]:
    with rows_by_step(path) as rows:
        return list(rows)


# ------------------------------------------------------------ real runs


@pytest.mark.slow
def test_a_finished_run_is_told_from_its_files(whole: Job) -> None:  # noqa: F811
    run = read_run(whole.folder)
    assert (run.name, run.status, run.owner, run.eta_s, run.error) == (
        "job",
        RunStatus.FINISHED,
        None,
        None,
        None,
    )
    rows = steps_in(whole.folder / "metrics.jsonl")
    last = rows[-1]
    assert (run.step, run.total_steps, run.epoch, run.samples, run.skipped) == (
        6,
        6,
        3,
        last["samples"],
        0,
    )
    assert (run.lr, run.step_s > 0, run.loss > 0) == (last["lr"], True, True)
    assert run.started <= run.updated <= datetime.now(UTC)
    assert json.loads(run.config.read_text())["config"]["name"] == "job"

    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(datetime.fromisoformat(row["time"]) <= run.updated for row in rows)

    samples = list_samples(whole.folder)
    assert [(sample.step, sample.index, sample.prompt) for sample in samples] == [
        (0, 0, "a photo"),
        (3, 0, "a photo"),
        (6, 0, "a photo"),
    ]
    assert all(
        sample.path.is_file() and sample.time <= datetime.now(UTC) for sample in samples
    )

    files = [
        (file.path.name, file.kind, file.step, file.size)
        for file in list_network_files(whole.folder)
    ]
    sizes = {
        path.name: path.stat().st_size for path in whole.folder.glob("*.safetensors")
    }
    steps = [
        (name, "step", int(name[4:13]), sizes[name])
        for name in sorted(sizes)
        if name != "job.safetensors"
    ]
    assert steps
    assert files == [*steps, ("job.safetensors", "final", 6, sizes["job.safetensors"])]
    assert {file.time.date() for file in list_network_files(whole.folder)} <= {
        run.started.date(),
        run.updated.date(),
    }

    checkpoints = list_checkpoints(whole.folder)
    assert [(each.step, each.problem) for each in checkpoints] == [
        (2, None),
        (4, None),
        (6, None),
    ]
    assert checkpoints[0].size == sum(
        path.stat().st_size for path in checkpoints[0].path.iterdir()
    )
    assert (
        list_dataset_files(whole.folder)
        == tuple(whole.folder.glob("dataset-*.json"))
        != ()
    )
    assert {row["event"] for row in read_events(whole.folder).rows} >= {
        "save",
        "sample",
    }


@pytest.mark.slow
def test_a_run_is_running_until_it_is_killed_and_goes_on_to_its_end(job: Job) -> None:  # noqa: F811
    job.change(sample=None)
    in_step_4 = 1 + 3 * 2 + 1
    at_each_step = ("set_value", "toolkit.train.callbacks.status:WRITE_EVERY_S", 0)
    child = job.start(
        faults=[at_each_step, ("hold", STEP, in_step_4, str(job.cwd / "never"))]
    )
    child.wait_until(
        lambda: (job.folder / "run.json").exists() and read_run(job.folder).step_s
    )
    run = read_run(job.folder)
    assert (run.status, run.owner.pid, run.owner.host) == (
        RunStatus.RUNNING,
        child.pid,
        socket.gethostname(),
    )
    child.wait_until(lambda: read_run(job.folder).now.text() == "step 3 of 6")
    assert read_run(job.folder).eta_s is not None
    child.send(signal.SIGKILL)
    child.wait()
    killed = read_run(job.folder)
    assert job.status() == "running", "run.json alone would tell it wrongly"
    assert (killed.status, killed.owner.pid, killed.eta_s) == (
        RunStatus.KILLED,
        child.pid,
        None,
    )
    assert killed.now.text() == "step 3 of 6", "what it did last"
    job.run()
    assert read_run(job.folder).status is RunStatus.FINISHED
    assert read_run(job.folder).owner is None


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (
            {"phase": "step", "done": 3, "of": 9, "left_s": 30.5},
            "step 3 of 9, 20 s left",
        ),
        (
            {
                "phase": "encoding",
                "done": 3,
                "of": 9,
                "unit": "images",
                "phase_left_s": 5,
            },
            "encoding 3 of 9 images, 0 s left",
        ),
        (
            {
                "phase": "reading",
                "done": "x",
                "of": [],
                "unit": 7,
                "left_s": True,
                "share": 1e400,
            },
            "reading",
        ),
        ({"phase": 3}, "step 4 of 8, 8 s left"),
        ({}, "step 4 of 8, 8 s left"),
        ([], "step 4 of 8, 8 s left"),
        (None, "step 4 of 8, 8 s left"),
    ],
)
def test_what_a_run_does_is_read_with_the_time_that_has_passed_since(
    tmp_path: Path, entry: object, line: str
) -> None:
    """A record that is not one, or of an earlier version, is made from the steps."""
    updated = (datetime.now(UTC) - timedelta(seconds=10)).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {
        "name": "x",
        "status": "running",
        "step": 4,
        "steps": 8,
        "step_s": 2.0,
        "updated": updated,
        "now": entry,
    }
    (tmp_path / "run.json").write_text(json.dumps(document))
    with run_lock(tmp_path):
        assert re.sub(r"\b19\b", "20", read_run(tmp_path).now.line()) == line
    killed = json.dumps(document | {"updated": "2026-01-01T00:00:00Z"})
    (tmp_path / "run.json").write_text(killed)
    assert read_run(tmp_path).status is RunStatus.KILLED
    (tmp_path / "run.json").write_text(json.dumps(document | {"status": "finished"}))
    assert read_run(tmp_path).now is None


def test_a_run_that_has_said_nothing_yet_is_starting(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        assert read_run(tmp_path).now.line() == "starting"


def test_an_error_is_told(tmp_path: Path) -> None:
    """The next start removes it from the file."""
    document = {"status": "failed", "step": 2, "steps": 6, "error": "OSError: full"}
    run = read_run(made(tmp_path / "a", json.dumps(document)))
    assert (run.status, run.step, run.owner) == (RunStatus.FAILED, 2, None)
    assert run.error == "OSError: full"


def test_readers_never_disturb_a_run_that_starts_or_ends(tmp_path: Path) -> None:
    """Two readers in threads and one in another process, against 8 owners one after
    the other."""
    (tmp_path / lock.FILE).touch()
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    over, seen = threading.Event(), set()

    def poll() -> None:
        while not over.is_set():
            seen.add(read_run(tmp_path).status)

    readers = [threading.Thread(target=poll) for _ in range(2)]
    code = "import sys; from pathlib import Path; from toolkit.train.run_reader import read_run\n"
    code += "print(flush=True)\nwhile True: read_run(Path(sys.argv[1]))"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"\n"
        for reader in readers:
            reader.start()
        for _ in range(8):
            with lock.run_lock(tmp_path):  # raises RunError when it is refused
                assert read_run(tmp_path).status is RunStatus.RUNNING
                (tmp_path / "run.json").write_text('{"status": "finished"}')
            assert read_run(tmp_path).status is RunStatus.FINISHED
        assert other.poll() is None
    finally:
        over.set()
        other.kill()
        other.communicate()
    for reader in readers:
        reader.join()
    assert seen - {RunStatus.UNKNOWN} == {RunStatus.RUNNING, RunStatus.FINISHED}, (
        "no reader saw a killed run"
    )


# ------------------------------------------------------------ locks


def owned(folder: Path, **changes: object) -> None:
    owner = {
        "pid": 4711,
        "host": "elsewhere",
        "boot": "another",
        "beat": time.time(),
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.lock").write_text(json.dumps(owner))
    (folder / "run.json").write_text('{"status": "running"}')


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, RunStatus.RUNNING),
        ({"beat": time.time() - lock.STALE_AFTER_S - 60}, RunStatus.KILLED),
        (
            {"host": socket.gethostname()},
            RunStatus.KILLED,
        ),  # this machine, where nobody holds the lock
    ],
    ids=["alive elsewhere", "silent elsewhere", "here"],
)
def test_of_another_machine_the_heartbeat_decides(
    tmp_path: Path, changes: dict, status: RunStatus
) -> None:
    owned(tmp_path, **changes)
    # that of an earlier start, where this one has died while loading
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    run = read_run(tmp_path)
    assert (run.status, run.owner.pid) == (status, 4711)


def no_query(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock.fcntl, "fcntl", refuse)


def test_where_the_system_tells_of_no_locks_the_heartbeat_decides_here_too(
    tmp_path: Path, monkeypatch
) -> None:
    no_query(monkeypatch)
    owned(tmp_path, host=socket.gethostname())
    assert read_run(tmp_path).status is RunStatus.RUNNING
    owned(
        tmp_path, host=socket.gethostname(), beat=time.time() - lock.STALE_AFTER_S - 60
    )
    assert read_run(tmp_path).status is RunStatus.KILLED
    with lock.run_lock(tmp_path):
        assert read_run(tmp_path).status is RunStatus.RUNNING


def test_a_folder_that_may_only_be_read_is_enough(tmp_path: Path) -> None:
    with lock.run_lock(tmp_path):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        (tmp_path / "run.lock").chmod(0o400)
        assert read_run(tmp_path).status is RunStatus.RUNNING
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


# ------------------------------------------------------------ lists of runs


def made(
    folder: Path,
    text: str | None = '{"status": "stopped", "name": "n"}',
    locked: bool = True,
) -> Path:
    folder.mkdir(parents=True)
    if locked:
        (folder / "run.lock").touch()
    if text is not None:
        (folder / "run.json").write_text(text)
    return folder


def test_only_runs_are_listed(tmp_path: Path) -> None:
    made(tmp_path / "alone")
    made(tmp_path / "alone.old-1", locked=False)  # moved aside: its lock stayed
    made(tmp_path / "named.old-2")  # its own name
    made(tmp_path / "copied", locked=False)
    made(tmp_path / "job" / "first")
    made(tmp_path / "job" / "second", text=None)
    made(tmp_path / "job" / "first.old-1", locked=False)
    made(tmp_path / "alone" / "superseded" / "1", locked=False)
    made(tmp_path / "alone" / "deeper" / "still")
    made(tmp_path / "_cache" / "text", text=None, locked=False)
    made(tmp_path / "foreign", text='{"run": 1}', locked=False)
    made(tmp_path / "broken", text='{"status": "finis', locked=False)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    listed = {
        str(run.folder.relative_to(tmp_path)): run.status for run in list_runs(tmp_path)
    }
    ours = [name for name in listed if not name.startswith("loop")]
    assert ours == ["alone", "copied", "job/first", "job/second", "named.old-2"]
    assert listed["job/second"] is RunStatus.UNKNOWN
    assert list_runs(tmp_path / "nowhere") == list_runs(tmp_path / "file") == ()


DAMAGED = (
    "",
    "{",
    "[]",
    "7",
    "\0\0\0",
    '{"status": {}}',
    '{"status": "eaten"}',
    "[" * 100_000,
)


@pytest.mark.parametrize("text", [*DAMAGED, '{"step": NaN, "steps": 1e999}'])
def test_a_damaged_run_json_is_no_run_json(tmp_path: Path, text: str) -> None:
    [run] = (made(tmp_path / "a", text), list_runs(tmp_path))[1]
    assert (run.status, run.name, run.step, run.total_steps) == (
        RunStatus.UNKNOWN,
        "a",
        None,
        None,
    )


def test_values_of_other_types_are_unknown(tmp_path: Path) -> None:
    values = {
        "step": "7",
        "steps": True,
        "loss": [1],
        "lr": "x",
        "name": 3,
        "started": "soon",
        "updated": 5,
        "best": 1,
    }
    run = read_run(
        made(tmp_path / "a", json.dumps({"status": "failed", "error": {}, **values}))
    )
    assert run.status is RunStatus.FAILED and run.name == "a"
    assert {
        run.step,
        run.total_steps,
        run.loss,
        run.lr,
        run.started,
        run.updated,
        run.best_step,
        run.error,
    } == {None}


@pytest.mark.parametrize(
    "typed",
    [
        "maya",
        "output/maya/maya.safetensors",
        "maya.safetensors",
        "output/maya/run.json",
    ],
)
def test_a_file_of_a_run_or_its_name_is_answered_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "output" / "maya", json.dumps({"status": "done"}))
    with pytest.raises(RunError, match="Did you mean") as refused:
        read_run(Path(typed))
    (meant,) = re.findall("Did you mean '(.*)'", str(refused.value))
    assert read_run(Path(meant)).name == "maya"


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run is here"):
        read_run(tmp_path)
    assert list_samples(tmp_path) == list_network_files(tmp_path) == ()
    assert list_checkpoints(tmp_path) == list_dataset_files(tmp_path) == ()


# ------------------------------------------------------------ rows


def append(path: Path, *steps: int, loss: float = 1.0) -> None:
    with path.open("a") as file:
        file.writelines(
            json.dumps({"step": step, "loss": loss}) + "\n" for step in steps
        )


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    append(path, 1, 2, 2)
    return path


def test_a_page_gets_each_row_once(events: Path) -> None:
    first = read_events(events.parent)
    assert ([row["step"] for row in first.rows], first.anew) == ([1, 2, 2], True)
    cursor = json.loads(json.dumps(first.cursor))
    nothing = read_events(events.parent, cursor)
    assert (nothing.rows, nothing.cursor, nothing.anew) == ((), cursor, False)
    append(events, 4)
    with events.open("a") as file:
        file.write('{"step": 5, "lo')
    more = read_events(events.parent, cursor)
    assert ([row["step"] for row in more.rows], more.anew) == ([4], False)
    with events.open("a") as file:
        file.write('ss": 2.0}\n')
    assert read_events(events.parent, more.cursor).rows == ({"step": 5, "loss": 2.0},)


@pytest.mark.parametrize("grown_to", [2, 3, 9], ids=["shorter", "as long", "longer"])
def test_a_file_that_was_replaced_is_read_anew(events: Path, grown_to: int) -> None:
    before = read_events(events.parent)
    truncate_after_step(events, 1)
    append(events, *range(2, grown_to + 1), loss=2.0)
    again = read_events(events.parent, before.cursor)
    assert again.anew
    assert [(row["step"], row["loss"]) for row in again.rows] == [
        (1, 1.0),
        *((n, 2.0) for n in range(2, grown_to + 1)),
    ]
    assert read_events(events.parent, again.cursor).rows == ()


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "5",
        "-1-" + "0" * 16,
        "99999999-" + "0" * 16,
        "5-" + "f" * 16,
        "٣-" + "0" * 16,
    ],
)
def test_what_is_no_cursor_reads_from_the_beginning(events: Path, cursor: str) -> None:
    found = read_events(events.parent, cursor)
    assert found.anew and len(found.rows) == 3


def test_a_file_that_is_gone_or_not_there_yet_has_no_rows(events: Path) -> None:
    before = read_events(events.parent)
    events.unlink()
    gone = read_events(events.parent, before.cursor)
    assert (gone.rows, gone.anew, steps_in(events)) == ((), True, [])
    append(events, 1)
    assert [row["step"] for row in read_events(events.parent, gone.cursor).rows] == [1]


def test_a_step_that_stands_twice_is_told_once_the_latest_and_damaged_lines_are_left_out(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, 1, 2, 3, 5)
    append(path, 2, 3, loss=2.0)
    with path.open("ab") as file:
        file.write(
            b'\xff\xfe\n[4]\n{"step": null}\n{"step": "4"}\n\n\0\0\n{"step": 4, "loss": 2.0}\n{"step": 5, "lo'
        )
    with rows_by_step(path) as rows:
        assert [(row["step"], row["loss"]) for row in rows] == [
            (1, 1.0),
            (2, 2.0),
            (3, 2.0),
            (4, 2.0),
        ]


# ------------------------------------------------------------ files


def test_foreign_files_are_no_samples_and_no_weights(tmp_path: Path) -> None:
    run = made(tmp_path / "n")
    (run / "samples").mkdir()
    for name in ("notes.txt", "12__000000001_0.png", "x__000000001_0.png"):
        (run / "samples" / name).touch()
    for name in (
        "n.safetensors",
        "n_000000003.safetensors",
        "other_000000003.safetensors",
        "n_best.safetensors",
    ):
        (run / name).write_bytes(b"no safetensors")
    (run / "samples" / "000000002_1.png").touch()
    os.utime(run / "samples" / "000000002_1.png", (5, 5))
    (sample,) = list_samples(run)
    assert (sample.step, sample.index, sample.time) == (
        2,
        1,
        datetime.fromtimestamp(5, UTC),
    )
    assert [
        (file.path.name, file.kind, file.step, file.time)
        for file in list_network_files(run)
    ] == [
        ("n_000000003.safetensors", "step", 3, None),
        ("n_best.safetensors", "best", None, None),
        ("n.safetensors", "final", None, None),
    ]


def test_a_checkpoint_that_lacks_something_says_so(job: Job, whole: Job) -> None:  # noqa: F811
    shutil.copytree(whole.folder, job.folder)
    states = job.folder / "state"
    (states / "step_000000002" / "MANIFEST.json").unlink()
    with (states / "step_000000004" / "weights.safetensors").open("ab") as file:
        file.write(b"more")
    problems = [checkpoint.problem for checkpoint in list_checkpoints(job.folder)]
    assert (
        "MANIFEST.json" in problems[0]
        and "weights.safetensors" in problems[1]
        and problems[2] is None
    )


def test_it_loads_no_torch_and_no_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FORBID)
    heavy = {"torch", "safetensors", "numpy", "PIL", "pydantic", "yaml"}
    code = f"import sys, toolkit.train.run_reader as r\nprint(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    assert python(code, env=environment, said="") == "[]\n"


def test_losses_by_image_of_damaged_files_and_of_old_runs(tmp_path: Path) -> None:
    assert read_losses_by_image(tmp_path) == {}
    rows = [
        {"step": 0, "of": "others", "losses": {"a": [1], "b": [2]}},
        {"step": 1, "of": "these", "losses": {"a": [1, 2], "b": [3]}},
        {"step": 2, "of": "these", "losses": {"a": [1, "2"], "b": [3]}},
        {"step": 3, "of": "these", "losses": [1]},
        {"step": 4, "of": "these", "losses": {"a": [4], "b": [5.5]}},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "of": "th'
    (tmp_path / "validation_images.jsonl").write_text(text)
    assert read_losses_by_image(tmp_path) == {
        1: {"a": 1.5, "b": 3},
        4: {"a": 4, "b": 5.5},
    }
