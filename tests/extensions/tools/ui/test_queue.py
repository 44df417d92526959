"""The queue, with real runners and children. `FAKE` stands for run.py: a job tells it
what to do at each start."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import run as program
from extensions.tools.ui import commands
from extensions.tools.ui import queue as module
from extensions.tools.ui.process import own_flags, start_time
from extensions.tools.ui.queue import (
    DAMAGED,
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    WAITING,
    Entry,
    Queue,
    why_not_queued,
)
from extensions.tools.ui.runner import Runner
from tests.conftest import ROOT, heard
from tests.processes import until
from tests.running import section_of
from toolkit.commands import command
from toolkit.errors import RunError, UserError
from toolkit.files.writing import python_path
from toolkit.train.lock import run_lock

pytestmark = pytest.mark.usefixtures("processes")

FAKE = f"""
import json, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
job = json.loads(Path(sys.argv[1]).read_text())
folder = Path(job["run"])
if "--dry-run" in sys.argv:
    print(json.dumps({{"folders": [str(folder)]}}))
    sys.exit()
folder.mkdir(exist_ok=True)
with (folder.parent / "starts").open("a") as file:
    file.write(json.dumps([sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES"), os.getcwd()]) + "\\n")
starts = [json.loads(line)[0][0] for line in (folder.parent / "starts").read_text().splitlines()]
act = (job["acts"] * 9)[starts.count(sys.argv[1]) - 1]
def record(**status):
    (folder / "run.json").write_text(json.dumps({{"status": "running", "step": 0, **status}}))
if "status" in act:
    record(**act["status"])
print("it says", act, flush=True)
if act.get("leaves"):
    import subprocess
    left = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (folder.parent / "left").write_text(str(left.pid))
if act.get("trains"):
    from toolkit.train.lock import run_lock
    with run_lock(folder):
        while not (folder / "control" / "stop").exists():
            time.sleep(0.02)
        record(status="stopped")
    sys.exit(0)
while "until" in act and not Path(act["until"]).exists():
    time.sleep(0.02)
os._exit(act.get("code", 0)) if act.get("code", 0) >= 0 else os.kill(os.getpid(), -act["code"])
"""

WORK = """
import logging, sys
from pathlib import Path
from extensions.tools.ui import commands, runner
from extensions.tools.ui.queue import Queue
logging.basicConfig(level=logging.INFO, format="%(message)s")
commands.RUN_PY = Path(sys.argv[2])
runner.slots = lambda: sys.argv[3].split(",")
runner.Runner(Queue(Path(sys.argv[1])), pauses=(0.0, 0.0, 0.0), poll_s=0.02, linger_s=0.5).run()
"""


class Yard:
    """A queue, jobs for it, and runners that work on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.queue = folder, Queue(folder / "output" / ".ui" / "queue")
        self.fake = folder / "fake.py"
        self.fake.write_text(FAKE)
        self.runners: list[subprocess.Popen[str]] = []

    def add(
        self, name: str, *acts: dict, flags: tuple[str, ...] = (), yields: bool = False
    ) -> str:
        """Adds a job that does these things at its starts."""
        job = {"run": str(self.folder / "output" / name), "acts": acts or ({},)}
        (self.folder / f"{name}.json").write_text(json.dumps(job))
        return self.queue.add(
            [f"{name}.json", *flags], name, self.folder, yields=yields
        ).id

    def runner(self, gpus: str = "") -> subprocess.Popen[str]:
        """Starts a runner."""
        command = [
            sys.executable,
            "-c",
            WORK,
            str(self.queue.folder),
            str(self.fake),
            gpus,
        ]
        pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": python_path()}
        self.runners.append(
            subprocess.Popen(
                command, env=environment, stdout=pipe, stderr=pipe, text=True
            )
        )
        return self.runners[-1]

    def work(self, gpus: str = "") -> str:
        """A runner in this process until it ends; what it said."""
        with pytest.MonkeyPatch.context() as patch, heard() as said:
            patch.setattr(commands, "RUN_PY", self.fake)
            runner = Runner(
                self.queue, pauses=(0.01, 0.01, 0.01), poll_s=0.02, linger_s=0.5
            )
            patch.setattr(runner, "_slots", gpus.split(","))
            runner.run()
        return "\n".join(said)

    def starts(self) -> list[list]:
        """[arguments, CUDA_VISIBLE_DEVICES, working directory] of each start."""
        file = self.folder / "output" / "starts"
        return (
            [json.loads(line) for line in file.read_text().splitlines()]
            if file.exists()
            else []
        )

    def begun(self) -> list[str]:
        return [start[0][0].removesuffix(".json") for start in self.starts()]

    def state(self, id_: str) -> str:
        return self.queue.entry(id_).state


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path)
    (tmp_path / "output").mkdir()
    yield yard
    for runner in yard.runners:
        runner.kill()
        runner.communicate()
    for entry in yard.queue.entries():
        module.end(yard.queue.processes(entry), signal.SIGKILL)


def test_entries_run_one_after_another_in_the_order_they_were_given(yard):
    a, b, c, d = (yard.add(name) for name in "abcd")
    yard.queue.move(d, before=a)
    yard.queue.shift(c, up=True)
    yard.queue.shift(b, up=False)
    yard.queue.shift(d, up=True)
    assert [entry.name for entry in yard.queue.entries()] == ["d", "a", "c", "b"]
    yard.queue.remove(c)
    yard.work()
    assert yard.begun() == ["d", "a", "b"]
    assert {directory for _, _, directory in yard.starts()} == {str(yard.folder)}
    assert [(entry.name, entry.state) for entry in yard.queue.entries()] == [
        ("b", DONE),
        ("a", DONE),
        ("d", DONE),
    ]
    assert "it says {}" in yard.queue.tail(a)
    assert (yard.queue.folder / "trash" / f"{c}.json").exists()
    assert yard.add("e") == "000005"  # an id is not used again


@pytest.mark.slow
def test_one_job_per_gpu(yard):
    door = str(yard.folder / "door")
    for name in "abc":
        yard.add(name, {"until": door})
    runner = yard.runner("4,7")
    until(lambda: len(yard.starts()) == 2)
    assert [entry.state for entry in yard.queue.entries()] == [
        RUNNING,
        RUNNING,
        WAITING,
    ]
    Path(door).touch()
    assert runner.wait(30) == 0
    assert sorted(gpu for _, gpu, _ in yard.starts()[:2]) == ["4", "7"]


@pytest.mark.slow
def test_what_yields_waits_while_a_run_trains_that_the_queue_did_not_start(yard):
    image, job = yard.add("image", yields=True), yard.add("job")
    other = yard.folder / "output" / "other"
    other.mkdir()
    (other / "run.json").write_text('{"status": "running"}')
    with run_lock(other):
        runner = yard.runner()
        until(lambda: yard.state(job) == DONE)
        time.sleep(0.3)
        assert (
            yard.begun() == ["job"]
            and yard.state(image) == WAITING
            and runner.poll() is None
        )
    assert runner.wait(30) == 0 and yard.begun() == ["job", "image"]
    yard.queue.retry(image)
    assert yard.queue.entry(image).yields


def test_what_is_wrong_or_stopped_is_not_tried_again(yard):
    codes = {2: FAILED, 75: STOPPED, 130: STOPPED}
    ids = {code: yard.add(f"a{code}", {"code": code}) for code in codes}
    yard.work()
    assert len(yard.starts()) == len(codes)
    for code, id_ in ids.items():
        entry = yard.queue.entry(id_)
        assert (entry.state, entry.exit_code) == (codes[code], code)
    assert yard.queue.entry(ids[2]).why == "it says {'code': 2}", "its own message"


@pytest.mark.slow
def test_a_crash_is_retried_three_times_and_always_resumed(yard):
    acts = [
        {"code": code, "status": {"step": step}}
        for step, code in enumerate([1, 139, 3, 1])
    ]
    id_ = yard.add(
        "a", *acts, flags=("--restart", "--restart-from", "x", "--name", "n")
    )
    yard.add("later")
    assert "failed 4 times" in yard.work()
    assert yard.begun() == [*"aaaa", "later"]
    assert [arguments[1:] for arguments, *_ in yard.starts()[:4]] == [
        ["--restart", "--restart-from", "x", "--name", "n"],
        *[["--name", "n"]] * 3,
    ]
    assert (yard.state(id_), yard.queue.entry(id_).failed_at) == (FAILED, 3)
    yard.queue.retry(id_)
    assert (yard.state(id_), yard.queue.entry(id_).attempts) == (WAITING, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("retries", "says"), [(0, "failed once"), (1, "failed 2 times")]
)
def test_a_crash_is_retried_as_often_as_the_entry_says(yard, retries, says):
    acts = [{"code": 1, "status": {"step": step}} for step in range(4)]
    id_ = yard.add("a", *acts)
    entry = yard.queue.entry(id_)
    yard.queue.save(entry, retries=retries)
    assert says in yard.work()
    assert len(yard.starts()) == retries + 1
    yard.queue.retry(id_)
    assert yard.queue.entry(id_).retries == retries


@pytest.mark.slow
def test_what_has_a_start_time_waits_for_it_and_lets_others_go_first(yard):
    later, now = yard.add("later"), yard.add("now")
    yard.queue.save(yard.queue.entry(later), not_before="2999-01-01T00:00:00Z")
    yard.runner()
    until(lambda: yard.state(now) == DONE)
    assert yard.state(later) == WAITING
    yard.queue.save(yard.queue.entry(later), not_before="2001-01-01T00:00:00Z")
    until(lambda: yard.state(later) == DONE)
    assert yard.begun() == ["now", "later"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--at 25:00", "--at: '25:00' is not a time. Write 22:00, or"),
        ("--at soon", "--at: 'soon' is not a time"),
        ("--at 2001-01-01T10:00", "--at: '2001-01-01T10:00' is over"),
        ("--at 9999-99-99", "--at: '9999-99-99' is not a time"),
        ("--at", "argument --at: expected one argument. Write --at 22:00"),
        ("--retries x", "argument --retries: invalid int value: 'x'"),
        ("--retries -1", "--retries: -1 is negative. Write 0 for none."),
    ],
)
def test_what_is_no_time_or_number_is_refused(words, says):
    with pytest.raises(UserError, match=re.escape(says)):
        own_flags(["a.yaml", *words.split()])


def test_a_time_of_day_is_the_next_one_and_a_zone_counts():
    assert start_time("2999-01-01T12:00+02:00") == "2999-01-01T10:00:00Z"
    now = datetime.now().astimezone()
    for hours in (1, 23):
        at = now + timedelta(hours=hours)
        found = datetime.fromisoformat(start_time(at.strftime("%H:%M")))
        assert now < found <= now + timedelta(days=1)
        assert found.astimezone().strftime("%H:%M") == at.strftime("%H:%M")


@pytest.mark.slow
def test_a_failure_that_comes_again_at_the_same_step_is_not_worth_three_retries(yard):
    step, beginning = {"status": {"step": 7}}, {}
    ids = [
        yard.add(f"a{number}", {"code": code, **status})
        for number, (code, status) in enumerate(
            [(1, step), (139, step), (1, beginning)]
        )
    ]
    yard.work()
    assert sorted(yard.begun()) == ["a0", "a0", "a1", "a1", "a2", "a2"]
    assert [yard.queue.entry(id_).why for id_ in ids] == [
        "failed again at step 7",
        "failed again at step 7",
        "failed again at the beginning",
    ]


@pytest.mark.slow
def test_a_kill_is_not_a_failure_of_the_job(yard):
    """Machines that are taken away, and the kernel when memory runs out, kill; where
    the job gets further each time it goes on for ever, and where it does not it is
    tried three times more."""
    acts = [
        {"code": -9, "status": {"step": step}}
        for step in (1, 2, 3, 4, 5, 6, 7, 7, 7, 7)
    ]
    id_ = yard.add("a", {"code": 1, "status": {"step": 1}}, *acts)
    yard.work()
    assert (len(yard.starts()), yard.state(id_), yard.queue.entry(id_).why) == (
        11,
        FAILED,
        "was killed 4 times",
    )


@pytest.mark.slow
def test_a_gpu_is_free_when_the_job_has_ended_not_the_shell_above_it(yard):
    """It has not written run.json yet: it imports its packages."""
    door = str(yard.folder / "door")
    first, second = yard.add("a", {"until": door}), yard.add("b")
    runner = yard.runner()
    until(lambda: yard.starts())
    runner.kill()
    runner.wait()
    os.kill(yard.queue.entry(first).pid, signal.SIGKILL)
    runner = yard.runner()
    time.sleep(0.5)
    assert (yard.begun(), yard.state(first), yard.state(second)) == (
        ["a"],
        RUNNING,
        WAITING,
    )
    Path(door).touch()
    assert runner.wait(30) == 0
    assert (yard.begun()[:2], yard.state(first), yard.state(second)) == (
        ["a", "a"],
        DONE,
        DONE,
    )


@pytest.mark.slow
def test_a_job_whose_shell_is_gone_is_stopped_too(yard):
    id_ = yard.add("a", {"until": str(yard.folder / "never")})
    runner = yard.runner()
    until(lambda: yard.starts())
    os.kill(yard.queue.entry(id_).pid, signal.SIGKILL)
    yard.queue.stop(id_)
    assert runner.wait(30) == 0
    assert (yard.state(id_), len(yard.starts())) == (STOPPED, 1)


@pytest.mark.slow
def test_what_a_job_leaves_behind_in_another_session_keeps_its_gpu_and_is_killed(yard):
    """As the workers that torchrun starts, when it is killed."""
    first, second = yard.add("a", {"leaves": True}), yard.add("b")
    assert "have not: killed" in yard.work()
    assert (yard.state(first), yard.state(second), yard.begun()) == (
        DONE,
        DONE,
        ["a", "b"],
    )
    assert module.start_of(int((yard.folder / "output" / "left").read_text())) == ""


@pytest.mark.slow
def test_a_job_outlives_its_runner_and_is_adopted_by_the_next_of_which_there_is_one(
    yard,
):
    door = str(yard.folder / "door")
    id_ = yard.add("a", {"until": door, "code": 2})
    runner = yard.runner()
    until(lambda: yard.starts())
    runner.kill()
    runner.wait()
    second = yard.runner()
    until(yard.queue.has_runner)
    third = yard.runner()
    assert "another runner works" in third.communicate(timeout=30)[1]
    assert third.returncode != 0 and yard.queue.has_runner()
    assert (yard.state(id_), second.poll()) == (RUNNING, None)
    Path(door).touch()
    assert second.wait(30) == 0 and not yard.queue.has_runner()
    assert (yard.begun(), yard.state(id_), yard.queue.entry(id_).exit_code) == (
        ["a"],
        FAILED,
        2,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "state", "starts"), [("running", DONE, 2), ("stopped", STOPPED, 1)]
)
def test_after_a_kill_of_everything_the_folder_of_the_run_decides(
    yard, status, state, starts
):
    never = str(yard.folder / "never")
    id_ = yard.add(
        "a", {"until": never, "status": {"status": status}}, {}, flags=("--restart",)
    )
    runner = yard.runner()
    until(lambda: "it says" in yard.queue.tail(id_))
    runner.kill()
    os.killpg(yard.queue.entry(id_).pid, signal.SIGKILL)
    yard.work()
    assert (yard.state(id_), len(yard.starts())) == (state, starts)
    assert yard.starts()[-1][0][1:] == ([] if starts == 2 else ["--restart"])


def lost(yard: Yard, **act: object) -> str:
    """The id of an entry whose runner and processes were killed while it ran."""
    id_ = yard.add("a", {"until": str(yard.folder / "never"), **act}, {})
    runner = yard.runner()
    until(lambda: "it says" in yard.queue.tail(id_))
    assert yard.queue.now()[0].state == RUNNING
    runner.kill()
    runner.wait()
    assert yard.queue.now()[0].state == RUNNING, "it goes on without its runner"
    module.end(yard.queue.processes(yard.queue.entry(id_)), signal.SIGKILL)
    until(lambda: not yard.queue.processes(yard.queue.entry(id_)))
    assert [entry.state for entry in yard.queue.now()] == [INTERRUPTED]
    return id_


@pytest.mark.slow
def test_what_was_interrupted_is_told_and_settled_by_whoever_asks(yard, monkeypatch):
    id_ = lost(yard, status={"step": 3})
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with heard() as said:
        for action in ("list", "stop", "list", "remove", "list"):
            words = (id_,) if action in ("stop", "remove") else ()
            assert program.main(
                ("queue", "--output", str(yard.folder / "output"), action, *words)
            ) == 0  # fmt: skip
    assert [line.partition("  a.json")[0] for line in said] == [
        f"{id_}  interrupted",
        "stop: done",
        f"{id_}  stopped ",
        "remove: done",
    ]
    assert yard.work() == "" and len(yard.starts()) == 1, "no runner goes on with it"


@pytest.mark.slow
def test_a_runner_and_a_retry_go_on_with_what_was_interrupted(yard):
    id_ = lost(yard)
    yard.queue.retry(id_)
    assert [entry.state for entry in yard.queue.now()] == [WAITING]
    yard.work()
    assert yard.state(id_) == DONE and len(yard.starts()) == 2
    stopped = yard.queue.save(
        yard.queue.entry(id_), state=RUNNING, pid=0, is_stopping=False
    )
    (yard.queue.folder / f"{id_}.exit").write_text("0\n")
    yard.queue.stop(stopped.id)
    assert yard.state(id_) == DONE, "it had ended by itself"
    yard.queue.save(stopped, pid=0)
    yard.queue.remove(id_)
    assert yard.queue.entries() == ()


def test_the_state_of_an_earlier_run_in_the_folder_decides_nothing(yard):
    id_ = yard.add("a", {"code": -9}, {})
    (yard.folder / "output" / "a").mkdir()
    (yard.folder / "output" / "a" / "run.json").write_text(
        '{"status": "stopped", "step": 3}'
    )
    yard.work()
    assert (yard.state(id_), len(yard.starts())) == (DONE, 2)


@pytest.mark.parametrize("other", [{"pid_start": "1"}, {"boot": "another"}])
def test_a_process_that_has_the_number_of_one_that_is_gone_is_left_alone(yard, other):
    id_, pid = yard.add("a"), os.getpid()
    mine = {"pid": pid, "pid_start": module.start_of(pid), "boot": module.boot_id()}
    yard.queue.save(yard.queue.entry(id_), state=RUNNING, attempts=1, **mine)
    started = int(mine["pid_start"]) / os.sysconf("SC_CLK_TCK")
    assert 0 < started < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert module.is_alive(yard.queue.entry(id_))
    yard.queue.save(yard.queue.entry(id_), **other)
    assert not module.is_alive(yard.queue.entry(id_))
    yard.work()
    assert (yard.state(id_), len(yard.starts())) == (DONE, 1)


@pytest.mark.slow
def test_a_training_run_is_asked_to_stop_and_saves(yard):
    id_ = yard.add("a", {"trains": True})
    run = yard.folder / "output" / "a"
    (run / "control").mkdir(parents=True)
    (run / "run.json").write_text('{"status": "killed"}')
    # came too late for an earlier run, and does not stop this one
    (run / "control" / "stop").touch()
    runner = yard.runner()
    until(lambda: (run / "run.lock").exists() and (run / "run.lock").read_text())
    assert (yard.state(id_), (run / "control" / "stop").exists()) == (RUNNING, False)
    yard.queue.stop(id_)
    assert runner.wait(30) == 0
    assert (yard.state(id_), yard.queue.entry(id_).exit_code) == (STOPPED, 0)
    yard.queue.retry(id_)
    yard.queue.clear()
    assert yard.state(id_) == WAITING


def test_what_does_not_train_is_stopped_by_a_signal_and_not_retried(yard):
    id_ = yard.add("a", {"until": str(yard.folder / "never")})
    runner = yard.runner()
    until(lambda: yard.starts())
    with pytest.raises(UserError, match="Stop it first"):
        yard.queue.remove(id_)
    yard.queue.stop(id_)
    assert runner.wait(30) == 0
    assert (yard.state(id_), len(yard.starts())) == (STOPPED, 1)


def test_a_damaged_entry_and_one_that_names_another_program_stop_nothing(yard):
    first, second, shell, last = (yard.add(name) for name in "abcd")
    (yard.queue.folder / f"{first}.json").write_text('{"id": ')
    (yard.queue.folder / f"{second}.json").write_text(
        json.dumps({"id": "000009", "argv": [], "state": "x"})
    )
    file = yard.queue.folder / f"{shell}.json"
    file.write_text(
        file.read_text().replace('"c.json"', '"/bin/sh", "-c", "touch /tmp/broken"')
    )
    yard.work()
    states = {entry.id: (entry.state, entry.why) for entry in yard.queue.entries()}
    assert states[first][0] == states[second][0] == DAMAGED and states[first][1]
    assert (
        states[shell][0] == FAILED
        and "'/bin/sh' is neither a job file" in states[shell][1]
    )
    assert (states[last][0], yard.begun()) == (DONE, ["d"])
    yard.queue.remove(first)
    assert first not in {entry.id for entry in yard.queue.entries()}


def test_a_job_that_cannot_be_recorded_is_not_started(yard, monkeypatch):
    id_ = yard.add("a")
    save, fails = Queue.save, [True]

    def full(queue: Queue, entry: Entry, **changes: object) -> Entry:
        if fails and fails.pop():
            raise RunError("no space left on device")
        return save(queue, entry, **changes)

    monkeypatch.setattr(Queue, "save", full)
    yard.work()
    assert (yard.state(id_), len(yard.starts()), fails) == (DONE, 1, [])


def test_only_jobs_and_tools_are_taken(yard, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    (yard.folder / "note.txt").touch()
    (yard.folder / "config").mkdir()
    (yard.folder / "config" / "mine.yaml").touch()
    for argv in (
        ["mine"],
        ["config/mine"],
        ["merge", "--output", "x"],
        [str(ROOT / "config/examples/quickstart.yaml")],
    ):
        assert why_not_queued(argv, str(yard.folder)) == ""
    for argv in (
        [],
        ["/bin/sh"],
        ["note.txt"],
        ["--config"],
        ["ui"],
        ["queue"],
        ["import"],
        ["a\0.yaml"],
        ["\udc80"],
        [7],
    ):
        assert why_not_queued(argv, str(yard.folder))
    assert "gone" in why_not_queued(["merge"], str(yard.folder / "nowhere"))
    with pytest.raises(UserError, match="'add' takes a job file or a tool"):
        section_of("queue", ["add"])
    with pytest.raises(UserError, match="secret"):
        yard.queue.add(["publish", "--token", "hf_abcdefghijklmnopqrstuvwxyz"], "p")
    for id_ in ("..", "../lock", "000001\n", "٠٠٠٠٠١", "000009"):
        with pytest.raises(UserError):
            yard.queue.entry(id_)
    assert yard.queue.entries() == ()


@pytest.mark.slow
def test_the_command_lists_adds_and_runs(yard, run_py, monkeypatch):
    (yard.folder / "m.yaml").write_text(
        (ROOT / "config/examples/quickstart.yaml").read_text().replace("240", "x")
    )
    assert run_py("queue", "add", "m.yaml").returncode == 2  # a mistake in the job
    assert (
        "--rank: -1"
        in run_py(
            "queue", "add", "merge", "--rank=-1", "--lora", "a", "--output", "b"
        ).stderr
    )
    (yard.folder / "empty").mkdir()
    own = ("--at", "2999-01-01T00:00Z", "--retries", "1")
    added = run_py("queue", "add", "lint", "empty", *own, "--json")
    monkeypatch.chdir(yard.folder)
    waits = f"waits until 2999-01-01T00:00:00Z. Next: {command('queue', 'run')}\n"
    assert waits in added.stdout + added.stderr, "the interpreter that runs"
    listed = run_py("queue")
    said = "000001  waiting   lint empty --json, starts at 2999-01-01T00:00:00Z"
    assert said in listed.stdout + listed.stderr
    (entry,) = json.loads(run_py("queue", "list", "--json").stdout)["entries"]
    assert (entry["argv"], entry["state"]) == (["lint", "empty", "--json"], WAITING)
    assert (entry["not_before"], entry["retries"]) == ("2999-01-01T00:00:00Z", 1)
    yard.queue.save(yard.queue.entry("000001"), not_before="")
    assert (
        "--json: is for 'list' and 'add', not for 'clear'."
        in run_py("queue", "clear", "--json").stderr
    )
    assert run_py("queue", "run").returncode == 0
    assert yard.state("000001") == FAILED and yard.queue.entry("000001").exit_code == 2
    assert run_py("queue", "move", "000001").returncode == 2
    assert run_py("queue", "retry", "000001").returncode == 0
    assert run_py("queue", "remove", "000001").returncode == 0
    assert yard.queue.entries() == ()


@pytest.mark.slow
def test_the_address_of_a_webhook_in_a_command_is_the_owners_alone(
    yard, run_py, monkeypatch
):
    (yard.folder / "m.yaml").write_text("job: extension")
    monkeypatch.chdir(yard.folder)
    hidden = (
        "callbacks[0].url=https://host/x/planted",
        "callbacks=[{type: webhook, url: https://host/planted}]",
    )
    kept = ("--set=callbacks[0].url=${HOOK}", "datasets[0].url=s3://bucket/a")
    for words in (hidden, kept):
        yard.queue.add(["m.yaml", "--set", *words], "m")
    files = [*yard.queue.folder.glob("*.json")]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    for flags in ((), ("list", "--json")):
        said = run_py("queue", *flags)
        assert "planted" not in said.stdout + said.stderr
        assert "callbacks[0].url=<redacted>" in said.stdout + said.stderr
        assert all(word in said.stdout + said.stderr for word in kept)
    assert yard.queue.entry("000001").argv[2:] == hidden


@pytest.mark.slow
def test_each_run_of_a_sweep_is_an_entry_and_none_where_one_is_wrong(
    yard, run_py, monkeypatch
):
    monkeypatch.chdir(yard.folder)
    job = (ROOT / "config/examples/quickstart.yaml").read_text()
    (yard.folder / "m.yaml").write_text(job)
    sweep = ("--sweep", "process[0].train.lr=1e-4,x", "--seeds", "1,2")
    assert run_py("queue", "add", "m.yaml", *sweep).returncode == 2
    assert yard.queue.entries() == ()
    sweep = ("--sweep", "process[0].train.lr=1e-4,2e-4", "--seeds", "1,2")
    done = run_py("queue", "add", "m.yaml", *sweep, "--retries", "1", "--restart")
    assert done.returncode == 0, done.stderr
    entries = yard.queue.entries()
    assert [entry.name for entry in entries] == [
        f"quickstart_lr{rate}_seed{seed}"
        for rate in ("1e-4", "2e-4")
        for seed in (1, 2)
    ]
    assert entries[0].argv == (
        "m.yaml", "--restart", "--seeds=1", "--sweep", "process[0].train.lr=1e-4",
    )  # fmt: skip
    assert {entry.retries for entry in entries} == {1}
    listed = json.loads(run_py("queue", "--json", "list").stdout)["entries"]
    more = run_py("queue", "add", "m.yaml", "--seeds", "3,4", "--json")
    ids = [entry["id"] for entry in json.loads(more.stdout)]
    assert ids == ["000005", "000006"] and more.stdout.count("\n") == 1
    one = run_py("queue", "--json", "add", "m.yaml", "--at", "2999-01-01T00:00Z")
    after = json.loads(run_py("queue", "list", "--json").stdout)["entries"]
    assert json.loads(one.stdout) == after[-1]
    assert (after[-1]["id"], after[-1]["argv"]) == ("000007", ["m.yaml"])
    assert after[:4] == listed


def test_a_move_orders_entries_whose_numbers_are_the_same(yard):
    """As a move leaves them that was killed between two files."""
    first, second, third = (yard.add(name) for name in "abc")
    yard.queue.save(yard.queue.entry(third), order=yard.queue.entry(first).order)
    for wanted in (
        [third, first, second],
        [second, third, first],
        [first, second, third],
    ):
        yard.queue.move(
            wanted[0],
            before=next(
                entry.id for entry in yard.queue.entries() if entry.id != wanted[0]
            ),
        )
        assert [entry.id for entry in yard.queue.entries()] == wanted


@pytest.mark.parametrize("way", ["long", "directory"])
def test_what_no_system_starts_does_not_hold_the_others_up(yard, monkeypatch, way):
    first, second = yard.add("a"), yard.add("b")
    if way == "long":
        with pytest.raises(UserError, match="bytes"):
            yard.queue.add(["caption", "--prompt=" + "x" * 2**17], "c")
        yard.queue.save(yard.queue.entry(first), argv=("a.json", "x" * 2**17))
    popen = subprocess.Popen

    def started(command, **options):
        if (
            way == "directory"
            and options["cwd"] == str(yard.folder)
            and "a.json" in command[-1]
        ):
            raise PermissionError(13, "Permission denied")  # of root nothing is refused
        return popen(command, **options)

    monkeypatch.setattr(module.subprocess, "Popen", started)
    monkeypatch.setattr(module, "planned", lambda *_: {"folders": []})
    yard.work()
    assert (yard.state(first), yard.state(second), yard.begun()) == (
        FAILED,
        DONE,
        ["b"],
    )
    assert yard.queue.entry(first).why
