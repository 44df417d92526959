"""docker/start.sh as the real PID 1 of a pid namespace, with a stand-in for the trainer
and RunPod.

`unshare -r` makes the namespaces without privileges; where it is refused, everything
here is skipped.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from textwrap import dedent

import pytest

from tests.http_server import QuietHandler, serving
from tests.processes import until

ROOT = Path(__file__).resolve().parents[2]
START = ROOT / "docker" / "start.sh"
NAMESPACES = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
JOB = "job: extension\nconfig: {name: a job}\n"


def refusal() -> str | None:
    """Why namespaces cannot be made here; None when they can."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        return "namespaces need Linux and unshare"
    tried = subprocess.run(
        [*NAMESPACES, "-r", "mount", "-t", "tmpfs", "t", "/mnt"],
        capture_output=True,
        text=True,
    )
    return f"unshare is refused: {tried.stderr.strip()}" if tried.returncode else None


REFUSED = refusal()
pytestmark = pytest.mark.skipif(REFUSED is not None, reason=str(REFUSED))

TRAINER = '''
    """Stands in for run.py: writes down each call, and ends as the next word of FAKE_PLAN says."""
    import json, os, signal, sys, time
    from pathlib import Path

    record = Path(os.environ.get("FAKE_RECORD", "record.jsonl"))

    def note(**what):
        with record.open("a") as file:
            file.write(json.dumps(what) + "\\n")

    if "--json" in sys.argv:
        print(json.dumps({"folders": ["output/_other", f"output/{Path(sys.argv[-1]).stem}"]}))
        sys.exit(0)
    dry = "--dry-run" in sys.argv
    before = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    note(dry=dry, argv=sys.argv[1:], cwd=os.getcwd(), uid=os.getuid(), time=time.time(), environ=dict(os.environ))
    if dry:
        sys.exit(int(os.environ.get("FAKE_DRY_RUN", "0")))
    plan = os.environ.get("FAKE_PLAN", "0").split()
    word = plan[min(sum(not entry.get("dry", True) for entry in before), len(plan) - 1)]
    if ":" in word:  # job:code
        word = dict(pair.split(":") for pair in plan).get(Path(sys.argv[-1]).stem, "0")
    if word == "run":
        def stop(number, _):
            note(signal=signal.Signals(number).name)
            sys.exit(75)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        print("trainer: training", flush=True)
        while True:
            time.sleep(0.02)
    # The first that ends takes the others with it: all of them have begun by then.
    begun = time.monotonic()
    ranks = int(os.environ.get("WORLD_SIZE", "0"))
    while record.read_text().count('"WORLD_SIZE"') < ranks and time.monotonic() < begun + 30:
        time.sleep(0.02)
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(word))
'''


@dataclass
class Pod:
    """One start of start.sh as PID 1."""

    process: subprocess.Popen
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, seconds: float = 15) -> None:
        """Until `text` is in the output."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, (
                f"ended without {text!r}:\n{self.output}"
            )
            assert time.monotonic() < deadline, (
                f"no {text!r} in {seconds} s:\n{self.output}"
            )
            time.sleep(0.02)

    def signal(self, number: int = signal.SIGTERM) -> None:
        """To PID 1 of the namespace, as a container engine does."""
        children = (
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            .read_text()
            .split()
        )
        os.kill(int(children[0]), number)

    def ends(self, seconds: float = 30) -> int:
        return self.process.wait(timeout=seconds)

    def terminate(self, seconds: float = 30) -> int:
        self.signal()
        return self.ends(seconds)


@dataclass
class Api:
    """RunPod's side: what was asked for, and the status codes of the next answers (200
    after the last)."""

    url: str = ""
    calls: list[tuple[str, str | None, str]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


@pytest.fixture
def api() -> Iterator[Api]:
    answers = Api()

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            answers.calls.append((self.path, self.headers.get("Authorization"), body))
            self.answer(answers.answers.pop(0) if answers.answers else 200, b"{}")

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            if status in (301, 302):
                self.send_header("Location", body.decode())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as answers.url:
        yield answers


@dataclass
class Bench:
    """What one test works with: a workspace that outlives a pod, a program, and
    commands put before the system's."""

    folder: Path
    api: Api
    pods: list[Pod] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("workspace", "home", "bin", "program"):
            (self.folder / name).mkdir()
        (self.folder / "program" / "run.py").write_text(
            dedent(TRAINER), encoding="utf-8"
        )
        (self.folder / "program" / "launch.py").symlink_to(ROOT / "launch.py")

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def command(self, name: str, script: str = "") -> None:
        """A stand-in on PATH that writes down its arguments and stays, unless `script`
        says otherwise."""
        path = self.folder / "bin" / name
        stay = (
            f'printf "%s\\n" "$*" >>"{self.folder}/{name}.calls"\nexec sleep infinity\n'
        )
        path.write_text(f"#!/bin/bash\n{script or stay}", encoding="utf-8")
        path.chmod(0o755)

    def calls_of(self, name: str) -> list[str]:
        time.sleep(0.2)  # the command runs beside start.sh
        path = self.folder / f"{name}.calls"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def environment(self, **changes: str | None) -> dict[str, str]:
        given = {
            "PATH": f"{self.folder}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder / "home"),
            "LANG": "C.UTF-8",
            "RP_WORKSPACE": str(self.workspace),
            "ATELIER_HOME": str(self.folder / "program"),
            "ATELIER_PYTHON": sys.executable,
            "ALLOW_HTTP_LOCALHOST": "1",
            "JOB_CONFIG_YAML": JOB,
            "RUNPOD_POD_ID": "pod123",
            "RUNPOD_API_KEY": "the-key-of-the-pod",
            "RUNPOD_STOP_URL": f"{self.api.url}/v2/pods/{{id}}/action",
            "STOP_PAUSES": "0.1 0.1",
            "RESTART_PAUSES": "0.1 0.2 0.4",
            "UI_PORT": "",
            "NPROC": "1",
            "OMP_NUM_THREADS": "1",
            **changes,
        }
        return {name: value for name, value in given.items() if value is not None}

    def start(
        self,
        *arguments: str,
        setup: str = 'mount --bind "$RP_WORKSPACE" "$RP_WORKSPACE"',
        launch: str = f"bash {START}",
        user: tuple[str, ...] = ("-r",),
        **environment: str | None,
    ) -> Pod:
        """Runs `setup` in fresh namespaces (mounts there are seen by nobody else), then
        becomes start.sh."""
        mounts = "mount -t tmpfs tmpfs /etc/ssh 2>/dev/null; mount -t tmpfs tmpfs /run"
        script = f'{mounts}\nset -e\n{setup}\nexec {launch} "$@"'
        log = self.folder / f"output{len(self.pods)}.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*NAMESPACES, *user, "bash", "-c", script, "start", *arguments],
                env=self.environment(**environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Who starts the tests in the background has told them to ignore it, and
                # a child would inherit that.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )
        self.pods.append(Pod(process, log))
        return self.pods[-1]

    def waits(self, **environment: str | None) -> Pod:
        """A start that ends in waiting for a signal."""
        pod = self.start(**environment)
        pod.wait_for("waiting.")
        return pod

    def ends_with(self, code: int, **environment: str | None) -> Pod:
        """A start that ends with its job, in this code."""
        pod = self.start(RUN_ON_SUCCESS="exit", RUN_ON_FAILURE="exit", **environment)
        assert pod.ends() == code, pod.output
        return pod

    def record(self) -> list[dict]:
        path = self.workspace / "record.jsonl"
        return (
            [json.loads(line) for line in path.read_text().splitlines()]
            if path.exists()
            else []
        )

    def wait_for_record(self, entries: int) -> None:
        """Until the stand-in has written down so many calls: it runs beside
        start.sh."""
        until(lambda: len(self.record()) >= entries, 15)

    def trainings(self) -> list[dict]:
        return [entry for entry in self.record() if entry.get("dry") is False]


@pytest.fixture
def bench(tmp_path: Path, api: Api) -> Iterator[Bench]:
    made = Bench(tmp_path, api)
    yield made
    for pod in made.pods:
        with suppress(ProcessLookupError):
            # PID 1 among them, which takes the namespace along
            os.killpg(pod.process.pid, signal.SIGKILL)
        pod.process.wait()


# ---- signals and the end of the job
# --------------------------------------------------------------------------------


@pytest.mark.slow
def test_sigterm_reaches_the_trainer_and_the_next_start_finishes_and_stops_the_pod_once(
    bench: Bench,
) -> None:
    first = bench.start(FAKE_PLAN="run 0")
    first.wait_for("trainer: training")
    assert first.terminate() == 75
    assert [entry for entry in bench.record() if "signal" in entry] == [
        {"signal": "SIGTERM"}
    ]
    assert bench.api.calls == []

    second = bench.waits(FAKE_PLAN="run 0")
    assert len(bench.trainings()) == 2
    assert bench.api.calls == [
        ("/v2/pods/pod123/action", "Bearer the-key-of-the-pod", '{"action": "stop"}')
    ]
    time.sleep(0.3)
    assert second.process.poll() is None, "a main process that exits is started again"
    assert second.terminate() == 0


@pytest.mark.parametrize("to", ["PID 1", "the terminal's group"])
def test_ctrl_c_reaches_the_trainer_once_as_sigterm(bench: Bench, to: str) -> None:
    pod = bench.start(FAKE_PLAN="run")
    pod.wait_for("trainer: training")
    if to == "PID 1":
        pod.signal(signal.SIGINT)
    else:
        os.killpg(pod.process.pid, signal.SIGINT)
    assert pod.ends() == 75
    assert [entry for entry in bench.record() if "signal" in entry] == [
        {"signal": "SIGTERM"}
    ]


def test_a_signal_between_the_start_of_a_child_and_knowing_it_is_passed_on() -> None:
    script = f"""
        . {START.parent}/children.sh
        outcome=
        trap on_signal TERM
        set -o functrace
        trap '[[ $BASH_COMMAND != "child=\\$!" ]] || kill -TERM $$' DEBUG
        run sleep 60
    """
    assert (
        subprocess.run(
            ["bash", "-c", script], stderr=subprocess.DEVNULL, timeout=30
        ).returncode
        == 143
    )


@pytest.mark.parametrize(("is_job", "code"), [("no", 143), ("yes", 0)])
def test_what_is_done_just_when_a_signal_comes_is_a_success_only_of_the_job(
    is_job: str, code: int
) -> None:
    child = 'trap "exit 0" TERM; kill -TERM "$1"; while :; do sleep 0.05; done'
    script = f"""
        . {START.parent}/children.sh
        outcome=
        is_job={is_job}
        trap on_signal TERM
        run bash -c '{child}' child $$
    """
    assert (
        subprocess.run(
            ["bash", "-c", script], stderr=subprocess.DEVNULL, timeout=30
        ).returncode
        == code
    )


@pytest.mark.parametrize("place", ["pre_start", "post_start", "pause", "waiting"])
def test_sigterm_is_obeyed_at_once_wherever_it_comes(bench: Bench, place: str) -> None:
    hook = bench.workspace / f"{place}.sh"
    if place.endswith("_start"):
        hook.write_text("echo in the hook; sleep 60\n", encoding="utf-8")
    pod = bench.start(FAKE_PLAN="1", RESTART_PAUSES="60" if place == "pause" else "")
    pod.wait_for(
        {"pause": "restart 1 in 60 s", "waiting": "waiting."}.get(place, "in the hook")
    )
    time.sleep(0.1)
    assert pod.terminate() == (1 if place == "waiting" else 143)
    assert bench.api.calls == []


@pytest.mark.slow
def test_signals_from_the_first_moment_on_are_never_lost(bench: Bench) -> None:
    for number in range(8):
        pod = bench.start(FAKE_PLAN="run")
        while "checking" not in pod.output:
            time.sleep(0.005)
        time.sleep(0.04 * number)
        assert pod.terminate(5) in (75, 143), pod.output


@pytest.mark.slow
@pytest.mark.parametrize("crash", ["1", "kill"])
def test_a_crash_is_followed_by_three_restarts_at_growing_intervals(
    bench: Bench, crash: str
) -> None:
    bench.command("sleep", f'printf "%s\\n" "$*" >>"{bench.folder}/sleep.calls"\n')
    pod = bench.ends_with(
        137 if crash == "kill" else 1, FAKE_PLAN=crash, RESTART_PAUSES="0.2 5 90 120"
    )
    assert (bench.calls_of("sleep"), len(bench.trainings())) == (["0.2", "5", "90"], 4)
    assert "abandoned after 3 restarts" in pod.output


@pytest.mark.parametrize("code", ["2", "75", "130"])
def test_a_mistake_and_a_stop_are_never_retried(bench: Bench, code: str) -> None:
    pod = bench.ends_with(int(code), FAKE_PLAN=f"{code} 0")
    assert len(bench.trainings()) == 1
    assert "not tried again" in pod.output


@pytest.mark.slow
def test_failure_waits_by_default_and_stops_the_pod_when_asked(bench: Bench) -> None:
    waiting = bench.waits(FAKE_PLAN="2")
    assert bench.api.calls == []
    assert waiting.terminate() == 2
    bench.waits(FAKE_PLAN="2", RUN_ON_FAILURE="stop")
    assert len(bench.api.calls) == 1


@pytest.mark.parametrize("name", ["RUN_ON_SUCCESS", "RUN_ON_FAILURE"])
def test_an_unknown_action_is_refused_before_the_job(bench: Bench, name: str) -> None:
    pod = bench.waits(**{name: "terminate"})
    assert f"{name} is 'terminate': write stop, idle or exit." in pod.output
    assert bench.record() == []


@pytest.mark.slow
def test_a_failing_stop_api_is_asked_three_times_then_the_pod_waits(
    bench: Bench,
) -> None:
    bench.api.answers = [500] * 9
    pod = bench.waits()
    assert len(bench.api.calls) == 3
    assert "https://console.runpod.io/pods, or: runpodctl pod stop pod123" in pod.output
    time.sleep(0.3)
    assert pod.process.poll() is None


@pytest.mark.slow
def test_the_key_follows_no_redirect_and_goes_nowhere_over_http(bench: Bench) -> None:
    bench.api.answers = [302, 302, 302]
    pod = bench.waits(STOP_PAUSES="0 0")
    assert "try 3 to stop the pod failed: HTTP 302" in pod.output
    pod = bench.start(ALLOW_HTTP_LOCALHOST=None)
    pod.wait_for("RUNPOD_STOP_URL must start with https://")
    pod.wait_for("waiting.")
    assert len(bench.api.calls) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"RUNPOD_POD_ID": None}, "RUNPOD_POD_ID or RUNPOD_API_KEY is not set"),
        ({"RUN_ON_SUCCESS": "idle"}, "checking"),
        ({"JOB_CONFIG_YAML": None}, "no job: set JOB_CONFIG_B64"),
    ],
)
def test_a_pod_without_a_job_or_a_stop_waits(
    bench: Bench, given: dict, words: str
) -> None:
    pod = bench.start(**given)
    pod.wait_for(words)
    pod.wait_for("waiting.")
    assert bench.api.calls == [] and bool(bench.record()) == (
        "JOB_CONFIG_YAML" not in given
    )


def test_arguments_are_a_command_to_become(bench: Bench) -> None:
    pod = bench.start(
        "python3", "-c", "import os; print(os.getpid(), os.environ['HF_HOME'])"
    )
    assert pod.ends() == 0
    assert pod.output == f"1 {bench.workspace}/.cache/huggingface\n"
    assert bench.record() == []


# ---- where the job comes from
# --------------------------------------------------------------------------------------


def given_job(bench: Bench) -> str:
    """What the trainer was given to run, after the same was checked by a dry run."""
    dry, training = bench.record()[:2]
    assert dry["argv"] == ["--dry-run", training["argv"][-1]]
    assert training["cwd"] == str(bench.workspace)
    return training["argv"][-1]


def job_config(
    bench: Bench, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """What start.sh asks for the job, alone."""
    (folder := bench.workspace / "config").mkdir()
    command = [sys.executable, START.with_name("job_config.py"), folder]
    return subprocess.run(
        command, env=bench.environment(**environment), capture_output=True, text=True
    )


@pytest.mark.parametrize("source", ["B64", "B64 gzip", "B64 wrapped", "YAML"])
def test_a_job_from_the_environment_is_written_to_the_volume(
    bench: Bench, source: str
) -> None:
    text = f"# ünïcode = \\n\n{JOB}"
    data = text.encode()
    encoded = base64.b64encode(
        gzip.compress(data) if source == "B64 gzip" else data
    ).decode()
    if source == "B64 wrapped":
        encoded = (
            "\n".join(encoded[i : i + 20] for i in range(0, len(encoded), 20)) + "\n"
        )
    variable = f"JOB_CONFIG_{source.split()[0]}"
    given = {"JOB_CONFIG_YAML": None, variable: text if source == "YAML" else encoded}
    done = job_config(bench, **given, JOB_CONFIG_SHA256=sha256(data).hexdigest())
    path = bench.workspace / "config" / f"_env_{sha256(data).hexdigest()[:8]}.yaml"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    assert path.read_bytes() == data


def test_a_job_on_the_volume_is_given_as_it_is_named(bench: Bench) -> None:
    bench.waits(JOB_CONFIG="config/my job.yaml", JOB_CONFIG_YAML="ignored")
    assert given_job(bench) == "config/my job.yaml"


def test_options_reach_the_training_and_not_the_check(bench: Bench) -> None:
    bench.ends_with(0, RUN_ARGS="--allow-change --restart", FAKE_PLAN="1 0")
    assert [call["argv"][2:4] for call in bench.trainings()] == [
        ["--allow-change", "--restart"]
    ] * 2
    assert not [
        call
        for call in bench.record()
        if call.get("dry") and "--restart" in call["argv"]
    ]


@pytest.mark.parametrize(
    ("plan", "options", "trained", "code"),
    [
        ("0", "", "a b c", 0),
        ("b:2", "", "a b", 2),
        ("b:2 c:1", "-r", "a b c", 2),
        ("b:75", "--recover", "a b", 75),
    ],
)
def test_several_jobs_are_trained_in_order(
    bench: Bench, plan: str, options: str, trained: str, code: int
) -> None:
    bench.ends_with(
        code,
        JOB_CONFIG="a.yaml, b.yaml,c.yaml",
        FAKE_PLAN=plan,
        RUN_ARGS=options,
        RESTART_PAUSES="",
    )
    assert bench.record()[0]["argv"] == ["--dry-run", "a.yaml", "b.yaml", "c.yaml"]
    assert (
        " ".join(Path(entry["argv"][-1]).stem for entry in bench.trainings()) == trained
    )


@pytest.mark.parametrize("variable", ["JOB_CONFIG_B64", "JOB_CONFIG_YAML"])
def test_the_first_source_counts_and_no_shell_reads_it(
    bench: Bench, variable: str
) -> None:
    text = f'# "quotes" $(touch {bench.folder}/executed) `id` ünïcode = \\n\n{JOB}'
    given = {
        "JOB_CONFIG_B64": base64.b64encode(text.encode()).decode(),
        "JOB_CONFIG": "other.yaml",
    }
    bench.waits(**(given if variable == "JOB_CONFIG_B64" else {variable: text}))
    assert Path(given_job(bench)).read_bytes() == text.encode()
    assert not (bench.folder / "executed").exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"JOB_CONFIG_B64": "not base64!"}, "JOB_CONFIG_B64 is not base64"),
        (
            {
                "JOB_CONFIG_B64": base64.b64encode(
                    gzip.compress(JOB.encode())[:-9]
                ).decode()
            },
            "JOB_CONFIG_B64 holds a damaged gzip file",
        ),
        (
            {
                "JOB_CONFIG_B64": base64.b64encode(
                    gzip.compress(bytes(50_000_000))
                ).decode()
            },
            "JOB_CONFIG_B64: the job is larger than 1,000,000 bytes",
        ),
        ({"JOB_CONFIG_YAML": " \n"}, "JOB_CONFIG_YAML: the job is empty"),
        (
            {"JOB_CONFIG_YAML": JOB, "JOB_CONFIG_SHA256": "0" * 64},
            "JOB_CONFIG_SHA256 wants 000",
        ),
        (
            {"JOB_CONFIG_YAML": JOB, "JOB_CONFIG_SHA256": "abc"},
            "must be 64 hexadecimal digits",
        ),
        ({"JOB_CONFIG": " , "}, "JOB_CONFIG names no job"),
        (
            {"JOB_CONFIG": "a.yaml,b.yaml", "JOB_CONFIG_SHA256": "0" * 64},
            "JOB_CONFIG_SHA256 has 1 sums for 2 jobs",
        ),
    ],
)
def test_a_job_that_cannot_be_read_is_one_clear_line(
    bench: Bench, environment: dict[str, str], words: str
) -> None:
    done = job_config(bench, **{"JOB_CONFIG_YAML": None, **environment})
    assert (done.returncode, done.stdout) == (2, "") and words in done.stderr
    assert "Traceback" not in done.stderr and "CANARY" not in done.stderr


@pytest.mark.parametrize("code", ["1", "2"])
def test_a_job_that_fails_the_dry_run_is_not_trained(bench: Bench, code: str) -> None:
    bench.ends_with(int(code), FAKE_DRY_RUN=code)
    assert [entry["dry"] for entry in bench.record()] == [True]


def test_what_is_brought_before_is_there_when_the_job_is_checked(bench: Bench) -> None:
    bring = "mkdir -p datasets/me && touch datasets/me/a.jpg; echo brought $SECRET"
    pod = bench.ends_with(0, PRE_START=bring, SECRET="a dataset")
    assert pod.output.index("brought a dataset") < pod.output.index("checking")
    assert (bench.workspace / "datasets" / "me" / "a.jpg").is_file()
    assert "PRE_START" not in bench.trainings()[0]["environ"]
    pod = bench.ends_with(1, PRE_START="exit 4")
    assert "PRE_START failed with exit code 4" in pod.output
    assert len(bench.trainings()) == 1


@pytest.mark.parametrize("name", ["DATASET_URL", "JOB_CONFIG_URL"])
def test_a_variable_that_was_removed_is_one_line(bench: Bench, name: str) -> None:
    pod = bench.ends_with(
        1,
        **{name: "https://example.org/a.zip"},
        JUPYTER_PASSWORD="x",
    )
    assert bench.record() == []
    assert (
        f"{name} is not read any more: bring it with PRE_START (docs/runpod.md)."
        in pod.output
    )
    assert "there is no Jupyter in this image" in pod.output


# ---- several processes
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "processes"),
    [
        ({"NPROC": None}, 3),
        ({"NPROC": "auto", "CUDA_VISIBLE_DEVICES": "1,2"}, 2),
        ({"NPROC": "4"}, 4),
    ],
)
def test_a_job_is_trained_by_as_many_processes_as_there_are_gpus(
    bench: Bench, given: dict[str, str | None], processes: int
) -> None:
    bench.command(
        "nvidia-smi", 'for n in 0 1 2; do echo "GPU $n: A GPU (UUID: GPU-$n)"; done'
    )
    note = f'printf "%s\\n" "$*" >>"{bench.folder}/python.calls"; [[ $1 != */launch.py ]] || exit 0'
    bench.command("python", f'{note}; exec {sys.executable} "$@"')
    assert (
        bench.start(ATELIER_PYTHON="python", RUN_ON_SUCCESS="exit", **given).ends() == 0
    )
    launches = [call for call in bench.calls_of("python") if "launch.py" in call]
    assert bench.trainings() == []
    assert [f"--nproc-per-node {processes} " in call for call in launches] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["2", "run"])
def test_a_job_of_several_processes_keeps_its_exit_code_and_is_stopped_by_a_signal(
    bench: Bench, word: str
) -> None:
    pod = bench.start(
        NPROC="2", FAKE_PLAN=word, RUN_ON_FAILURE="exit", RUN_ARGS="--allow-change"
    )
    if word == "run":
        pod.wait_for("trainer: training\ntrainer: training", 60)
        assert pod.terminate(60) == 75
        assert [entry for entry in bench.record() if "signal" in entry] == [
            {"signal": "SIGTERM"}
        ] * 2
    else:
        assert pod.ends(60) == 2
    trainings = bench.trainings()
    assert sorted(entry["environ"]["RANK"] for entry in trainings) == ["0", "1"], (
        "not tried again"
    )
    assert all(entry["argv"][2] == "--allow-change" for entry in trainings)
    assert all("RUNPOD_API_KEY" not in entry["environ"] for entry in trainings)


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        *(
            ({"NPROC": count}, 1, f"NPROC is '{count}': write auto or the number")
            for count in ("0", "2x")
        ),
        ({"JOB_CONFIG_YAML": " "}, 2, "the job cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_before_the_job(
    bench: Bench, given: dict, code: int, words: str
) -> None:
    pod = bench.ends_with(code, **given)
    assert words in pod.output and bench.record() == []


# ---- after the training
# --------------------------------------------------------------------------------------------

NOTE = 'echo "$ATELIER_JOB $ATELIER_EXIT_CODE $ATELIER_RUN_FOLDER"'


@pytest.mark.parametrize("plan", ["0", "2"])
def test_what_runs_after_the_training_sees_its_code_and_folder_before_the_pod_stops(
    bench: Bench, plan: str
) -> None:
    (bench.workspace / "post_train.sh").write_text(f"{NOTE} >>hook\n", encoding="utf-8")
    pod = bench.ends_with(
        int(plan),
        JOB_CONFIG="my_char.yaml",
        FAKE_PLAN=plan,
        POST_TRAIN=f"{NOTE} >>variable\ncat hook",
    )
    seen = f"my_char.yaml {plan} {bench.workspace}/output/my_char\n"
    assert [(bench.workspace / name).read_text() for name in ("hook", "variable")] == [
        seen,
        seen,
    ]
    assert pod.output.index("running POST_TRAIN") < pod.output.index(
        "leaving with exit code"
    )


def test_a_failed_job_keeps_its_code_also_where_its_results_could_not_leave(
    bench: Bench,
) -> None:
    pod = bench.ends_with(2, FAKE_PLAN="2", POST_TRAIN="exit 7")
    assert "post_train failed (exit code 7)" in pod.output


@pytest.mark.parametrize("way", ["script", "variable"])
def test_results_that_could_not_leave_are_a_failure_of_the_job(
    bench: Bench, way: str
) -> None:
    if way == "script":
        (bench.workspace / "post_train.sh").write_text("exit 7\n", encoding="utf-8")
    pod = bench.start(POST_TRAIN="exit 7" if way == "variable" else "touch not_reached")
    pod.wait_for("post_train failed (exit code 7)")
    pod.wait_for("waiting.")
    assert bench.api.calls == [], "the pod is not stopped"
    assert pod.terminate() == 7 and not (bench.workspace / "not_reached").exists()


# ---- the volume
# ----------------------------------------------------------------------------------------------------


def test_folders_and_caches_are_on_the_volume(bench: Bench) -> None:
    pod = bench.waits()
    assert "WARNING" not in pod.output
    environment = bench.trainings()[0]["environ"]
    assert environment["HF_HOME"] == f"{bench.workspace}/.cache/huggingface"
    assert environment["XDG_CACHE_HOME"] == f"{bench.workspace}/.cache"
    assert environment["EXTENSIONS_PATH"] == f"{bench.workspace}/extensions"
    for name in (
        "models",
        "datasets",
        "output",
        "config",
        "logs",
        "extensions",
        ".cache/huggingface",
    ):
        assert (bench.workspace / name).is_dir(), name
    assert (
        bench.workspace / "config" / "examples"
    ).readlink() == bench.folder / "program" / "config" / "examples"


def test_places_that_are_given_stay(bench: Bench) -> None:
    bench.waits(HF_HOME=f"{bench.folder}/elsewhere", EXTENSIONS_PATH="/mine")
    environment = bench.trainings()[0]["environ"]
    assert (environment["HF_HOME"], environment["EXTENSIONS_PATH"]) == (
        f"{bench.folder}/elsewhere",
        "/mine",
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ""),
        ({"RP_WORKSPACE": "/workspace/a folder of it"}, ""),
        ({"RP_WORKSPACE": "/root"}, "/root is not a mounted volume: OUTPUTS DIE"),
        ({"RP_WORKSPACE": "/made"}, "/made is not a mounted volume: OUTPUTS DIE"),
        ({"HF_HOME": "/root/hf"}, "HF_HOME (/root/hf) is on the container's own disk"),
    ],
    ids=str,
)
def test_what_lies_on_the_containers_own_disk_is_a_loud_warning(
    bench: Bench, given: dict[str, str], said: str
) -> None:
    pod = start_in_image(bench, **given)
    pod.wait_for("waiting.")
    assert "the job is done" in pod.output
    assert ("WARNING" in pod.output) == bool(said) and said in pod.output


def test_a_read_only_volume_is_a_loud_failure_that_can_be_looked_at(
    bench: Bench,
) -> None:
    mount = 'mount --bind "$RP_WORKSPACE" "$RP_WORKSPACE"; mount -o remount,ro,bind "$RP_WORKSPACE"'
    pod = bench.waits(setup=mount)
    assert "NOTHING CAN BE SAVED" in pod.output
    assert bench.record() == []


BOUND = 'mount --bind "$RP_WORKSPACE" "$RP_WORKSPACE"'
FULL = """mount -t tmpfs -o size=64k tmpfs "$RP_WORKSPACE"
mkdir "$RP_WORKSPACE"/{models,datasets,output,config,logs}
cat /dev/zero >"$RP_WORKSPACE/filled" 2>/dev/null || true"""


@pytest.mark.parametrize(
    ("setup", "given", "parts"),
    [
        (
            f"ln -s /elsewhere/models models; {BOUND}",
            {},
            ("/models is a link to /elsewhere/models, which is not there", "Mount"),
        ),
        (
            f"ln -s /elsewhere .cache; {BOUND}",
            {},
            ("/.cache is a link to /elsewhere, which is not there", "Mount"),
        ),
        (f"echo x >output; {BOUND}", {}, ("/output is a file", "Move it away")),
        (f"echo x >logs; {BOUND}", {}, ("/logs is a file", "Move it away")),
        (f"echo x >extensions; {BOUND}", {}, ("/extensions is a file",)),
        (
            BOUND,
            {"HF_HOME": "/proc/hf"},
            ("/proc/hf cannot be made (No such file", "Set HF_HOME"),
        ),
        (
            f"{BOUND}; mkdir output; mount -t tmpfs -o ro tmpfs output; rmdir logs || true",
            {"XDG_CACHE_HOME": "/sys/cache"},
            ("/sys/cache cannot be made", "Set XDG_CACHE_HOME"),
        ),
        (FULL, {}, ("is full (No space left on device)", "enlarge the volume")),
    ],
)
def test_a_folder_that_cannot_be_had_is_named_with_what_to_do(
    bench: Bench, setup: str, given: dict[str, str], parts: tuple[str, ...]
) -> None:
    """The fault is the volume's, and the pod can be looked at."""
    setup = f'cd "$RP_WORKSPACE"; {setup}'
    pod = bench.start(setup=setup, RUN_ON_FAILURE="exit", **given)
    assert pod.ends() == 1
    assert all(part in pod.output for part in parts), pod.output
    assert "report it" not in pod.output and bench.trainings() == []
    assert not list(bench.workspace.glob("**/.write_test"))


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        ("my volume", "rw"),
        ("größe 大", "noexec"),
        ("nosuid", "nosuid,nodev"),
    ],
)
def test_a_volume_with_an_odd_name_or_options_is_used(
    bench: Bench, folder: str, options: str
) -> None:
    volume = bench.folder / folder
    volume.mkdir()
    bound = f'{BOUND}; mount -o remount,bind,{options} "$RP_WORKSPACE"'
    pod = bench.ends_with(0, setup=bound, RP_WORKSPACE=str(volume))
    assert "WARNING" not in pod.output
    assert (volume / "output").is_dir() and (volume / "record.jsonl").is_file()


def test_a_root_that_is_read_only_has_its_temporary_files_on_the_volume(
    bench: Bench,
) -> None:
    pod = start_in_image(bench, more='mount -o remount,ro,bind "$root"')
    pod.wait_for("waiting.")
    assert "/tmp cannot be written: temporary files go to /workspace" in pod.output
    assert "the job is done" in pod.output and "report it" not in pod.output


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="changing the user needs root"
)
def test_a_volume_of_another_user_says_that_it_cannot_be_written(
    bench: Bench,
) -> None:
    """As of a network disk that makes root a guest."""
    pod = start_in_image(
        bench, user=(), who="--userspec=1234:1234", RUN_ON_FAILURE="exit"
    )
    assert pod.ends() == 1
    said = "/workspace cannot be written (Permission denied)"
    assert said in pod.output and "set RP_WORKSPACE" in pod.output


def test_a_quota_that_is_used_up_is_told_as_a_full_volume(bench: Bench) -> None:
    """The words of the system for it; no disk with a quota can be had here."""
    words = "mkdir: cannot create directory 'x': Disk quota exceeded"
    bench.command("mkdir", f'echo "{words}" >&2; exit 1')
    pod = bench.start(RUN_ON_FAILURE="exit")
    assert pod.ends() == 1
    full = f"{bench.workspace} is full (Disk quota exceeded)"
    assert full in pod.output and "enlarge the volume" in pod.output


@pytest.mark.parametrize("place", ["/proc/nonexistent", "/proc"])
def test_temporary_files_go_to_the_volume_where_nothing_else_takes_them(
    bench: Bench, place: str
) -> None:
    pod = bench.ends_with(0, TMPDIR=place)
    assert f"{place} cannot be written: temporary files go to" in pod.output
    assert bench.trainings()[0]["environ"]["TMPDIR"] == f"{bench.workspace}/.cache/tmp"


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="changing the user needs root"
)
def test_what_others_own_on_the_volume_stays_theirs(bench: Bench) -> None:
    """As on a volume that another program uses too."""
    volume = bench.workspace
    for name in ("models/vae", "datasets/cats", "output/theirs", "output/ours"):
        (volume / name).mkdir(parents=True)
    os.chown(volume / "output/theirs", 1234, 1234)
    (volume / "record.jsonl").touch()
    (volume / "record.jsonl").chmod(0o666)
    start_in_image(
        bench, passwd="atelier:x:1000:1000::/home/atelier:/bin/bash", user=()
    ).wait_for("waiting.")
    owners = {path: (volume / path).stat().st_uid for path in OWNED}
    assert owners == OWNED
    assert {entry["uid"] for entry in bench.record()} == {1000}


OWNED = {
    "models": 0,
    "models/vae": 0,
    "datasets": 0,
    "datasets/cats": 0,
    "output": 1000,
    "output/theirs": 1234,
    "output/ours": 1000,
    "logs": 1000,
    ".cache": 1000,
}
"""Folder -> uid after a start; datasets and models are only read."""


@pytest.mark.slow
def test_a_result_that_a_stop_would_delete_is_kept_by_waiting(bench: Bench) -> None:
    for name in ("upper", "work"):
        (bench.folder / name).mkdir()
    layers = f"lowerdir={bench.folder}/bin,upperdir={bench.folder}/upper,workdir={bench.folder}/work"
    mount = f'mount -t overlay overlay -o {layers} "$RP_WORKSPACE" || exit 77'
    pod = bench.start(setup=mount)
    if pod.process.poll() == 77:
        pytest.skip("no overlay file system here")
    pod.wait_for("waiting.")
    assert "stopping this pod deletes" in pod.output and bench.api.calls == []
    bench.waits(setup=mount, RUN_ON_SUCCESS="stop")
    assert len(bench.api.calls) == 1


CHROOT = """
    root={folder}/root
    mkdir -p "$root"
    mount -t tmpfs -o mode=755 tmpfs "$root"
    for path in /usr /bin /sbin /lib /lib64 /etc/ld.so.cache /dev /proc {python}; do
        [ -e "$path" ] || continue
        if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$root$(dirname "$path")"; touch "$root$path"; fi
        mount --rbind "$path" "$root$path"
    done
    mkdir -p "$root"/tmp "$root"/run "$root"/root "$root"/home/atelier "$root"/opt/atelier/docker "$root"/workspace
    chmod 1777 "$root"/tmp
    cp {folder}/program/run.py "$root"/opt/atelier
    cp {docker}/*.* "$root"/opt/atelier/docker
    echo 'passwd: files' >"$root"/etc/nsswitch.conf
    printf '%s\\n' root:x:0:0::/root:/bin/bash {passwd} >"$root"/etc/passwd
    printf '%s\\n' root:x:0: atelier:x:1000: >"$root"/etc/group
    mount --bind {folder}/workspace "$root"/workspace
    for hook in pre_start post_start; do echo "echo /$hook.sh as \\$(id -u)" >"$root/$hook.sh"; done
"""


def start_in_image(
    bench: Bench,
    passwd: str = "",
    user: tuple[str, ...] = ("-r",),
    more: str = "",
    who: str = "",
    **environment: str | None,
) -> Pod:
    """In a root file system laid out like the image's, with only the variables that a
    template sets."""
    python = f"{sys.base_prefix} {sys.prefix}"
    setup = dedent(CHROOT).format(
        folder=bench.folder, docker=ROOT / "docker", python=python, passwd=passwd
    )
    setup += more
    places = dict.fromkeys(["RP_WORKSPACE", "ATELIER_HOME"])
    launch = (
        f'chroot {who} "{bench.folder}/root" /bin/bash /opt/atelier/docker/start.sh'
    )
    return bench.start(
        setup=setup,
        launch=launch,
        user=user,
        **{**places, "HOME": "/root", **environment},
    )


def test_the_defaults_fit_the_layout_of_the_image(bench: Bench) -> None:
    pod = start_in_image(bench)
    pod.wait_for("waiting.")
    training = bench.trainings()[0]
    assert training["cwd"] == "/workspace" and training["argv"][-1].startswith(
        "/workspace/config/_env_"
    )
    assert (
        pod.output.index("/pre_start.sh as 0")
        < pod.output.index("checking")
        < pod.output.index("/post_start.sh as")
    )
    assert pod.output.index("/post_start.sh as") < pod.output.index(
        "training /workspace"
    )
    assert len(bench.api.calls) == 1


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="changing the user needs root"
)
@pytest.mark.parametrize("run_as", [None, "root"])
def test_the_job_gives_up_root_where_the_image_has_a_user(
    bench: Bench, run_as: str | None
) -> None:
    (bench.workspace / "output").mkdir()
    (bench.workspace / "output" / "of_an_earlier_run").write_text("by root")
    record = bench.workspace / "record.jsonl"
    record.touch()
    record.chmod(0o666)
    pod = start_in_image(
        bench,
        passwd="atelier:x:1000:1000::/home/atelier:/bin/bash",
        user=(),
        RUN_AS=run_as,
    )
    pod.wait_for("waiting.")
    uid = 0 if run_as else 1000
    assert {entry["uid"] for entry in bench.record()} == {uid}
    assert bench.trainings()[0]["environ"]["HOME"] == (
        "/root" if run_as else "/home/atelier"
    )
    assert (bench.workspace / "output" / "of_an_earlier_run").stat().st_uid == uid
    assert next((bench.workspace / "config").glob("_env_*")).stat().st_uid == uid


def test_a_hook_that_fails_keeps_the_job_from_starting(bench: Bench) -> None:
    for hook in ("pre_start", "post_start"):
        (bench.workspace / f"{hook}.sh").write_text("exit 3\n", encoding="utf-8")
        pod = bench.ends_with(1)
        assert f"{hook}.sh failed with exit code 3" in pod.output
        assert bench.trainings() == []
        (bench.workspace / f"{hook}.sh").unlink()


def test_a_defect_of_the_script_itself_waits_and_does_not_exit(bench: Bench) -> None:
    bench.command("mktemp", "exit 1")
    pod = bench.start()
    pod.wait_for("the start script failed (line")
    pod.wait_for("waiting.")
    assert pod.terminate() == 1


# ---- pages and secrets
# ----------------------------------------------------------------------------------------------


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA me@home"


def test_ssh_takes_the_public_key_and_no_password(bench: Bench) -> None:
    for name in ("sshd", "ssh-keygen"):
        bench.command(name, f'echo "$*" >>"{bench.folder}/{name}.calls"')
    pod = bench.ends_with(0, PUBLIC_KEY=KEY)
    assert "ssh is on port 22" in pod.output and KEY not in pod.output
    keys = bench.folder / "home" / ".ssh" / "authorized_keys"
    assert keys.read_text() == f"{KEY}\n" and keys.stat().st_mode & 0o77 == 0
    (call,) = bench.calls_of("sshd")
    assert "PasswordAuthentication=no" in call and "KbdInteractive" in call
    assert "PermitRootLogin=prohibit-password" in call
    bench.ends_with(0)
    assert len(bench.calls_of("sshd")) == 1


@pytest.mark.parametrize(
    ("key", "server", "said"),
    [
        (KEY, "", "there is no sshd in this image"),
        ("my password", "exit 0", "is no public key"),
        (KEY, "exit 1", "sshd did not start"),
    ],
)
def test_a_pod_trains_also_where_ssh_cannot_start(
    bench: Bench, key: str, server: str, said: str
) -> None:
    if server:
        bench.command("sshd", server)
        bench.command("ssh-keygen", "exit 0")
    assert said in bench.ends_with(0, PUBLIC_KEY=key).output
    assert len(bench.trainings()) == 1


@pytest.mark.slow
def test_tensorboard_starts_only_with_a_port(bench: Bench) -> None:
    pod = bench.ends_with(0, TENSORBOARD_PORT="6006")
    assert "TensorBoard is not installed" in pod.output
    bench.command("tensorboard")
    for port in ("http", "6006"):
        bench.waits(TENSORBOARD_PORT=port, HF_TOKEN="hf_x")
    assert bench.calls_of("tensorboard") == [
        f"--logdir {bench.workspace}/output --bind_all --port 6006"
    ]


def test_the_web_page_starts_with_a_token_that_is_made_once_and_told_once(
    bench: Bench,
) -> None:
    told = []
    for _ in range(2):
        pod = bench.waits(UI_PORT=None, JOB_CONFIG_YAML=None, FAKE_PLAN="run")
        told += [line for line in pod.output.splitlines() if "token=" in line]
        bench.wait_for_record(len(told))
        pod.terminate()
    file = bench.workspace / ".app_token"
    token = file.read_text().strip()
    address = (
        f"start: the web page: https://pod123-8675.proxy.runpod.net/?token={token}"
    )
    assert (told, len(token) >= 32, file.stat().st_mode & 0o777) == (
        [address] * 2,
        True,
        0o600,
    )
    calls = [entry for entry in bench.record() if entry.get("argv", [""])[0] == "ui"]
    assert [call["argv"] for call in calls] == [
        ["ui", "--host", "0.0.0.0", "--port", "8675"]
    ] * 2
    assert {call["environ"]["APP_AUTH"] for call in calls} == {token}
    assert all("RUNPOD_API_KEY" not in call["environ"] for call in calls)


def test_a_token_that_is_given_is_not_told(bench: Bench) -> None:
    pod = bench.waits(
        UI_PORT="8000",
        JOB_CONFIG_YAML=None,
        FAKE_PLAN="run",
        AI_TOOLKIT_AUTH="my-own-token",
    )
    assert "the web page: https://pod123-8000.proxy.runpod.net/\n" in pod.output
    assert "my-own-token" not in pod.output
    assert not (bench.workspace / ".app_token").exists()
    assert (
        bench.start(UI_PORT="http", JOB_CONFIG_YAML=None).wait_for("no web page")
        is None
    )


class Watcher(threading.Thread):
    """Collects the command lines of all processes, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue


@pytest.mark.slow
def test_no_secret_is_printed_written_or_on_a_command_line(bench: Bench) -> None:
    bench.api.answers = [500]
    secrets = {
        "RUNPOD_API_KEY": "CANARY-1",
        "HF_TOKEN": "CANARY-2",
        "PRE_START": ": CANARY-3",
        "MY_SECRET": "CANARY-4",
        "wandb_api_key": "CANARY-5",
        "POST_TRAIN": ": CANARY-11",
        "HARMLESS_NAME": "hf_CANARYCANARYCANARY",
        "PROXY_ADDRESS": "http://me:CANARY-7@127.0.0.1",
    }
    watcher = Watcher()
    watcher.start()
    # holds the whole environment, so not on the volume
    record = bench.folder / "record.jsonl"
    pod = bench.waits(**secrets, FAKE_PLAN="1 0", FAKE_RECORD=str(record))
    time.sleep(0.1)
    watcher.done.set()
    watcher.join()
    assert len(bench.api.calls) == 2

    environment = json.loads(record.read_text().splitlines()[-1])["environ"]
    assert (
        environment["HF_TOKEN"] == "CANARY-2" and environment["MY_SECRET"] == "CANARY-4"
    )
    assert not {"RUNPOD_API_KEY", "PRE_START", "POST_TRAIN"} & environment.keys()
    lines = b"\n".join(watcher.seen)
    assert (
        b"job_config.py" in lines and b"stop_pod.py" in lines and b"CANARY" not in lines
    )
    assert "CANARY" not in pod.output
    files = [
        path
        for name in ("workspace", "home")
        for path in (bench.folder / name).rglob("*")
        if path.is_file()
    ]
    assert files
    assert [path for path in files if b"CANARY" in path.read_bytes()] == []


# ---- the real trainer
# ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_job_is_terminated_started_again_finishes_and_stops_the_pod_once(
    bench: Bench, make_pictures: Callable[..., Path]
) -> None:
    make_pictures(bench.workspace / "datasets" / "2_things", "a", "b")
    trainer = {
        "type": "sd_trainer",
        "training_folder": "output",
        "device": "cpu",
        "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
        "save": {"dtype": "float32", "save_every": 1000},
        "datasets": [{"folder_path": "datasets", "resolution": 64}],
        "train": {"steps": 50, "lr": 0.001, "optimizer": "adamw", "dtype": "fp32"},
        "model": {"name_or_path": "models/tiny"},
    }
    job = {
        "job": "extension",
        "config": {
            "name": "pod",
            "process": [{"type": "tiny_model", "path": "models/tiny"}, trainer],
        },
    }
    encoded = base64.b64encode(gzip.compress(json.dumps(job).encode())).decode()
    given = {"ATELIER_HOME": None, "JOB_CONFIG_YAML": None, "JOB_CONFIG_B64": encoded}
    metrics = bench.workspace / "output" / "pod" / "metrics.jsonl"

    first = bench.start(**given)
    deadline = time.monotonic() + 90
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert first.process.poll() is None and time.monotonic() < deadline, (
            first.output
        )
        time.sleep(0.05)
    assert first.terminate() == 75
    done = len(metrics.read_text().splitlines())
    assert 5 <= done < 50 and bench.api.calls == []

    second = bench.start(**given)
    second.wait_for("waiting.", 120)
    assert len(bench.api.calls) == 1
    assert second.terminate() == 0
    assert [
        json.loads(line)["step"] for line in metrics.read_text().splitlines()
    ] == list(range(1, 51))
    assert (bench.workspace / "output" / "pod" / "pod.safetensors").stat().st_size > 0
