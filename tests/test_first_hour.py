"""Every slip of the first hour is answered with its place, its value, and what to
write; and what is to be written works. Every message of the program with a remedy has
such a row, or a test that it names."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from itertools import chain
from pathlib import Path
from string import Formatter
from unittest.mock import ANY

import pytest

from jobs.dry_run import plan_job
from run import main
from tests import first_hour
from tests.conftest import ROOT
from tests.first_hour import (
    COMMANDS,
    JOB,
    JOBS,
    MEANT,
    PASTED,
    WAYS,
    Slip,
    Way,
    images,
    job_of,
    job_with,
    slips_of_parts,
)
from toolkit.config import load_job
from toolkit.errors import UserError
from toolkit.extension import discover

pytestmark = pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all tests here, with images and no job; none leaves
    anything in it but its job.yaml."""
    folder = tmp_path_factory.mktemp("hour")
    images(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("HERE", str(folder))
        yield folder


@cache
def quiet() -> frozenset[str]:
    """The warnings of JOB itself, without numbers."""
    return frozenset(without_numbers(line) for line in told(JOB)[1])


def without_numbers(line: str) -> str:
    return re.sub(r"\d[\d.,]*", "N", re.sub(r"^.*?: process", "process", line))


found_here = cache(discover)


@cache
def told(text: str) -> tuple[list[str], list[str]]:
    """The errors of a job, or of its plan, and the warnings of both."""
    Path("job.yaml").write_text(text, encoding="utf-8")
    try:
        config = load_job("job.yaml", found_here().find_config)
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


REMEDY = re.compile(
    r"[Ww]rite (?:'([^']+)'|([-\w.+]+?))(?=[.,;:]? |[.,;:]?$)|(?:[Gg]ive|[Ss]et|[Aa]dd) '([^']+: [^']+)'"
)
"""What stands behind 'Write', in quotes or as one word; or a key with its value behind
another word."""

PLACE = re.compile(r"job\.yaml:\d+:\d+: |warning: |[a-z_]+(?:\.[a-z_]+)+: |\S+/\S+: ")
"""Begins an answer: line, key, or file."""

IN_WORDS = {"key: value", "value", "a", "one", "its", "the"}
"""Words that begin a description of what to write."""


def mistake(slip: Slip) -> str:
    """What is wrong with the answer to a slip in a job; empty: nothing is."""
    found = answer(job_with(slip.line, slip.written))
    said = next((line for line in found if slip.answer in line), "")
    if not said:
        return f"is not answered with {slip.answer!r}: {found}"
    if not re.match(r"job\.yaml:\d+:\d+: |warning: ", said):
        return f"has no place: {said}"
    # Of several remedies one is put into the job.
    words = set(chain.from_iterable(REMEDY.findall(said))) - IN_WORDS - {""}
    words = {word for word in words if "..." not in word}
    if words and " or " not in said and not any(word in slip.instead for word in words):
        return f"none of {words} is in {slip.instead!r}"
    instead = job_with(slip.line, slip.instead)
    errors, warnings = told(instead)
    left = [*errors, *(line for line in warnings if slip.answer in line)]
    return f"is not put right by {slip.instead!r}: {left}" if left else ""


def fault_of(way: Way) -> str:
    """What is wrong with the answer to a job; empty: nothing is."""
    found = answer(job_of(way.written))
    said = next((line for line in found if way.answer in line), "")
    if not said:
        return f"is not answered with {way.answer!r}: {found}"
    if not PLACE.match(said):
        return f"has no place: {said}"
    errors, warnings = told(job_of(way.instead))
    left = [*errors, *(line for line in warnings if way.answer in line)]
    return f"is not put right by {way.instead}: {left}" if left else ""


@pytest.mark.slow
def test_an_answer_to_several_lines_works(work: Path) -> None:
    wrong = [f"{way.written}: {said}" for way in WAYS if (said := fault_of(way))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_a_slip_in_a_job_is_answered_with_what_works(work: Path) -> None:
    """The answer names the place, and with what it says to write the job is right."""
    wrong = [f"{named(slip)} {said}" for slip in JOBS if (said := mistake(slip))]
    assert not wrong, "\n".join(wrong)


def test_another_way_of_writing_is_understood(work: Path) -> None:
    found = {named(slip): answer(job_with(slip.line, slip.written)) for slip in MEANT}
    assert found == {named(slip): [] for slip in MEANT}


def furnished(work: Path, folder: Path) -> Path:
    """A working directory with a job, a page, prompts and a run besides the images."""
    place = folder / "of_command"
    shutil.copytree(work, place)
    run = place / "output" / "other"
    run.mkdir(parents=True)
    (place / "job.yaml").write_text(JOB, encoding="utf-8")
    (place / "README.md").write_text("# A page\n\nSome text: yes\n", "utf-8")
    (place / "prompts.yaml").write_text("sample: a\n", encoding="utf-8")
    (run / "run.json").write_text('{"status": "done"}')
    (run / "other.safetensors").touch()
    return place


@pytest.fixture(scope="module")
def answers_to_commands(
    work: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What each of COMMANDS prints, run in this process, in a folder of its own."""
    printed = {}
    for command in COMMANDS:
        place = furnished(work, tmp_path_factory.mktemp("place"))
        with chdir(place):
            code, printed[command] = output_of(shlex.split(command))
        assert code in (0, 1, 2) and "Traceback" not in printed[command], command
        assert not (place / "output" / "my_char").exists(), command
    return printed


@pytest.fixture(scope="module")
def place_of_a_run(
    work: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """A new working directory with a job, its run and an entry of the queue."""
    place = furnished(work, tmp_path_factory.mktemp("place"))
    (place / "config").mkdir()
    (place / "config" / "my_job.yaml").write_text(JOB.replace("my_char", "my_job"))
    (place / "b.yaml").write_text(JOB.replace("my_char", "b"))
    run = place / "output" / "other"
    (run / "config.yaml").write_text(JOB.replace("my_char", "other"))
    (run / "run.json").write_text('{"status": "done", "name": "other"}')
    with chdir(place):
        assert output_of(["queue", "add", "job.yaml"])[0] == 0

    def another() -> Path:
        copy = tmp_path_factory.mktemp("place") / "copy"
        shutil.copytree(place, copy)
        return copy

    return another


@pytest.mark.slow
@pytest.mark.parametrize("typed", PASTED)
def test_what_an_answer_says_to_write_works_when_it_is_pasted(
    place_of_a_run: Callable[[], Path], typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each word that is not what was typed stands in the answer, and the command then
    ends well."""
    monkeypatch.chdir(place_of_a_run())
    monkeypatch.setattr("extensions.tools.new.process._run_py", lambda *words: 0)
    before, after = (
        shlex.split(line.replace("JOB", "job.yaml --dry-run"))
        for line in (typed, PASTED[typed])
    )
    code, said = output_of(before)
    assert code == 2, said
    for word in set(after) - set(before):
        key, sign, value = word.partition("=")
        *_, last = key.split(".")
        answers = (
            word,
            shlex.quote(word),
            f"{key}{sign}...",
            f"'{last}'",
            f" {value}.",
        )
        assert any(one in said for one in answers), (word, said)
    assert output_of(after) == (0, ANY), output_of(after)[1]


def output_of(words: list[str]) -> tuple[object, str]:
    """Exit code and output of `run.py` with these arguments."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            code: object = main(words)
        except SystemExit as left:  # by argparse
            code = left.code
    return code, said.getvalue()


@pytest.mark.slow
def test_a_slip_on_the_command_line_is_answered(
    answers_to_commands: dict[str, str],
) -> None:
    wrong = {
        command: said
        for command, said in answers_to_commands.items()
        if COMMANDS[command] not in said
    }
    assert not wrong, wrong


WHOLE = re.compile(r"Write: (?:\S*python\S* )?(\S*run\.py )?(.+)$", re.MULTILINE)
"""The end of an answer that is a command, or the flags of one."""


@pytest.mark.slow
def test_a_command_that_is_to_be_written_is_not_answered_the_same(
    answers_to_commands: dict[str, str], work: Path
) -> None:
    """Words in capitals stand for what only the user knows."""
    tried = 0
    for command, said in answers_to_commands.items():
        for program, written in WHOLE.findall(said):
            if re.search(r"\b[A-Z]{3,}\b", written) or written.startswith("hf "):
                continue
            words = shlex.split(written)
            if not program:
                words = [command.split()[0], *words]
            if words[0] == "ui":  # would serve the page
                continue
            tried += 1
            again = output_of(words)[1]
            assert COMMANDS[command] not in again, (command, words)
    assert tried >= 3


def test_what_stands_behind_a_flag_is_no_slip(work: Path) -> None:
    (work / "job.yaml").write_text(JOB, encoding="utf-8")
    code, said = output_of(["--map", "data=/mnt/data", "job.yaml", "--dry-run"])
    assert code == 0, said


# ---------------------------------------------------------------- every message with a
# remedy

CONFIG, DATA = "toolkit/config", "toolkit/data"

ELSEWHERE: dict[str, str] = {
    "in its place, ": f"{DATA}/scan/test_words.py",
    "Write all of them as you will write prompts": f"{DATA}/scan/test_words.py",
    "write whole numbers from 1 on": "jobs/test_sweep.py",
    "drops every caption. Write 0.1": "toolkit/plan/test_diffusion.py",
    "processes of this job have this key": f"{CONFIG}/reading/test_changes.py",
    "the list stands in 'defaults'": f"{CONFIG}/reading/test_changes.py",
    "Write '- type: ": f"{CONFIG}/reading/test_loader.py",
    "is a mapping, and 'prompts' are texts. Write it in 'samples'": f"{CONFIG}/reading/test_normalise.py",
    "Write '- ": f"{CONFIG}/reading/test_normalise.py",
    "is not a file": f"{CONFIG}/sections/test_dataset.py",
    "Write all shards as a list of 'url'": f"{CONFIG}/sections/test_dataset.py",
    "is text": "jobs/process/test_base.py",
    "holds no prompt. Write one per line;": f"{CONFIG}/sections/test_output.py",
    "begins an escape within double quotes. Write '/', or use single": f"{CONFIG}/reading/test_yaml_reader.py",
    "no '=' follows the key.": f"{CONFIG}/reading/test_toml_reader.py",
    "Write a space after the '-' of": f"{CONFIG}/reading/test_normalise.py",
    "'---' begins a second document. Write one job per file; run.py": f"{CONFIG}/reading/test_yaml_reader.py",
    ", whose texts are packed in lists": f"{DATA}/scan/test_tables.py",
    "is JSON without rows that are known": f"{DATA}/scan/test_tables.py",
    "Write one, or leave it empty": f"{DATA}/scan/test_tables.py",
    "Write one, or take .json out of caption_ext": f"{DATA}/scan/test_captions.py",
    "and there is no such kind of proxy": "toolkit/models/test_hub_faults.py",
    ", no address": "toolkit/models/test_hub_faults.py",
    "not the dotted path of a": "toolkit/optim/test_optimizer_args.py",
    "Write train.optimizer_params: {": "toolkit/optim/test_trial.py",
    "Write the sentence alone, or as its 'caption'": f"{DATA}/scan/test_captions.py",
    "Write the caption of the image": f"{DATA}/scan/test_foreign_syntax.py",
    "Write plain text": f"{DATA}/scan/test_remedies.py",
    "Write texts, or give 'columns": f"{DATA}/scan/test_folder.py",
    "as if a program had cut them": f"{DATA}/scan/test_words.py",
    "so that each sample is drawn from words alone. Write '": "first_hour.py",
    "It has ": f"{DATA}/scan/test_folder_captions_file.py",
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
    "Write inductor, or leave it out": "toolkit/memory/test_compiling.py",
    "Write enabled: false, or install that": "toolkit/memory/test_compiling.py",
    "is the name for pip; in Python the package is called": "toolkit/test_class_source.py",
    "write a dot before its name": "toolkit/test_extension.py",
    ". Write 'prompts: ": f"{CONFIG}/sections/test_prompts.py",
    "names several images in a row, in ": f"{DATA}/scan/test_dataset_layouts.py",
    "wrote. Write it as Parquet: python": f"{DATA}/scan/test_dataset_layouts.py",
    "Write a comma instead": f"{DATA}/scan/test_foreign_syntax.py",
    "Write a row for each image": f"{DATA}/scan/test_tables.py",
    "A caption has no tab": f"{DATA}/scan/test_captions.py",
    "Write the caption as 'caption'": f"{DATA}/scan/test_tables.py",
    "has a list in one cell": f"{DATA}/scan/test_columns.py",
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


def program_files() -> list[Path]:
    places = (ROOT / place for place in ("jobs", "toolkit", "extensions"))
    return [
        ROOT / "run.py",
        *chain.from_iterable(sorted(place.rglob("*.py")) for place in places),
    ]


def templates() -> Iterator[tuple[str, str]]:
    """File, and as a pattern each text of the program that tells somebody what to
    write."""
    for file in program_files():
        text = file.read_text(encoding="utf-8")
        for pattern in texts(ast.parse(text)) if "rite " in text else ():
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


@pytest.mark.slow
def test_every_message_with_a_remedy_is_tried(
    answers_to_commands: dict[str, str],
) -> None:
    """In JOBS or COMMANDS, or in a test elsewhere: a new message without one fails
    here."""
    of_jobs = (answer(job_with(slip.line, slip.written)) for slip in JOBS)
    said = "\n".join([*chain(*of_jobs), *answers_to_commands.values()])
    untried = [
        (file, pattern)
        for file, pattern in templates()
        if not re.search(pattern, said)
        and not any(words in pattern.replace("\\", "") for words in ELSEWHERE)
    ]
    assert not untried, "\n".join(map(str, untried))


OTHER_VERB = re.compile(
    r"(?:^|(?<=[\s;:,.(]))(?:Give|Set|Add) |(?<=[;:,.] )(?:give|set|add) "
)
NAMED = re.compile(r"'[^']*'|[a-z_]+[._][a-z_]+|\b[a-z_]+: \S|--[a-z]|\{|[A-Z]+_[A-Z]+")
"""Words that can be pasted: in quotes, a key, a flag, a variable."""

APPLIED_IN: dict[str, dict[str, Sequence[str]]] = {
    "extensions/sd_trainer/test_setup.py": {
        "test_a_file_that_no_network_trains_is_refused_before_the_model_is_loaded": [
            "Give it as model.base_loras, o"
        ],
    },
    "test_run.py": {
        "test_two_jobs_of_a_command_that_write_one_run_are_refused_before_either_trains": [
            "Give it another 'name', or run"
        ],
    },
    "toolkit/config/reading/test_loader.py": {
        "test_two_trainers_of_one_folder_are_refused": ["Give process["],
    },
    "toolkit/config/sections/test_lora_beside.py": {
        "test_a_file_that_alone_is_here_is_not_taken_for_the_only_one": [
            "Give one of them, as"
        ],
    },
    "toolkit/config/sections/test_output.py": {
        "test_the_key_may_be_in_the_job_in_the_environment_or_in_netrc": [
            "Set WANDB_API_KEY, or WANDB_MO"
        ],
        "test_the_key_of_a_saved_config_is_known_to_be_redacted": [
            "Set WANDB_API_KEY instead"
        ],
    },
    "toolkit/data/scan/test_remedies.py": {
        "test_what_the_scan_tells_to_write_works": ["Give 'captions_file:"],
    },
    "toolkit/data/scan/test_parquet.py": {
        "test_a_table_that_has_its_pictures_in_it_is_given_as_the_folder": [
            "Give it as 'folder_path"
        ],
    },
    "toolkit/data/streams/test_webdataset.py": {
        "test_what_the_names_of_a_shard_s_files_mean_is_told": [
            "Set image_key, label_key and c"
        ],
        "test_wrong_keys_end_the_run_with_the_keys_that_are_there": [
            "Set caption_key:"
        ],
    },
    "toolkit/files/test_mapped.py": {
        "test_bytes_that_are_no_longer_those_that_were_mapped_name_their_file": [
            "set model.keep_quantized: fals"
        ],
    },
    "toolkit/files/test_writing.py": {
        "test_what_is_not_a_config_says_what_to_give": ["Give a file:"],
    },
    "toolkit/models/test_beside.py": {
        "test_a_file_that_is_something_else_is_answered_in_one_line": [
            "Give the transformer as model"
        ],
        "test_models_with_the_same_weights_are_told_apart": ["Give model.arch:"],
    },
    "toolkit/models/test_hub_faults.py": {
        "test_an_address_that_is_not_reached_is_named": ["set HTTPS_PROXY to a proxy,"],
    },
    "toolkit/networks/test_adapter.py": {
        "test_a_file_that_a_kind_cannot_hold_is_refused_with_the_reason": [
            "Give network.linear, factor an",
            "Set network.type to dora",
            "Set network.linear to",
        ],
    },
    "toolkit/optim/test_trial.py": {
        "test_a_large_state_is_a_warning_with_a_limit_that_helps": [
            "Give optimizer_params: {"
        ],
        "test_a_rate_of_0_is_refused_where_the_training_begins_with_it": [
            "Set lr_warmup_steps: 0 and a l"
        ],
    },
    "toolkit/plan/test_outlook.py": {
        "test_a_run_whose_checkpoints_were_deleted_is_not_called_a_new_one": [
            "give the job another name, and"
        ],
    },
    "toolkit/system/test_nvidia.py": {
        "test_a_machine_without_a_gpu_is_offered_the_small_model": [
            "give the small model that come"
        ],
    },
    "toolkit/test_shortage.py": {
        "test_under_a_real_limit_it_is_one_line": ["Set OMP_NUM_THREADS=1, lower n"],
    },
    "toolkit/train/test_checkpoint_state.py": {
        "test_another_optimizer_than_the_state_was_made_with_is_refused": [
            "Give the job a new name, or re"
        ],
    },
    "toolkit/train/test_resumption.py": {
        "test_more_steps_of_a_schedule_that_ends_with_the_run_have_two_ways": [
            "add --allow-change to continue"
        ],
        "test_what_changes_the_result_is_refused_and_listed": [
            "add --allow-change to resume w"
        ],
    },
}
"""Test file -> a test -> the remedies behind 'Give', 'Set' and 'Add' that it brings
about, and takes where that can be done on any machine. No row of first_hour.py has
them. Those of a part are in its `slips.json`."""

APPLIED = {
    told: f"{file}::{test}"
    for file, tests in APPLIED_IN.items()
    for test, remedies in tests.items()
    for told in remedies
}
for part in slips_of_parts():
    APPLIED |= part.applied


def test_a_remedy_behind_another_word_is_applied() -> None:
    """In a row of first_hour.py or of a part, which is tried, or in a test that it
    names; a new one without either fails here."""
    rows = [Path(first_hour.__file__), *(ROOT / "tests").rglob("slips.json")]
    seams = re.compile(r"""["']\s*\n\s*(?:rf?|fr?)?["']""")
    in_rows = " ".join(
        seams.sub("", file.read_text(encoding="utf-8")).replace("\\", "")
        for file in rows
    )
    untried, known = set[str](), set[str]()
    for file in program_files():
        for pattern in texts(ast.parse(file.read_text(encoding="utf-8"))):
            plain = pattern.replace("\\", "")
            verb = OTHER_VERB.search(plain)
            if verb and NAMED.search(remedy := plain[verb.start() :].split(". ")[0]):
                told = remedy.partition(".*?")[0][:30].rstrip(" .'")
                if len(told) < 9:  # all is filled in: the longest piece of the message
                    told = max(plain.split(".*?"), key=len)[:60].strip()
                known.add(told)
                if told not in in_rows:
                    untried.add(told)
    assert untried <= APPLIED.keys(), sorted(untried - APPLIED.keys())
    assert APPLIED.keys() <= known, "a remedy that no message has"


def test_the_tests_that_apply_a_remedy_are_there() -> None:
    """And are run: a function of that name in that file."""
    places = [place.split("::") for place in APPLIED.values()]
    missing = [
        (file, name)
        for file, name in places
        if f"\ndef {name}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    ]
    assert not missing


def test_the_tests_elsewhere_have_the_words() -> None:
    without = {
        words: file
        for words, file in ELSEWHERE.items()
        if words not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    }
    assert not without
