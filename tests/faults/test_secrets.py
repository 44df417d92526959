"""Secrets never get out: every byte of what a job leaves behind is read for canaries.

What the canaries are made of (CORES) is looked for, so that an escaped or cut-off one
is found as well.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import exit
from tests.faults.nursery import Child
from toolkit.files.safetensors_io import read_metadata
from toolkit.files.writing import write_json

Run = Callable[..., subprocess.CompletedProcess]

NASTY = 'zebra7 it\'s "quartz8" \\walrus9 ü'
LITERAL = "hf_" + "Lit3ral" * 5
COMMENT = "hf_" + "C0mment" * 5
WANDB = "c0ffee99" * 5
ENVIRONMENT = {
    "MY_TOKEN": NASTY,
    "db_password": "pelican44",
    "HF_TOKEN": "heron55-not-of-the-usual-shape",
    "WANDB_API_KEY": "ibis66" * 6,
    "WANDB_MODE": "offline",
    "PLAIN": "ordinary77",
}
CORES = (
    "zebra7",
    "quartz8",
    "walrus9",
    "pelican44",
    "okapi88",
    "pangolin",
    "heron55",
    "ibis66",
    "Lit3ral",
    "C0mment",
    "c0ffee99",
    "marmot33",
)


def leaks(*places: Path | str) -> list[str]:
    """The cores that are somewhere in these folders, files (their names and bytes) and
    texts."""
    found = []
    for place in places:
        files = [place, *place.rglob("*")] if isinstance(place, Path) else []
        texts = [str(path.relative_to(place.parent)).encode() for path in files]
        texts += [path.read_bytes() for path in files if path.is_file()]
        texts += [place.encode()] if isinstance(place, str) else []
        found += [
            f"{core} in {text[:200]!r}"
            for text in texts
            for core in CORES
            if core.encode() in text
        ]
    return found


@pytest.fixture
def run_py(start_py: Callable[..., Child]) -> Run:
    """Runs `run.py`, forked, with more in the environment: nothing of that is read when
    modules are imported."""

    def run(*arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess:
        child = start_py(*arguments, env=env)
        return subprocess.CompletedProcess(arguments, child.wait(), *child.outputs)

    return run


def comment_on(job: Path) -> None:
    """Puts a comment with a token into a config."""
    job.write_text(
        f"# mine: {COMMENT}\n{job.read_text(encoding='utf-8')}", encoding="utf-8"
    )


@pytest.fixture
def talker(simple_extension, tmp_path: Path) -> Callable[..., dict]:
    """A drop-in without a config model that says all it knows in many ways, and then
    fails."""

    def section(
        last_words: str = "raise RuntimeError(f'failed with {self.config}')",
    ) -> dict:
        simple_extension(
            "talker",
            f"""
            import logging, os, sys, threading, warnings
            from pathlib import Path
            from toolkit.files.writing import append_json_line, write_json, write_text
            token = self.config["token"]
            print(self.config, self.job.raw_config, repr(token), [token])
            print(self.config, file=sys.stderr)
            for piece in (token[:9], token[9:14], token[14:]):
                sys.stdout.write(piece)
                sys.stdout.flush()
            sys.stdout.write("\\n")
            print(f"\\r{{token}}\\r", end="", flush=True)
            print(os.environ["HF_TOKEN"], os.environ["WANDB_API_KEY"])
            logging.getLogger("x").warning("token %s", token)
            warnings.warn(token)
            thread = threading.Thread(target=int, args=(token,))
            thread.start()
            thread.join()
            write_json(Path("output/talker.json"), [self.config, {{"n": 1}}])
            write_text(Path("output/talker.txt"), f"{{self.config}} " + token)
            with Path("output/talker.jsonl").open("w") as file:
                append_json_line(file, {{"config": self.config}})
            self.print = token.upper  # left over in locals of the traceback
            {last_words}
            """,
        )
        return {
            "type": "talker",
            "token": "${MY_TOKEN}",
            "folder_path": "/data/${MY_TOKEN}/x",
            "url": "https://me:${db_password}@host/",
            "default": "${A_SECRET:-marmot33-x}",
            "plain": "${PLAIN}",
            "literal": LITERAL,
            "login": {"client_secret": "okapi88-written-out", "api_key": 1e22},
            "wandb": WANDB,
        }

    return section


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    home = tmp_path / "home"  # where libraries keep what they log
    return {
        **ENVIRONMENT,
        "EXTENSIONS_PATH": str(tmp_path / "drop_ins"),
        "HOME": str(home),
        **more,
    }


# ------------------------------------------------------------ a job that talks and
# fails


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["a.yaml"], ["a.yaml", "b.yaml", "-r"], ["--dry-run", "--json", "a.yaml"]],
)
def test_what_a_drop_in_says_and_raises_is_without_secrets(
    talker, write_job, run_py: Run, tmp_path: Path, arguments: list[str]
) -> None:
    for name in ("a", "b"):
        comment_on(
            write_job(
                talker() if name == "a" else {"type": "talker", "token": "${MY_TOKEN}"},
                name=name,
            )
        )
    result = run_py(*arguments, "-l", "log.txt", env=environment(tmp_path))
    assert (
        leaks(result.stdout, result.stderr, tmp_path / "log.txt", tmp_path / "output")
        == []
    )
    if "--dry-run" in arguments:
        assert json.loads(result.stdout)["job"] == "a"
        return
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "RuntimeError: failed with" in result.stderr
    for text in (result.stdout, (tmp_path / "log.txt").read_text(encoding="utf-8")):
        assert text.count("<redacted>") > 8 and "\n<redacted>\n" in text
        assert "ordinary77" in text
    assert json.loads(
        (tmp_path / "output" / "talker.json").read_text(encoding="utf-8")
    )[1] == {"n": 1}


def test_a_job_that_ends_in_the_middle_of_a_line_still_shows_it(
    talker, write_job, run_py: Run, tmp_path: Path
) -> None:
    job = write_job(talker("print('the end', end='')"))
    assert run_py(job, env=environment(tmp_path)).stdout.endswith("the end")


# ------------------------------------------------------------ errors in a config


def test_messages_about_a_config_are_without_secrets(
    trainer, write_job, run_py: Run, make_pictures, tmp_path: Path
) -> None:
    section = trainer(
        make_pictures(tmp_path / "photos", "a"),
        train={"lr": "${MY_TOKEN}", "steps": "${db_password}"},
    )
    section["logging"] = {"wandb_api_key": WANDB}
    section["sample"] = {"sampler": f"{'x' * 90}${{HF_TOKEN}}"}
    section["network"] = {"type": LITERAL, "linear": "no ${MY_TOKEN}"}
    section["datasets"].append({"folder_path": "photos/${MY_TOKEN}"})
    result = run_py(write_job(section), "-l", "log.txt", env=environment(tmp_path))
    assert result.returncode == 2 and result.stderr.count("<redacted>") >= 5
    assert leaks(result.stdout, result.stderr, tmp_path / "log.txt") == []


def test_a_mistake_on_the_command_line_is_shown_without_secrets(
    run_py: Run, tmp_path: Path
) -> None:
    result = run_py(f"--{LITERAL}", ENVIRONMENT["HF_TOKEN"], env=environment(tmp_path))
    assert result.returncode == 2 and "--<redacted>" in result.stderr
    assert leaks(result.stderr) == []


@pytest.mark.parametrize(
    "place",
    [
        "training_folder",
        "-n",
        *(
            pytest.param(place, marks=pytest.mark.slow)
            for place in ("process name", "drop-in")
        ),
    ],
)
def test_a_secret_is_no_name_of_a_folder(
    trainer, talker, write_job, run_py: Run, tmp_path: Path, place: str
) -> None:
    section = talker() if place == "drop-in" else trainer(tmp_path)
    section |= (
        {"training_folder": "out/${MY_TOKEN}"}
        if place in ("training_folder", "drop-in")
        else {}
    )
    section |= {"name": "${db_password}"} if place == "process name" else {}
    job = write_job(section, name="job")
    arguments = ["-n", LITERAL] if place == "-n" else []
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    result = run_py(job, *arguments, env=environment(tmp_path))
    assert (
        result.returncode == 2
        and "folder names are visible on the disk" in result.stderr
    )
    assert leaks(result.stdout, result.stderr) == []
    assert {
        path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts
    } == before


# ------------------------------------------------------------ a job that trains


@pytest.fixture
def training_job(
    trainer, make_pictures, write_job, tmp_path: Path
) -> Callable[..., Path]:
    def write(steps: int) -> Path:
        section = trainer(
            make_pictures(tmp_path / "photos", "a", "b"),
            train={"steps": steps, "lr": 0.01},
            trigger_word="${MY_TOKEN}",
            save={"dtype": "float32", "save_every": 1},
            sample={
                "sample_every": 1,
                "sample_steps": 1,
                "width": 64,
                "height": 64,
                "guidance_scale": 1,
                "prompts": ["[trigger] with ${db_password} ${PLAIN}", f"and {LITERAL}"],
            },
            logging={
                "log_with": "all",
                "logging_dir": "output/tb",
                "wandb_api_key": WANDB,
            },
        )
        meta = {
            "author": "${MY_TOKEN} of ${PLAIN}",
            "api_key": "pangolin",
            "tags": [LITERAL],
            "id": WANDB,
        }
        job = write_job(section, meta=meta)
        comment_on(job)
        return job

    return write


@pytest.mark.slow
def test_a_trained_run_holds_no_secret_and_goes_on_as_the_same_job(
    training_job, run_py: Run, tmp_path: Path
) -> None:
    run = tmp_path / "output" / "job"
    result = run_py(training_job(2), "-l", "log.txt", env=environment(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (
        leaks(
            result.stdout,
            result.stderr,
            tmp_path / "log.txt",
            tmp_path / "output",
            tmp_path / "home",
        )
        == []
    )
    assert list((run / "wandb").glob("offline-run-*/*.wandb")) and list(
        (tmp_path / "output" / "tb" / "job").iterdir()
    )

    config = (run / "config.yaml").read_text(encoding="utf-8")
    assert config.startswith("# mine: <redacted>\n")
    assert (
        "[trigger] with ${db_password} ${PLAIN}" in config
        and '"trigger_word": "${MY_TOKEN}"' in config
    )
    metadata = read_metadata(run / "job.safetensors")
    assert metadata["author"] == "${MY_TOKEN} of ${PLAIN}"
    assert metadata["trigger_word"] == "${MY_TOKEN}"
    assert (metadata["api_key"], metadata["tags"], metadata["id"]) == (
        "<redacted>",
        '["<redacted>"]',
        "<redacted>",
    )
    assert re.fullmatch(r"[0-9a-f]{64}", metadata["sha256"])
    document = json.loads(
        (run / "state" / "step_000000002" / "state.json").read_text(encoding="utf-8")
    )
    assert document["settings"]["trigger_word"] == "<redacted>"
    prompts = [sample["prompt"] for sample in document["settings"]["sample"]["samples"]]
    assert prompts == ["[trigger] with <redacted> ordinary77", "and <redacted>"]
    assert document["seed"] == 3 and document["state"]["step"] == 2
    assert all(
        re.fullmatch(r"\d{9}_\d\.jpg", path.name)
        for path in (run / "samples").iterdir()
    )

    # The secret was replaced by another one, and the job goes on: only its length has
    # changed.
    result = run_py(
        training_job(3), env=environment(tmp_path, db_password="marmot33-new")
    )
    assert result.returncode == 0, result.stderr
    assert "resuming from" in result.stdout
    assert re.findall("changed since the last run: (.*)", result.stdout) == [
        "train.steps: 2 -> 3"
    ]
    assert leaks(result.stdout, result.stderr, tmp_path / "output") == []


def test_a_message_is_without_secrets_before_it_reaches_a_stream(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exit.report(RuntimeError(LITERAL))
    assert "RuntimeError: <redacted>" in (said := capsys.readouterr().err)
    assert leaks(said) == []


def test_a_state_from_before_the_secret_was_known_is_of_the_same_job(
    said: list[str],
) -> None:
    from toolkit.train import resumption

    settings = {"trigger_word": LITERAL, "train": {"lr": 1.0}}
    section = SimpleNamespace(
        recorded_settings=lambda: settings, model_dump=lambda **_: settings
    )
    assert resumption._differences({"settings": settings}, section, None) == []
    record = resumption.ResumePlan.of(resumption.Start(None), section, {}).record
    assert said == [] and record["settings"]["trigger_word"] == "<redacted>"


def test_a_dataset_in_a_folder_with_a_secret_is_compared_as_it_was_recorded(
    tmp_path: Path,
) -> None:
    from toolkit.train import resumption

    found = {f"{LITERAL}/a.png": "1", f"{LITERAL}/b.png": "2"}
    write_json(tmp_path / "old.json", found)
    assert leaks((tmp_path / "old.json").read_text()) == []
    assert resumption._change(tmp_path / "old.json", found) == ""
