"""Every slip of the first hour is answered with its place, its value, and what to
write; and what is to be written works. Every message of the program with a remedy has
such a row, or a test that it names."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from string import Formatter

import pytest

from jobs.dry_run import plan_job
from tests.conftest import ROOT
from tests.first_hour import (
    COMMANDS,
    JOB,
    JOBS,
    MEANT,
    Slip,
    images,
    job_with,
    slips_of_parts,
)
from toolkit.config import load_job
from toolkit.errors import UserError
from toolkit.extension import discover

pytestmark = pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")

ANSWERS: dict[str, str] = {}
"""What was answered so far, for the test that comes last: a test of one slip alone
finds nothing to compare."""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", str(tmp_path))
    images(tmp_path)
    return tmp_path


@cache
def quiet() -> frozenset[str]:
    """The warnings of JOB itself, without numbers."""
    return frozenset(without_numbers(line) for line in told(JOB)[1])


def without_numbers(line: str) -> str:
    return re.sub(r"\d[\d.,]*", "N", re.sub(r"^.*?: process", "process", line))


def told(text: str) -> tuple[list[str], list[str]]:
    """The errors of a job, or of its plan, and the warnings of both."""
    Path("job.yaml").write_text(text, encoding="utf-8")
    try:
        config = load_job("job.yaml", discover().find_config)
        plan = plan_job(config)
    except UserError as error:
        return str(error).splitlines(), []
    return [], [
        *config.warnings,
        *(
            line
            for process in plan.processes
            for line in process._notes_and_warnings()[1]
        ),
    ]


def answer(text: str) -> list[str]:
    """What a job is answered that JOB is not."""
    errors, warnings = told(text)
    return [
        line for line in (*errors, *warnings) if without_numbers(line) not in quiet()
    ]


def named(slip: Slip) -> str:
    return slip.written.replace("\n", " ")


REMEDY = re.compile(r"[Ww]rite (?:'([^']+)'|([-\w.+]+?))(?=[.,;:]? |[.,;:]?$)")
"""What stands behind 'Write', in quotes or as one word."""

IN_WORDS = {"key: value", "value", "a", "one", "its", "the"}
"""Words that begin a description of what to write."""


@pytest.mark.parametrize("slip", JOBS, ids=named)
def test_a_slip_in_a_job_is_answered_with_what_works(slip: Slip, work: Path) -> None:
    """The answer names the place, and with what it says to write the job is right."""
    found = answer(job_with(slip.line, slip.written))
    [said] = [line for line in found if slip.answer in line] or [
        f"it is not in {found}"
    ]
    assert slip.answer in said, said
    assert re.match(r"job\.yaml:\d+:\d+: |warning: ", said), said
    ANSWERS[named(slip)] = "\n".join(found)
    # Of several remedies one is put into the job.
    words = {quoted or word for quoted, word in REMEDY.findall(said)} - IN_WORDS
    words = {word for word in words if "..." not in word}
    assert not words or " or " in said or any(word in slip.instead for word in words), (
        words
    )
    instead = job_with(slip.line, slip.instead)
    if "preference: {" in instead:  # which needs pairs
        instead = instead.replace("caption_ext: txt", "captions_file: pairs.csv")
    errors, warnings = told(instead)
    assert errors == [] and not [line for line in warnings if slip.answer in line]


@pytest.mark.parametrize("slip", MEANT, ids=named)
def test_another_way_of_writing_is_understood(slip: Slip, work: Path) -> None:
    assert answer(job_with(slip.line, slip.written)) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_slip_on_the_command_line_is_answered(
    command: str, work: Path, run_py: Callable[..., subprocess.CompletedProcess]
) -> None:
    (work / "job.yaml").write_text(JOB, encoding="utf-8")
    (work / "README.md").write_text("# A page\n\nSome text: yes\n", encoding="utf-8")
    (work / "prompts.yaml").write_text("sample: a\n", encoding="utf-8")
    run = work / "output" / "other"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"status": "done"}')
    (run / "other.safetensors").touch()
    said = run_py(*shlex.split(command))
    assert said.returncode in (0, 1, 2) and "Traceback" not in said.stderr, said.stderr
    ANSWERS[command] = said.stdout + said.stderr
    assert COMMANDS[command] in ANSWERS[command], ANSWERS[command]
    assert not (work / "output" / "my_char").exists()


def test_what_stands_behind_a_flag_is_no_slip(
    work: Path, run_py: Callable[..., subprocess.CompletedProcess]
) -> None:
    (work / "job.yaml").write_text(JOB, encoding="utf-8")
    assert run_py("--map", "data=/mnt/data", "job.yaml", "--dry-run").returncode == 0


# ---------------------------------------------------------------- every message with a
# remedy

CONFIG, DATA = "toolkit/config", "toolkit/data"

ELSEWHERE: dict[str, str] = {
    "write whole numbers from 1 on": "jobs/test_sweep.py",
    "is not FIRST-LAST:STRENGTH. Write 0-9:0.5": "extensions/tools/lora_tools/test_scale.py",
    "the first block comes first": "extensions/tools/lora_tools/test_scale.py",
    "Write '- type: ": f"{CONFIG}/reading/test_loader.py",
    "is a mapping, and 'prompts' are texts. Write it in 'samples'": f"{CONFIG}/reading/test_normalise.py",
    "Write '- ": f"{CONFIG}/reading/test_normalise.py",
    "is not a file": f"{CONFIG}/sections/test_dataset.py",
    "Write all shards as a list of 'url'": f"{CONFIG}/sections/test_dataset.py",
    "is text": "jobs/process/test_base.py",
    "begins an escape within double quotes. Write '/', or use single": f"{CONFIG}/reading/test_yaml_reader.py",
    "no '=' follows the key.": f"{CONFIG}/reading/test_toml_reader.py",
    "is not a confidence": f"{CONFIG}/sections/test_train.py",
    "Write a space after the '-' of": f"{CONFIG}/reading/test_normalise.py",
    "'---' begins a second document. Write one job per file; run.py": f"{CONFIG}/reading/test_yaml_reader.py",
    "not the dotted path of a": "toolkit/optim/test_optimizer_args.py",
    "holds no 'caption' of": f"{DATA}/scan/test_captions.py",
    ". Write 1, 0 or": f"{DATA}/scan/test_columns.py",
    "Write what it is an example of instead": f"{DATA}/scan/test_from_base.py",
    "It has ": f"{DATA}/scan/test_folder_captions_file.py",
    "write suffix and letters as that file has them": f"{DATA}/scan/test_folder_captions_file.py",
    "write paths from that folder": f"{DATA}/scan/test_folder_captions_file.py",
    "Write one for each image": f"{DATA}/scan/test_folder_captions_file.py",
    "is empty: write the caption into it": f"{DATA}/scan/test_folder.py",
    "write hf://datasets/owner/name/": f"{DATA}/streams/test_shards.py",
    ". Write the smaller number": f"{DATA}/streams/test_shards.py",
    ". Write a number from 0 to 1000000": f"{DATA}/scan/test_columns.py",
    "Write the name of the image, a tab, its caption": f"{DATA}/scan/test_captions.py",
    "PyTorch has no backend ": "toolkit/memory/test_compiling.py",
    "inductor needs ": "toolkit/memory/test_compiling.py",
    "inductor cannot compile here": "toolkit/memory/test_compiling.py",
    "Write model.qtype: int8, or": "toolkit/memory/test_compiling.py",
    "is the name for pip; in Python the package is called": "toolkit/test_class_source.py",
    ". Write 'prompts: ": f"{CONFIG}/sections/test_prompts.py",
    "names several images in a row. Write a row for each": f"{DATA}/scan/test_dataset_layouts.py",
    "wrote. Write it as Parquet: python": f"{DATA}/scan/test_dataset_layouts.py",
    "Write a comma instead": f"{DATA}/scan/test_foreign_syntax.py",
    "Write a row for each image": f"{DATA}/scan/test_tables.py",
}
"""Words of a message -> the test that has them, where more than a line of a job brings
it about. Those of a part are in its `slips.json`."""

for part in slips_of_parts():
    ELSEWHERE |= part.elsewhere

NO_MISTAKE = (
    "check, scan the datasets, print the plan",  # the help
    "Write a caption of this image",  # what models are asked
    "The first image was edited into the second one.",
)
"""Beginnings of texts that answer no mistake."""


def templates() -> Iterator[tuple[str, str]]:
    """File, and as a pattern each text of the program that tells somebody what to
    write."""
    files = [
        ROOT / "run.py",
        *(
            file
            for place in ("jobs", "toolkit", "extensions")
            for file in sorted((ROOT / place).rglob("*.py"))
        ),
    ]
    for file in files:
        for pattern in texts(ast.parse(file.read_text(encoding="utf-8"))):
            plain = pattern.replace("\\", "")
            if re.search(
                r"(?:^|[\s;:,])Write |[;:,.] write ", plain
            ) and not plain.startswith(NO_MISTAKE):
                yield file.relative_to(ROOT).as_posix(), pattern


def texts(tree: ast.AST) -> Iterator[str]:
    """The texts of a module as patterns: what is filled in may be anything. Docstrings
    are left out."""
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            silent |= {id(value) for value in node.values}
            parts = (
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*?"
                for part in node.values
            )
            yield "".join(parts)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in silent
        ):
            try:
                parts = [
                    (literal, field)
                    for literal, field, *_ in Formatter().parse(node.value)
                ]
            except ValueError:  # a pattern, or words about one
                parts = [(node.value, None)]
            yield "".join(
                re.escape(literal) + (".*?" if field is not None else "")
                for literal, field in parts
            )


def test_every_message_with_a_remedy_is_tried() -> None:
    """In JOBS or COMMANDS, or in a test elsewhere: a new message without one fails
    here."""
    if len(ANSWERS) < len(set(map(named, JOBS))) + len(COMMANDS):
        pytest.skip("compares the answers of all slips: run the whole file")
    said = "\n".join(ANSWERS.values())
    untried = [
        (file, pattern)
        for file, pattern in templates()
        if not re.search(pattern, said)
        and not any(words in pattern.replace("\\", "") for words in ELSEWHERE)
    ]
    assert not untried, "\n".join(map(str, untried))


@pytest.mark.parametrize("words", ELSEWHERE)
def test_the_tests_elsewhere_have_the_words(words: str) -> None:
    assert words in (ROOT / "tests" / ELSEWHERE[words]).read_text(encoding="utf-8")
