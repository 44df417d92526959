"""The command line as a user meets it: real runs of `run.py`, their output and exit
codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from jobs import multi_run
from run import OWN_TOOLS, main, train
from tests.conftest import ROOT, child_environment
from tests.light_start import FORBID
from tests.parts import needs_foreign_names, needs_part
from tests.processes import output_of
from toolkit.config.reading.tool import tool_parser
from toolkit.errors import UserError
from toolkit.extension import STAGES, discover
from toolkit.version import NAME, VERSION

Run = Callable[..., subprocess.CompletedProcess]
Write = Callable[..., Path]

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="signals and exit codes of POSIX"
)


@pytest.fixture
def run(run_py: Run, tmp_path: Path) -> Run:
    """`run.py` with the test's own extensions."""
    environment = {"EXTENSIONS_PATH": str(tmp_path / "drop_ins")}
    return lambda *arguments, **options: run_py(
        *arguments, env=environment | options.pop("env", {}), **options
    )


@pytest.fixture
def steps(simple_extension: Write) -> None:
    """Process types that end in different ways."""
    simple_extension("good", "print('good', self.name)")
    simple_extension(
        "crash",
        "import os\nprint('pids', os.getpid(), os.getppid(), flush=True)\n"
        "raise ValueError('boom')",
    )
    simple_extension(
        "cannot", "from toolkit.errors import RunError\nraise RunError('disk full')"
    )
    simple_extension(
        "tells",
        "print('lost', flush=True)\nopen('kept', 'w').write('kept')\nprint('lost')",
    )
    simple_extension("torchless", "import sys\nassert 'torch' not in sys.modules")


@pytest.fixture
def job(write_job: Write, steps: None) -> Callable[[str], Path]:
    """A job named after the type of its only process."""
    return lambda kind, **section: write_job({"type": kind, **section}, name=kind)


# ---------------------------------------------------------------- one config


def test_a_job_runs_and_its_name_can_be_replaced(run: Run, job) -> None:
    result = run(job("good"), "-n", "other")
    assert (result.returncode, result.stdout, result.stderr) == (0, "good other\n", "")


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [
        (">&- 2>&- <&-", []),
        (">&- 2>&-", ["--dry-run"]),
        (">&-", ["--help"]),
    ],
)
def test_closed_streams_are_as_dev_null(
    job, tmp_path: Path, closed: str, arguments: list[str]
) -> None:
    """As of a service that closes them. No file that the job opens gets the number of a
    closed one."""
    here = job("tells")
    command = [
        "sh",
        "-c",
        f'exec "$@" {closed}',
        "sh",
        sys.executable,
        ROOT / "run.py",
        here,
        *arguments,
    ]
    environment = child_environment({"EXTENSIONS_PATH": str(tmp_path / "drop_ins")})
    assert output_of(*command, env=environment, cwd=tmp_path, said="") == ""
    if not arguments:
        assert (tmp_path / "kept").read_text() == "kept"


def test_a_config_is_found_in_the_config_folder(run: Run, job, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    job("good").rename(tmp_path / "config" / "mine.yaml")
    assert run("mine").returncode == run("mine.yaml").returncode == 0
    missing = run("nowhere")
    assert missing.returncode == 2
    assert "config/nowhere" in missing.stderr


def test_a_mistake_is_exit_2_without_traceback(run: Run, job) -> None:
    path = job("example", folder_path="no_such_folder", colour="red")
    result = run(path)
    lines = result.stderr.splitlines()
    assert result.returncode == 2
    assert len(lines) == 2
    assert all(line.startswith(f"{path}:1:") for line in lines)
    assert "Traceback" not in result.stderr


def test_processes_run_in_order_in_this_process(
    run: Run, write_job: Write, steps: None, without_torch
) -> None:
    path = write_job(
        {"type": "good", "name": "a"},
        {"type": "torchless"},
        {"type": "good", "name": "b"},
    )
    assert run(path, env=without_torch).stdout == "good a\ngood b\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--no-such-flag"],
        ["a.yaml", "--memory"],
        ["a.yaml", "b.yaml", "-n", "x"],
        ["a.yaml", "-l"],
    ],
)
def test_wrong_arguments_are_exit_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: run.py")


# ---------------------------------------------------------------- foreign text

EVIL = "a\x1b[2J\x07\r\x9b1A\u202eb"


@needs_part("tools.lint")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["lnt", "pictures"],
            "lnt: neither a config nor a tool. Did you mean: run.py lint pictures",
        ),
        (["genrate"], "Did you mean: run.py generate"),
        (
            ["train", "my job.yaml"],
            "train: a job is run by its name alone. Write: run.py 'my job.yaml'",
        ),
        (["qqq"], "qqq: no such config."),
        (
            ["check", "my job.yaml"],
            "check: neither a config nor a tool. Write: run.py 'my job.yaml' --dry-run",
        ),
        (
            ["resume", "a.yaml"],
            "Write: run.py a.yaml (a job that is run again resumes)",
        ),
        (["version"], "Write: run.py --version"),
        (["lint", "x", "\u2014skip=tiny"], "begins with a long dash. Write --skip"),
        (
            ["--dry-run", "lint", "x"],
            "lint: the name of a tool comes first, and --dry-run is for jobs. Write: run.py lint x",
        ),
        (
            ["lint", "x", "--set=a=1"],
            "unknown argument '--set=a=1'. It is an option for jobs: a tool does what it does at",
        ),
        (
            ["lint", "x", "--dry-run"],
            "unknown argument '--dry-run'. It is an option for jobs: a tool does what it does at",
        ),
    ],
)
def test_a_word_that_is_nearly_a_tool_gets_the_command_that_was_meant(
    words: list[str], said: str, capsys
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


@needs_foreign_names
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--steps 5",
            "--steps: unknown flag. It is a key of a job: write '--set train.steps=VALUE'.",
        ),
        (
            "--train.steps 5",
            "--train.steps: unknown flag. It is a key of a job: write '--set train.steps=VALUE'.",
        ),
        (
            "--trigger-word x",
            "It is a key of a job: write '--set trigger_word=VALUE'.",
        ),
        (
            "--network_dim 16 --dataset_config x.toml",
            "--network_dim: unknown flag. It is a key of a job: write '--set network.network_dim=VALUE'.\n"
            "--dataset_config: unknown flag. musubi-tuner's 'dataset_config' is 'datasets' here.",
        ),
        (
            "--flip_aug",
            "--flip_aug: unknown flag. kohya's 'flip_aug' is 'datasets[].flip_x' here.",
        ),
        ("--dryrun", "--dryrun: unknown flag. Did you mean '--dry-run'?"),
        ("-dry-run", "-dry-run: unknown flag. Did you mean '--dry-run'?"),
        ("--frobnicate 5", "--frobnicate: unknown flag. run.py --help lists"),
    ],
)
def test_a_flag_that_is_a_key_of_a_job_or_of_another_program_says_where_it_belongs(
    flags: str, said: str, capsys
) -> None:
    with pytest.raises(SystemExit):
        main(["job.yaml", *flags.split()])
    assert said in capsys.readouterr().err


@needs_foreign_names
def test_a_flag_of_the_guide_beside_a_job_names_the_key(
    write_job: Write, capsys
) -> None:
    assert main([str(write_job({"type": "sd_trainer"})), "--lr", "1"]) == 2
    assert (
        "and this is a job. --lr: It is a key of a job: write '--set train.lr=VALUE'."
        in capsys.readouterr().err
    )


@needs_part("tools.new")
@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["--version"], f"{NAME} {VERSION}"),
        (["help"], "usage: run.py [options] CONFIG"),
        (["help", "new"], "usage: run.py new"),
        (["import", "--help"], "usage: run.py import"),
    ],
)
def test_help_and_version_end_with_0(words: list[str], first: str, capsys) -> None:
    try:
        code = main(words)
    except SystemExit as left:  # by argparse
        code = left.code
    assert code == 0
    assert capsys.readouterr().out.startswith(first)


def test_a_config_named_as_a_tool_nearly_is_runs(
    run: Run, write_job: Write, steps: None, tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    write_job({"type": "good"}, name="train").rename(tmp_path / "config" / "train.yaml")
    assert run("train").stdout == "good train\n"


@needs_part("tools.new")
def test_help_lists_each_tool_once_by_when_it_is_used(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out.split("\nTools (")[1].splitlines()
    named = [line.split()[0] for line in listed if line.startswith("  ")]
    assert sorted(named) == sorted([*discover().tools(), *OWN_TOOLS])
    assert [line for line in listed if line.endswith(":") and line[0] != " "] == [
        f"{stage}:" for stage in STAGES[:3]
    ]
    assert named[0] == "new" and named.index("lint") < named.index(
        "generate"
    ) < named.index("grid")


@needs_part("tools.generate")
def test_a_short_help_has_the_usual_flags_under_the_headings_of_the_long_one(
    capsys,
) -> None:
    def lines(*words: str) -> list[str]:
        with suppress(SystemExit):
            main([*words])
        return capsys.readouterr().out.splitlines()

    for tool, usual, rare, heading in (
        ((), "  --dry-run ", "  --print-schema ", "before a run:"),
        (("generate",), "  --prompt ", "  --qtype ", "model, memory and device:"),
    ):
        brief, whole = "\n".join(lines(*tool, "-h")), "\n".join(lines(*tool, "--help"))
        assert usual in brief and rare not in brief and "--help" in brief
        assert usual in whole and rare in whole and f"\n{heading}\n" in whole
    assert len(lines("generate", "-h")) < 0.5 * len(lines("generate", "--help"))


@pytest.mark.parametrize("uid", sorted(discover().tools()))
def test_the_help_of_a_tool_begins_with_what_it_does_and_an_example(
    uid: str, capsys
) -> None:
    """Its own flags stand before those of memory and compilation, each in one spelling;
    the example has no other."""
    model = discover().find_command(uid)
    assert main([uid, "--help"]) == 0
    usage, does, example, *groups = capsys.readouterr().out.split("\n\n")
    assert (
        usage.startswith(f"usage: run.py {uid} [options]")
        and len(usage.splitlines()) == 1
    )
    assert does[0].isupper() and does[0].isalpha()
    intro, line = example.splitlines()
    assert (
        intro == "Example, once the quickstart has run:"
        and line.endswith(f" {uid} {model.example}")
        and model.example
    )
    headings = [group.partition("\n")[0] for group in groups]
    assert headings == sorted(headings, key=["positional arguments:", "options:", "model, memory and device:",
                                             "compilation:", *headings[-1:]].index)  # fmt: skip
    flags = re.findall(r"^  (--\S+)", "\n".join(groups), re.M)
    assert flags and not any("_" in flag for flag in flags)
    tool_parser(uid, model).parse_args(shlex.split(model.example))


@needs_foreign_names
def test_a_flag_is_taken_in_both_spellings(tmp_path: Path, capsys) -> None:
    for flag in ("--list-extensions", "--list_extensions"):
        assert main([flag]) == 0
    with pytest.raises(SystemExit):
        main(["a.yaml", "--dry_rum", "--frobnicate", "--restart_fom=a"])
    said = capsys.readouterr().err
    for words in (
        "Did you mean '--dry-run'?",
        "--frobnicate: unknown flag. run.py --help",
        "'--restart-from'?",
    ):
        assert words in said


@pytest.mark.slow
@needs_part("tools.lint")
def test_foreign_text_reaches_the_terminal_as_escapes(
    run_py: Run, write_job, trainer, make_pictures, tmp_path
) -> None:
    """Of metadata, file and folder names, captions, values and keys of a config."""
    tensors = {
        f"diffusion_model.img_in.lora_{part}.weight": numpy.ones((2, 2), numpy.float32)
        for part in "AB"
    }
    save_file(
        tensors, tmp_path / "a.safetensors", {"ss_output_name": EVIL, "note": EVIL}
    )
    folder = make_pictures(tmp_path / EVIL, EVIL, "b")
    (folder / "b.txt").write_text(EVIL)
    for arguments, words in [
        (("inspect", "a.safetensors"), "ss_output_name"),
        (("lint", folder, "--resolution", 512), "enlarged"),
        ((write_job(trainer(folder)), "--dry-run"), "folder"),
        ((EVIL,), "is a folder, not a config file"),
    ]:
        result = run_py(*arguments)
        shown = result.stdout + result.stderr
        assert words in shown and r"a\u001b[2J" in shown, shown
        assert not set(shown) & set(
            EVIL.replace("a", "").replace("b", "").replace("[2J", "").replace("1A", "")
        ), shown


# ---------------------------------------------------------------- drop-ins


DROP_IN = """
    from toolkit.extension import Extension

    class MyExt(Extension):
        uid = "my_uid"
        name = "My Ext"

        @classmethod
        def get_process(cls):
            from .MyProc import MyProc
            return MyProc

    AI_TOOLKIT_EXTENSIONS = [
        # you can put a list of extensions here
        MyExt
    ]
"""

DROP_IN_PROCESS = """
    from collections import OrderedDict
    from jobs.process import BaseExtensionProcess
    from .words import WORD

    class MyProc(BaseExtensionProcess):
        def __init__(self, process_id: int, job, config: OrderedDict):
            super().__init__(process_id, job, config)
            assert isinstance(config, OrderedDict)
            self.count = self.get_conf('deep.count', 1, as_type=int)
            self.path = self.get_conf('some_path', required=True)

        def run(self):
            super().run()
            self.add_meta(OrderedDict(done=True))
            print(WORD, self.process_id, self.name, self.job.name, self.count, self.path, dict(self.meta))
            raise KeyError('on purpose')

        def on_error(self, e):
            print('heard', repr(e))
"""


def test_an_ostris_style_drop_in_runs(
    run: Run, write_extension: Write, write_job: Write
) -> None:
    write_extension("my_ext", DROP_IN, MyProc=DROP_IN_PROCESS, words="WORD = 'hello'")
    path = write_job(
        {"type": "my_uid", "deep": {"count": "3"}, "some_path": "x"}, meta={"by": "me"}
    )
    result = run(path)
    assert result.stdout.splitlines() == [
        "hello 0 job job 3 x {'by': 'me', 'done': True}",
        "heard KeyError('on purpose')",
    ]
    assert result.returncode == 1


def test_list_extensions(run: Run, steps: None, write_extension: Write) -> None:
    write_extension("broken", "1 / 0")
    result = run("--list-extensions")
    assert result.returncode == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert rows["good"].endswith("drop_ins/good")
    assert "ZeroDivisionError: division by zero" in rows["broken"]
    assert "example" in rows


# ---------------------------------------------------------------- plans and schema


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing torch fails, and so does using the network."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FORBID)
    return {"PYTHONPATH": str(folder), "EXTENSIONS_PATH": str(tmp_path / "drop_ins")}


@pytest.mark.parametrize("arguments", [["--dry-run", "--json"], ["--list-extensions"]])
def test_planning_needs_neither_torch_nor_network(
    run_py: Run,
    job,
    without_torch: dict[str, str],
    arguments: list[str],
    tmp_path: Path,
) -> None:
    path = job("example", folder_path=str(tmp_path))
    jobs = [path] if "--dry-run" in arguments else []
    result = run_py(*jobs, *arguments, env=without_torch)
    assert (result.returncode, result.stderr) == (0, "")


IMPORTED = """
import atexit, sys
names = {"torch", "pydantic", "yaml"}
atexit.register(lambda: print("imported:", names & {*sys.modules}, file=sys.stderr))
"""


def test_help_imports_neither_pydantic_nor_yaml(run_py: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(IMPORTED)
    result = run_py("--help", env={"PYTHONPATH": str(tmp_path)})
    assert (result.returncode, result.stderr) == (0, "imported: set()\n")


@pytest.mark.slow
def test_the_schema_needs_no_torch_and_names_the_types(
    run_py: Run, without_torch: dict[str, str]
) -> None:
    result = run_py("--print-schema", env=without_torch)
    assert result.returncode == 0
    assert "folder_path" in json.dumps(json.loads(result.stdout))


def test_dry_run_writes_nothing(run: Run, job, tmp_path: Path) -> None:
    path = job("good")
    before = sorted(tmp_path.rglob("*"))
    result = run(path, "--dry-run", env={"PYTHONDONTWRITEBYTECODE": ""})
    assert result.stdout == "good (good)\n"
    assert sorted(tmp_path.rglob("*")) == before


LOUD = """
    from toolkit.extension import Extension

    print("noise")


    class Loud(Extension):
        uid = "loud"
        process = ".process:Process"


    AI_TOOLKIT_EXTENSIONS = [Loud]
"""


def test_json_holds_one_object_and_nothing_else(
    run: Run, job, write_extension: Write
) -> None:
    write_extension("loud", LOUD, process="class Process: pass")
    path = job("loud", name="first")
    result = run(path, "--dry-run", "--json")
    assert json.loads(result.stdout) == {
        "file": str(path),
        "job": "loud",
        "folders": [],
        "processes": [
            {
                "type": "loud",
                "name": "first",
                "datasets": [],
                "samples_per_epoch": 0,
                "micro_batches_per_epoch": 0,
                "optimizer_steps": 0,
                "epochs": 0,
                "notes": [],
                "warnings": [],
            }
        ],
        "errors": [],
    }
    assert result.stderr == "noise\n"


def test_json_of_several_is_a_list_with_the_errors_of_each(run: Run, job) -> None:
    configs = [job("good"), job("nobody"), job("crash")]
    result = run(*configs, "--dry-run", "--json")
    assert result.returncode == 2
    plans = json.loads(result.stdout)
    assert [plan.get("job") for plan in plans] == ["good", None, "crash"]
    assert [len(plan["errors"]) for plan in plans] == [0, 1, 0]
    assert "crash.yaml: done" in result.stderr
    alone = run(configs[1], "--dry-run", "--json")
    assert (alone.returncode, json.loads(alone.stdout)) == (2, plans[1])


# ---------------------------------------------------------------- several configs


@pytest.mark.slow
def test_the_first_failure_ends_a_series_and_the_log_holds_all_output(
    run: Run, job, tmp_path: Path
) -> None:
    log = ("--log", "logs/all.txt")
    assert run(job("nobody"), *log).returncode == 2
    result = run(job("good"), job("crash"), job("torchless"), *log)
    assert result.returncode == 1
    assert [line.split("/")[-1] for line in result.stdout.splitlines()[-3:]] == [
        "good.yaml: done",
        "crash.yaml: failed (exit code 1)",
        "torchless.yaml: not run",
    ]
    text = (tmp_path / "logs" / "all.txt").read_text()
    for words in (
        "unknown process type 'nobody'",  # of the run before
        "good good\n",
        "Traceback",
        "Failed: ValueError: boom\n",
        "good.yaml: done\n",
    ):
        assert text.count(words) == 1, words


@pytest.mark.slow
def test_recover_runs_the_rest_and_still_returns_the_first_failure(
    run: Run, job, simple_extension: Write
) -> None:
    """Each has an interpreter of its own, which does without the same names."""
    simple_extension("pids", "import os\nprint('pids', os.getpid(), os.getppid())")
    result = run(job("tells"), "-r", job("crash"), job("pids"), "--without", "tells")
    assert result.returncode == 2
    assert "'--without tells' leaves it out." in result.stderr
    assert "lost" not in result.stdout
    *lines, first, second, third = result.stdout.splitlines()
    assert [line.split(": ")[-1] for line in (first, second, third)] == [
        "mistake in the config (exit code 2)",
        "failed (exit code 1)",
        "done",
    ]
    pids = [line.split()[1:] for line in lines if line.startswith("pids")]
    (one, parent), (other, same) = pids
    assert one != other and parent == same


def test_nothing_of_a_series_runs_where_one_config_has_a_mistake(
    run: Run, job, write_job: Write, trainer
) -> None:
    """Mistakes in the text, a name of no file, images that are only missed by the plan:
    all are reported at once."""
    empty = job("good").with_name("empty")
    empty.mkdir()
    wrong, plan = (
        write_job({"type": "good"}, name="no_key", konfig=1),
        write_job(trainer(empty), name="plan"),
    )
    result = run(job("good"), wrong, plan, "nosuch.yaml")
    assert result.returncode == 2 and "good good" not in result.stdout
    assert [line.split("/")[-1] for line in result.stdout.splitlines()] == [
        "good.yaml: not run",
        "no_key.yaml: mistake in the config (exit code 2)",
        "plan.yaml: mistake in the config (exit code 2)",
        "nosuch.yaml: mistake in the config (exit code 2)",
    ]
    first, *others = [line for line in result.stderr.splitlines() if ": " in line]
    assert (
        first
        == f"{wrong}:1:83: konfig: unknown key. Did you mean 'config'? Known names: config, job, meta."
    )
    assert any(
        line.startswith(f"{plan}:") and "holds no images" in line for line in others
    ), others
    assert any(line.startswith("nosuch.yaml: no such config.") for line in others)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"datasets": [{"folder_path": "empty"}]}, "'empty': holds no images"),
        ({"device": "cuda:7"}, "this will not start: device: cuda:7"),
        (
            {"resume": 7},
            "this will not start: resume: output/two/second/state/step_000000007 cannot be used",
        ),
    ],
)
def test_no_process_of_a_job_runs_where_a_later_one_cannot(
    run: Run,
    steps: None,
    write_job: Write,
    trainer,
    make_pictures,
    tmp_path: Path,
    change: dict,
    told: str,
) -> None:
    (tmp_path / "empty").mkdir()
    section = trainer(make_pictures(tmp_path / "photos", "a")) | {"name": "second"}
    two = write_job({"type": "good"}, section | change, name="two")
    result = run(two)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{two}:") and told in result.stderr


def test_a_config_of_a_series_may_read_what_an_earlier_one_writes(
    write_job: Write,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file that the second starts from exists only when the first has run; each
    would run in its own interpreter."""
    photos = make_pictures(tmp_path / "photos", "a")
    first = write_job(
        trainer(photos, train={"steps": 1, "disable_sampling": True}), name="first"
    )
    section = trainer(photos, train={"steps": 1, "disable_sampling": True})
    section["network"]["pretrained_lora_path"] = str(
        tmp_path / "output" / "first" / "first.safetensors"
    )
    second = write_job(section, name="second")
    ran = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        multi_run, "ChildRunner", lambda command: lambda job: ran.append(job) or 0
    )
    assert main([str(second), "--dry-run"]) == main([str(second), str(first)]) == 2
    assert ran == []
    assert main([str(first), str(second), "--dry-run"]) == 0
    assert main([str(first), str(second)]) == 0
    assert ran == [str(first), str(second)]


def test_two_jobs_of_a_command_that_write_one_run_are_refused_before_either_trains(
    write_job: Write,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd,
) -> None:
    """A copied job whose name was not changed; several processes share the state of the
    job, whatever their names; a link leads to the same folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    os.symlink("output", "link")
    ran = []
    monkeypatch.setattr(
        multi_run, "ChildRunner", lambda command: lambda job: ran.append(job) or 0
    )
    section = trainer(make_pictures(tmp_path / "photos", "a"), train={"steps": 1})
    a, b = section | {"name": "a"}, section | {"name": "b"}

    def written(file: str, *processes: dict, name: str = "night") -> str:
        path = write_job(*processes, name=name)
        return str(path.rename(tmp_path / f"{file}.yaml"))

    one = written("one", section)
    for two in (
        written("two", section | {"training_seed": 2}),
        written("three", a, b),
        written("night", section | {"training_folder": "link"}),
    ):
        assert main([one, two, "--dry-run"]) == main([one, two]) == 2
        err = capfd.readouterr().err.splitlines()
        refused, again = (line for line in err if "run it alone" in line)
        assert refused == again and not ran
        said, remedy = refused.split("or run it alone: ")
        assert said.startswith(f"{two}: writes '") and f"as {one} does." in said
        assert main([*shlex.split(remedy)[2:], "--dry-run"]) == 0
        assert shlex.split(remedy)[-1] in capfd.readouterr().out.split("\n")[0]
    other = written("other", section | {"training_folder": "elsewhere"})
    assert main([one, other]) == main([one, one, "--dry-run"]) == 0
    assert ran == [one, other]


# ---------------------------------------------------------------- the log


def test_a_log_may_have_a_bare_name_and_has_to_be_a_file(
    run: Run, job, tmp_path: Path
) -> None:
    result = run(job("cannot"), "-l", "bare.txt")
    assert (result.returncode, result.stderr) == (1, "disk full\n")
    assert (tmp_path / "bare.txt").read_text() == result.stderr
    result = run(job("good"), "-l", tmp_path)
    assert result.returncode == 2 and "cannot write the log" in result.stderr


# ---------------------------------------------------------------- signals

WAITS = """
import time
try:
    print('ready', flush=True)
    while True:  # not one long sleep: a signal just before it begins would be handled after it
        time.sleep(0.1)
finally:
    print('cleaned up', flush=True)
"""

SAVES = """
import time
from toolkit.system import signals
from toolkit.errors import Interrupted
with signals.defer_signals() as request:
    print('ready', flush=True)
    while not request.requested:
        time.sleep(0.01)
    print('saved', flush=True)
raise Interrupted(request.exit_code)
"""


@pytest.fixture
def start(tmp_path: Path, write_job: Write, simple_extension: Write):
    """Starts `run.py` on jobs that wait for a signal, and returns it once the first of
    them is ready."""
    simple_extension("waits", WAITS)
    simple_extension("saves", SAVES)
    started = []

    def start(*kinds: str) -> subprocess.Popen:
        root = Path(__file__).resolve().parent.parent
        jobs = [
            write_job({"type": kind}, name=f"{index}_{kind}")
            for index, kind in enumerate(kinds)
        ]
        process = subprocess.Popen(
            [sys.executable, str(root / "run.py"), *map(str, jobs)],
            cwd=tmp_path,
            env={**os.environ, "EXTENSIONS_PATH": str(tmp_path / "drop_ins")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [("waits", signal.SIGINT, 130), ("saves", signal.SIGTERM, 75)],
)
def test_a_signal_ends_one_config_with_its_code(
    start, kind: str, number: int, code: int
) -> None:
    process = start(kind)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert output == {"waits": "cleaned up\n", "saves": "saved\n"}[kind]
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_series_forwards_the_signal_and_starts_no_further_one(start) -> None:
    process = start("saves", "waits")
    # as a terminal does: the child must not get it a second time
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.splitlines()[0] == "saved"
    assert output.splitlines()[-1].endswith("not run")


# ---------------------------------------------------------------- texts that are not
# paths


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "x" * 5000], "is neither a file nor a command that can be read"),
        (["import", "/dev/zero"], "neither a file nor a pipe"),
        (["/dev/zero", "--dry-run"], "neither a file nor a pipe"),
        (["import", "/proc/self/mem"], "cannot be read: Input/output error"),
        (["import", "deep.toml"], "deep.toml:1:1: nested deeper than 64 levels."),
        (["import", "deep.json"], "nested deeper than 64 levels"),
        (["import", "deep.toml", "-o", "y" * 300], "--output: 'yyyyyyyy"),
        (
            ["import", "deep.toml", "-o", "~nobody-of-this-name/x"],
            "--output: '~nobody-of-this-name/x' begins with",
        ),
    ],
)
def test_what_is_no_config_and_no_path_is_one_line(
    words: list[str], said: str, tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep.toml").write_text("a = " + "[" * 2000)
    Path("deep.json").write_text('{"a": ' + "[" * 2000)
    assert main(words) == 2
    errors = capfd.readouterr().err
    assert said in errors and len(errors.splitlines()) == 1, errors


@needs_part("tools.lora_tools")
def test_a_name_that_fills_screens_is_cut_in_the_error(tmp_path, capfd) -> None:
    from toolkit.files.safetensors_io import framed

    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    (tmp_path / "x.safetensors").write_bytes(framed(json.dumps({"n" * 50_000: entry})))
    assert main(["inspect", str(tmp_path / "x.safetensors")]) == 2
    errors = capfd.readouterr().err
    assert "nnn..." in errors and len(errors) < 2000


def test_a_pipe_is_read_once(
    write_job: Write, steps: None, tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.setenv("EXTENSIONS_PATH", str(tmp_path / "drop_ins"))
    path, pipe = write_job({"type": "good"}, name="good"), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"cat {path} > {pipe}"])
    assert main(["import", str(pipe)]) == 0
    assert "- type: good" in capfd.readouterr().out and writer.wait(30) == 0


# ---------------------------------------------------------------- --without


def test_without_hides_a_type_everywhere(run: Run, job) -> None:
    listed = run("--without", "good", "--list-extensions").stdout.splitlines()
    assert {"crash", "cannot"} <= {
        line.split()[0] for line in listed
    } and "good" not in [line[:4] for line in listed]
    result = run(job("good"), "--without", "good", "--without=crash")
    assert (result.returncode, result.stdout) == (2, "")
    first, *others = result.stderr.splitlines()
    assert (
        "process[0].type: unknown process type 'good'" in first and "crash" not in first
    )
    assert "'--without good' leaves it out." in others
    assert run(job("good"), "--without", "crash").stdout == "good good\n"


@needs_part("tools.grid")
def test_without_hides_a_tool_of_the_help_and_of_the_command_line(run: Run) -> None:
    assert "\n  grid " in run("--help").stdout
    shown = run("--without", "grid", "--help")
    assert (
        shown.returncode == 0
        and "\n  grid " not in shown.stdout
        and "\n  report " in shown.stdout
    )
    result = run("--without", "grid", "grid", "--lora", "x")
    assert (result.returncode, result.stderr) == (
        2,
        "grid: neither a config nor a tool. '--without grid' leaves it out.\n",
    )
    assert run("grid", "--help", "--without", "report").stdout.startswith("usage:")


@needs_part("tools.grid")
def test_without_takes_known_names_alone(run: Run) -> None:
    result = run("--without", "gird", "--list-extensions")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "--without gird: there is no such extension. Did you mean 'grid'? Known names: "
    )
    assert "expected one argument" in run("--without").stderr


@pytest.mark.slow
def test_jobs_are_trained_from_python_one_after_another(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_py: Run
) -> None:
    """A job as a mapping, one with a mistake, and one in a file; the last is the same
    as in a process of its own."""
    monkeypatch.chdir(tmp_path)
    process = {
        "type": "sd_trainer",
        "training_folder": tmp_path / "out",
        "device": "cpu",
        "training_seed": 7,
        "model": {"name_or_path": tiny_model},
        "network": {"linear": 2},
        "datasets": [
            {"folder_path": ROOT / "config/examples/pairs/after", "resolution": 64}
        ],
        "train": {"steps": 2, "disable_sampling": True},
        "logging": {"report": False},
    }
    job = {"job": "extension", "config": {"name": "one", "process": [process]}}
    handler = signal.getsignal(signal.SIGINT)
    one = train(job)
    assert (one.exit_code, one.folder) == (0, tmp_path / "out" / "one")
    bad = train(job, "--set", "train.lr=fast")
    assert (bad.exit_code, bad.folder) == (2, None)
    assert "'fast'" in bad.answer["errors"][0]["message"]
    assert signal.getsignal(signal.SIGINT) is handler
    kept = one.folder / "config.yaml"
    two = train(kept, "--name", "two")
    assert (two.exit_code, two.answer["errors"]) == (0, [])
    assert run_py(str(kept), "--name", "three").returncode == 0
    weights = [
        (tmp_path / "out" / name / f"{name}.safetensors") for name in ("two", "three")
    ]
    tensors = [load_file(path) for path in weights]
    assert tensors[0].keys() == tensors[1].keys()
    for key, tensor in tensors[0].items():
        assert numpy.array_equal(tensor, tensors[1][key])
    with pytest.raises(UserError, match="one run of one job"):
        train(kept, "--dry-run")
    with pytest.raises(UserError, match="--nonsense is refused"):
        train(kept, "--nonsense")
