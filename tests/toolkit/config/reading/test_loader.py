"""The loader as a whole: many errors at once, frames, names, defaults, processes of one
job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from tests.conftest import ROOT
from tests.parts import needs_foreign_names, needs_part
from tests.processes import python
from tests.toolkit.config.conftest import trainer
from toolkit.config import load_job
from toolkit.config.reading.loader import LONGEST_RUN_NAME, warn_of_cut_texts
from toolkit.config.reading.located import Diagnostics
from toolkit.config.reading.yaml_reader import read_yaml
from toolkit.config.sections.model import ModelConfig
from toolkit.errors import ConfigErrors, UserError
from toolkit.extension import discover
from toolkit.files.run_files import FILE_SUFFIXES, step_stem
from toolkit.files.writing import EXTENSIONS_ROOT, atomic_write
from toolkit.registry import FOREIGN_COMMANDS, LEFT_OUT, part_of

FIVE_MISTAKES = """\
job: extension
config:
  name: my_char
  process:
    - type: sd_trainer
      trigger_word: 123
      network:
        type: "lora"
        linear_alpa: 16
      datasets:
        - folder_path: "dataset/40_maya_char"
          caption_dropout_rate: 1.5
      train:
        noise_scheduler: ddpm
        lr: fast
      model:
        name_or_path: Qwen/Qwen-Image-Edit-2509
"""


def test_all_mistakes_come_at_once_with_their_places(mistakes, tmp_path: Path) -> None:
    assert mistakes(FIVE_MISTAKES) == [
        '6:21: process[0].trigger_word: 123 is not text. Put it in quotes: "123"',
        "9:9: process[0].network.linear_alpa: unknown key. Did you mean 'linear_alpha'?",
        "11:24: process[0].datasets[0].folder_path: 'dataset/40_maya_char' does not exist "
        f"(working directory: {tmp_path}). Give a folder of images, or a zip file of one.",
        "12:33: process[0].datasets[0].caption_dropout_rate: 1.5 is out of range: must be <= 1.",
        "14:26: process[0].train.noise_scheduler: 'ddpm' is unknown. Use 'flowmatch'.",
        "15:13: process[0].train.lr: 'fast' is not a number. Write a number, such as 0.0001, the default.",
    ]


def test_the_place_starts_with_the_file_as_the_user_typed_it(
    mistakes, tmp_path: Path
) -> None:
    (tmp_path / "jobs").mkdir()
    lines = mistakes(FIVE_MISTAKES, file="./jobs/../jobs/my.yaml")
    assert lines[1].startswith("9:9: ")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("$HOME/pics", "Write '${HOME}' for a variable of the environment."),
        (
            "'D:\\pics'",
            "'D:\\\\' begins a path of Windows: --map D:=NEW says where it is now; in WSL, C: is '/mnt/c'.",
        ),
        (
            '"C:\\new"',
            "A backslash within double quotes became '\\n'. Write '/', or use single quotes.",
        ),
        (
            "\u201cphotos\u201d",
            "It holds U+201C (left double quotation mark), U+201D (right double",
        ),
        (
            "my\u00a0photos",
            "It holds U+00A0 (no-break space): type a plain quote or space.",
        ),
        ("./nowhere", "Give a folder "),
        ("/nowhere", "Give a folder "),
    ],
)
def test_a_path_that_leads_nowhere_says_what_may_be_wrong_with_its_spelling(
    mistakes, path: str, hint: str
) -> None:
    folder, model = mistakes(
        trainer(
            f"datasets: [{{folder_path: {path}}}]", f"model: {{name_or_path: {path}}}"
        )
    )
    assert f"). {hint}" in folder
    assert f"). {hint}" in model


CIRCLE = "cannot be reached: Too many levels of symbolic links."
NO_FOLDER = "is not a folder. Move it, or give another folder."
ADDRESS = "https://huggingface.co/Qwen/Qwen-Image-2.1/tree/main"
OWNER = "begins with the name of a user that this machine does not"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            f"model: {{name_or_path: {ADDRESS}}}",
            "). It is the address of a page of the hub: write its id, 'Qwen/Qwen-Image-2.1'.",
        ),
        (
            "training_folder: ~no_such_user/output",
            f"training_folder: '~no_such_user/output' {OWNER}",
        ),
        ("training_folder: loop", CIRCLE),
        ("datasets: [{folder_path: loop/x}]", CIRCLE),
        ("model: {name_or_path: ./loop}", CIRCLE),
        ("network: {pretrained_lora_path: loop}", CIRCLE),
        ("logging: {logging_dir: loop}", CIRCLE),
        ("sample: {samples: [{prompt: a, ctrl_img: loop}]}", CIRCLE),
        (
            "training_folder: file/more",
            f"process[0].training_folder: '{{here}}/file' {NO_FOLDER}",
        ),
        (
            "training_folder: runs",
            f"process[0].training_folder: '{{here}}/runs/test' {NO_FOLDER}",
        ),
    ],
)
def test_a_path_that_cannot_be_used_is_one_line_wherever_it_stands(
    mistakes, tmp_path: Path, lines: str, words: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "test").symlink_to("test")
    (found,) = mistakes(trainer(lines))
    assert words.format(here=tmp_path) in found


@pytest.mark.parametrize(
    "address", ["s3://a/b", "gs://a", "hf://datasets/a/b", "https://a.b/c", "S3:/a/b"]
)
def test_an_address_is_no_folder_to_write(faults, address: str) -> None:
    given = (f"training_folder: {address}", f"logging: {{logging_dir: '{address}'}}")
    for line in given:
        (fault,) = faults(line)
        assert f"{address!r} is an address, and files are written to this" in fault


@needs_part("tools.lint")  # and the others, which have most of these keys
def test_every_key_of_a_place_to_write_refuses_an_address() -> None:
    table = discover([EXTENSIONS_ROOT])
    uids = table.uids("process") - {"example"}
    models = {table.find_config(uid) for uid in uids}
    models |= {table.find_command(uid) for uid in uids}
    found = {
        f"{model.__name__}.{name}": "_no_address"
        in repr((field.annotation, field.metadata))
        for model in filter(None, models)
        for name, field in model.model_fields.items()
        if name in ("output", "preview", "training_folder") and field.annotation is str
    }
    assert len(found) > 20
    assert [key for key, refuses in found.items() if not refuses] == []


def test_a_path_of_another_machine_says_how_all_are_moved(mistakes) -> None:
    lost = "/workspace-1/me/pics"
    lines = mistakes(
        trainer(
            f"datasets: [{{folder_path: {lost}}}]", f"model: {{name_or_path: {lost}}}"
        )
    )
    assert [
        line.endswith(" Of another machine: --map /workspace-1=NEW.") for line in lines
    ] == [True, True]
    here = mistakes(trainer(f"datasets: [{{folder_path: {Path.cwd()}/none}}]"))
    assert "--map" not in here[0]


def test_a_key_of_a_process_outside_of_it_is_told_where_it_belongs(mistakes) -> None:
    text = trainer().replace("  name: test", "  name: test\n  steps: 9\n  device: cpu")
    assert mistakes("process: []\n" + text) == [
        "1:1: process: unknown key. It belongs in 'config'.",
        "5:3: config.steps: unknown key. It belongs in 'train' of a process.",
        "6:3: config.device: unknown key. It belongs in a process.",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "job: train\nconfig: {name: a, process: [{type: drop_in}]}",
            "1:6: job: unknown job type 'train'",
        ),
        ("config: {name: a, process: [{type: drop_in}]}", "1:1: job: is required"),
        ("job: extension", "1:1: config: is required"),
        ("job: extension\nconfig: 3", "2:9: config: is required"),
        (
            "job: extension\nconfig:\n  process: [{type: drop_in}]",
            "3:3: config.name: is required",
        ),
        (
            "job: extension\nconfig:\n  name: a",
            "3:3: config.process: is required: a list",
        ),
        (
            "job: extension\nconfig: {name: a, process: []}",
            "2:28: config.process: is required: a list",
        ),
        (
            "job: extension\nconfig:\n  - name: a",
            "3:3: config: a list is not a mapping. Remove the '- ' before",
        ),
        (
            "job: extension\nconfig: {name: a, process: drop_in}",
            "2:28: config.process: 'drop_in' is not a list of processes. Write '- type: drop_in' below it.",
        ),
        (
            "job: extension\nconfig:\n  name: a\n  process:\n    type: drop_in\n",
            "5:5: config.process: a mapping is not a list of processes. Begin each entry with '- ': '- type: drop_in'.",
        ),
        (
            "job: extension\nconfig: {name: a, process: [4]}",
            "2:29: process[0]: 4 is not a mapping",
        ),
        (
            "job: extension\nconfig: {name: a, process: [{x: 1}]}",
            "2:29: process[0].type: is required",
        ),
        (
            "job: extension\nconfig: {name: a, process: [{type: drop_on}]}",
            "2:36: process[0].type: unknown process",
        ),
        (
            "job: extension\nconfig: {name: 12, process: [{type: drop_in}]}",
            "2:16: config.name: 12 is not text",
        ),
        (
            "job: extension\nconfig: {name: a/b, process: [{type: drop_in}]}",
            "2:16: config.name: 'a/b' cannot be",
        ),
        (
            "job: extension\nconfig: {name: .., process: [{type: drop_in}]}",
            "2:16: config.name: '..' cannot be",
        ),
        (
            "job: extension\nmetta: {}\nconfig: {name: a, process: [{type: drop_in}]}",
            "2:1: metta: unknown key. Did",
        ),
        (
            "job: extension\nmeta: 3\nconfig: {name: a, process: [{type: drop_in}]}",
            "2:7: meta: 3 is not a mapping",
        ),
        (
            "job: extension\nconfig: {name: a, proces: 1, process: [{type: drop_in}]}",
            "2:19: config.proces: unknown",
        ),
    ],
)
def test_a_wrong_frame_is_one_line(mistakes, text: str, line: str) -> None:
    lines = mistakes(text)
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_a_missing_file_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigErrors) as caught:
        load_job("no/such.yaml", lambda name: None)
    assert (
        str(caught.value)
        == f"no/such.yaml: does not exist (working directory: {tmp_path})"
    )
    assert caught.value.exit_code == 2


def test_missing_required_keys_point_at_the_mapping_that_lacks_them(mistakes) -> None:
    text = "job: extension\nconfig:\n  name: a\n  process:\n    - type: sd_trainer\n      datasets:\n"
    text += "        - resolution: 64\n"
    assert mistakes(text) == [
        "5:7: process[0].model: is required.",
        "7:11: process[0].datasets[0]: names no images. Give 'folder_path', or 'url' for a stream of shards.",
    ]


# ---------------------------------------------------------------- [name], -n, defaults


def test_name_fills_the_tag_everywhere_but_in_itself(load) -> None:
    text = "job: extension\nmeta: {title: '[name] v1'}\nconfig:\n  name: hero\n"
    text += "  process: [{type: drop_in, a: ['[name].txt']}]\n"
    job = load(text)
    assert (job.name, job.meta, job.processes[0].raw["a"]) == (
        "hero",
        {"title": "hero v1"},
        ["hero.txt"],
    )
    job = load(text, name="other")
    assert (job.name, job.meta, job.processes[0].raw["a"]) == (
        "other",
        {"title": "other v1"},
        ["other.txt"],
    )


def test_a_name_that_is_no_folder_name_is_refused_on_the_command_line(load) -> None:
    with pytest.raises(
        ConfigErrors, match=r"-n: '\.\./x' cannot be the name of a folder"
    ):
        load("", name="../x")
    with pytest.raises(ConfigErrors, match=r"-n: .* holds bytes that are not UTF-8"):
        load("", name="a\udc80b")


DEFAULTS = """\
job: extension
config:
  name: a
  defaults:
    device: cpu
    network: {linear: 8, dropout: 0.1}
    datasets: [{folder_path: photos}]
    model: {name_or_path: ./model}
  process:
    - {type: encoding}
    - {type: sd_trainer, network: {rank: 4}}
    - {type: writer, path: tiny}
"""


@needs_foreign_names
def test_defaults_are_merged_under_each_process(load) -> None:
    encoding, train, tiny = (process.section for process in load(DEFAULTS).processes)
    assert (encoding.network.linear, encoding.network.dropout) == (8, 0.1)
    # An old name in the process outranks the new name in the defaults; the rest of the
    # mapping merges.
    assert (
        train.network.linear,
        train.network.linear_alpha,
        train.network.dropout,
    ) == (4, 4.0, 0.1)
    assert tiny.path == "tiny"


@needs_foreign_names
def test_a_default_that_no_process_knows_is_a_mistake_where_it_stands(mistakes) -> None:
    text = DEFAULTS.replace("dropout: 0.1", "dropuot: 0.1")
    assert mistakes(text) == [
        "6:26: config.defaults.network.dropuot: unknown key. Did you mean 'dropout'?"
    ]


def test_defaults_are_merged_into_mappings_alone(mistakes) -> None:
    text = DEFAULTS.partition("    - {type: encoding}")[0] + "    - sd_trainer\n"
    assert mistakes(text) == [
        "10:7: process[0]: 'sd_trainer' is not a mapping. A process has a 'type' and its keys."
    ]
    no_mapping = re.sub(r"defaults:\n(    .*\n)+", "defaults: 3\n", DEFAULTS)
    assert "4:13: config.defaults: 3 is not a mapping of keys and values." in mistakes(
        no_mapping
    )


def test_a_wrong_default_is_reported_once_at_its_origin(mistakes) -> None:
    text = DEFAULTS.replace("linear: 8", "linear: 0").replace(
        ", network: {rank: 4}", ""
    )
    assert mistakes(text) == [
        "6:23: config.defaults.network.linear: 0 is out of range: must be >= 1."
    ]


def test_null_in_a_process_leaves_the_default(load) -> None:
    job = load(DEFAULTS.replace("network: {rank: 4}", "network: , device: ''"))
    assert job.processes[1].section.network.linear == 8
    assert job.processes[1].section.device == "cpu"


# ---------------------------------------------------------------- several processes


def test_two_processes_of_one_name_are_refused(mistakes) -> None:
    text = (
        "job: extension\nconfig:\n  name: a\n  process:\n"
        + "    - {type: drop_in, name: x}\n" * 2
    )
    assert mistakes(text) == [
        "6:29: process[1].name: 'x' is already the name of process[0]. Names are unique."
    ]


TWO_TRAINERS = """\
job: extension
config:
  name: a
  defaults: {datasets: [{folder_path: photos}], model: {name_or_path: model}}
  process:
    - {type: sd_trainer%s}
    - {type: sd_trainer%s}
"""


def test_two_trainers_of_one_folder_are_refused(mistakes, load, tmp_path: Path) -> None:
    (line,) = mistakes(TWO_TRAINERS % ("", ""))
    assert line.startswith(
        f"7:7: process[1]: writes to '{tmp_path}/output/a' as process[0] does. Give process[1]"
    )
    first, second = load(TWO_TRAINERS % ("", ", name: second")).processes
    assert (first.name, second.name) == (None, "second")
    load(TWO_TRAINERS % ("", ", training_folder: elsewhere"))


def test_a_model_written_earlier_in_the_job_need_not_exist(load, mistakes) -> None:
    text = (
        "job: extension\nconfig:\n  name: a\n  process:\n    - {type: writer, path: output/tiny}\n"
        "    - {type: sd_trainer, datasets: [{folder_path: photos}], model: {name_or_path: ./output/tiny}}\n"
    )
    assert (
        load(text).processes[1].section.model.folder() == Path("output/tiny").resolve()
    )
    # Of a process whose type is unknown nobody knows what it writes: nothing is said of
    # the folder.
    assert len(mistakes(text.replace("writer", "wirter"))) == 1
    (line,) = mistakes(text.replace("path: output/tiny}", "path: output/other}", 1))
    assert "process[1].model.name_or_path: './output/tiny' does not exist" in line


# ---------------------------------------------------------------- sections of
# extensions


class Plain(BaseModel):
    """What a drop-in may bring: no StrictModel, no type, no name."""

    count: int
    folder: str = "x"
    inner: dict[str, int] = {}


class Open(Plain):
    model_config = ConfigDict(extra="allow")


def test_a_plain_pydantic_model_is_checked_like_a_section(load, mistakes) -> None:
    text = "job: extension\nconfig:\n  name: a\n  process:\n    - type: drop_in\n      name: p\n"
    text += "      count: %s\n      %s: 2\n"
    assert mistakes(text % ("abc", "fodler"), find=lambda name: Plain) == [
        "7:14: process[0].count: 'abc' is not a whole number.",
        "8:7: process[0].fodler: unknown key. Did you mean 'folder'?",
    ]
    section = load(text % (3, "more"), find=lambda name: Open).processes[0].section
    assert (section.count, section.more) == (3, 2)


HOOK = {
    "init": """
        from toolkit.extension import Extension


        class Copies(Extension):
            uid = "copies"
            config = ".config:CopiesConfig"
            callback = ".callback:Copies"


        class Plain(Extension):
            uid = "plain"
            callback = ".callback:Plain"


        AI_TOOLKIT_EXTENSIONS = [Copies, Plain]
    """,
    "config": """
        from pydantic import Field

        from toolkit.config import CallbackConfig
        from toolkit.config.reading.findings import error


        class CopiesConfig(CallbackConfig):
            to: str
            most: int = Field(default=3, ge=1)

            def check(self, job):
                if self.to == "nowhere":
                    yield error("to", "leads nowhere.")
    """,
}


@pytest.fixture
def hooks(write_extension, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_extension("hooks", **HOOK)
    monkeypatch.setenv("EXTENSIONS_PATH", str(tmp_path / "drop_ins"))


@pytest.mark.parametrize(
    ("written", "faults"),
    {
        "[{type: copies, to: /mnt, most: 0}]": [
            "[0].most: 0 is out of range: must be >= 1."
        ],
        "[{type: copies, too: /mnt}]": [
            "[0].to: is required.",
            "[0].too: unknown key. Did you mean 'to'?",
        ],
        "[plain, {type: copies, to: nowhere}]": ["[1].to: leads nowhere."],
        "[{type: plain, to: /mnt}]": ["[0].to: unknown key."],
        "[{type: copyies, to: /mnt}]": [
            "[0].type: unknown callback 'copyies'. Did you mean 'copies'?"
        ],
        "[{type: sd_trainer}]": [
            "[0].type: 'sd_trainer' is a process, not a callback: it belongs in 'process'"
        ],
        "[{to: /mnt}]": ["[0].type: is required."],
        "[{type: copies, to: /mnt}, 5]": ["[1]"],
        "{type: plain}": [": "],
    }.items(),
)
def test_an_entry_of_callbacks_is_checked_by_its_own_section(
    mistakes, hooks, written: str, faults: list[str]
) -> None:
    lines = mistakes(trainer(f"callbacks: {written}"))
    assert len(lines) == len(faults), lines
    for line, fault in zip(lines, faults, strict=True):
        assert re.match(r"\d+:\d+: process\[0\].callbacks", line)
        assert f"callbacks{fault}" in line


def test_the_callbacks_of_a_job_are_sections_of_their_own(section, hooks) -> None:
    found = section("callbacks: [plain, {type: copies, to: /mnt/share}]")
    plain, copies = found.callbacks
    assert (plain.type, type(copies).__name__, copies.most) == (
        "plain",
        "CopiesConfig",
        3,
    )
    recorded = found.recorded_settings()["callbacks"]
    assert recorded[1] == {"type": "copies", "to": "/mnt/share", "most": 3}


def test_a_callback_is_no_process(hooks) -> None:
    table = discover()
    with pytest.raises(
        UserError,
        match="'plain' is a callback, not a process: it belongs in 'callbacks'",
    ):
        table.find_config("plain")
    assert "plain" not in table.configs()


def test_an_unchecked_section_is_handed_over_as_plain_data(load) -> None:
    text = "job: extension\nconfig:\n  name: a\n  process:\n    - {type: drop_in, n: null, deep: {x: [1, yes, 1e-4]}}\n"
    entry = load(text).processes[0]
    assert entry.section is None
    assert entry.raw == {"type": "drop_in", "n": None, "deep": {"x": [1, "yes", 1e-4]}}


@needs_foreign_names
def test_raw_keeps_old_names(load) -> None:
    entry = load(DEFAULTS).processes[1]
    assert entry.raw["network"] == {"rank": 4, "linear": 8, "dropout": 0.1}


def test_a_command_of_another_program_names_the_part_that_would_read_it(
    load, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = part_of(FOREIGN_COMMANDS).rpartition(".")[2]
    monkeypatch.setenv(LEFT_OUT, name)
    with pytest.raises(UserError) as caught:
        load("accelerate launch train.py --steps 3", file="train.sh")
    needs = f"needs the extension '{name}', which "
    assert str(caught.value).startswith(
        f"train.sh: a command of another program {needs}"
    )


def test_loading_imports_no_torch() -> None:
    code = (
        "import sys, toolkit.config, toolkit.config.reading.reference\n"
        "import extensions.sd_trainer.config\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy', 'PIL') if name in sys.modules])\n"
    )
    assert python(code) == "[]\n"


class OtherTrainer(BaseModel):
    """A drop-in's section that knows nothing of `ProcessConfig`."""

    type: str
    student: ModelConfig


def test_every_section_with_a_model_has_it_checked(mistakes) -> None:
    text = (
        "job: extension\nconfig:\n  name: a\n  process:\n    - {type: other, "
        "student: {name_or_path: krea/Krea-1-Dev}}"
    )
    (line,) = mistakes(text, find=lambda name: OtherTrainer)
    assert line.startswith(
        "5:45: process[0].student.name_or_path: 'krea/Krea-1-Dev' is another model (Krea), "
    )


# ---------------------------------------------------------------- names that cannot
# name all files of a run


@pytest.mark.parametrize(
    "name", ["n" * LONGEST_RUN_NAME, "名" * (LONGEST_RUN_NAME // 3)]
)
def test_with_the_longest_name_every_file_of_a_run_can_be_written(
    load, tmp_path: Path, name: str
) -> None:
    load(
        f"job: extension\nconfig: {{name: {name}, process: [{{type: drop_in, name: {name}}}]}}"
    )
    for suffix in FILE_SUFFIXES:
        with atomic_write(tmp_path / f"{step_stem(name, 340)}{suffix}") as temporary:
            temporary.touch()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            '"' + "n" * (LONGEST_RUN_NAME + 1) + '"',
            f"is too long: {LONGEST_RUN_NAME + 1} bytes, and with at most",
        ),
        ('"' + "名" * 75 + '"', "is too long: 225 bytes, and with at most"),
        (r'"\0"', "cannot be the name of a folder: leave out '/'"),
        (r'"\uD800"', "holds half a character (a lone surrogate). Leave it out."),
    ],
)
def test_a_name_that_no_path_can_have_is_one_line(
    mistakes, name: str, message: str
) -> None:
    """Of the job, and of a process."""
    (line,) = mistakes(trainer().replace("name: test", f"name: {name}"))
    assert line.startswith("3:9: config.name: ") and message in line
    (line,) = mistakes(trainer(f"name: {name}"))
    assert ": process[0].name: " in line and message in line


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ('"my: char?"', "my_char"),
        ('"char "', "char"),
        ('" char"', "char"),
        ("char.", "char"),
        ("CON", "my_CON"),
        ("lpt1.v2", "my_lpt1.v2"),
        ("my char", ""),
        ("conrad", ""),
        ("小猫.v2", ""),
    ],
)
def test_a_name_that_no_file_on_windows_can_have_is_a_warning(
    load, name: str, other: str
) -> None:
    """Of the job, and of a process."""
    for text in (trainer().replace("test", name), trainer(f"name: {name}")):
        said = [line for line in load(text).warnings if "on Windows" in line]
        assert len(said) == bool(other)
        assert all(line.endswith(f"Write '{other}'.") for line in said)


def test_no_job_has_the_name_of_the_shared_cache(load, mistakes) -> None:
    (line,) = mistakes(trainer().replace("name: test", "name: _cache"))
    assert (
        line
        == "3:9: config.name: '_cache' is the folder of the shared cache. Choose another name."
    )
    with pytest.raises(
        ConfigErrors, match="-n: '_cache' is the folder of the shared cache"
    ):
        load(trainer(), name="_cache")
    assert load(trainer("name: _cache")).processes[0].section.name == "_cache"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "sample:\n  prompts:\n    - a cup #1 in the world",
            "ends before '#1 in the world'",
        ),
        ("sample:\n  prompts:\n    - a cup # 1", "ends before '# 1'"),
        ("sample:\n  prompts: [a]\n  neg: blurry #bad", "ends before '#bad'"),
        ("trigger_word: my #char", 'put the text in quotes: "my #char"'),
        ("datasets:\n  - folder_path: photos #2", "ends before '#2'"),
        ("sample:\n  prompts:\n    - a cup   # the first", ""),
        ('sample:\n  prompts:\n    - "a cup" # the first', ""),
        ("sample: {prompts: [a]}  #two of them", ""),
        ("trigger_word: ohwx # the word", ""),
        ("trigger_word: ohwx   #the word", ""),
        ("network: {type: lora} #lora", ""),
        ("training_seed: 7 #lucky", ""),
    ],
)
def test_a_text_that_a_hash_cuts_off_is_told_and_a_comment_is_not(
    load, line: str, told: str
) -> None:
    found = [
        line for line in load(trainer(line)).warnings if "begins a comment" in line
    ]
    assert len(found) == bool(told) and told in "".join(found)


def test_the_comments_of_the_examples_are_comments() -> None:
    files = sorted((ROOT / "config").rglob("*.yaml"))
    assert len(files) > 20
    for file in files:
        text, diagnostics = file.read_text(encoding="utf-8"), Diagnostics(str(file))
        warn_of_cut_texts(read_yaml(text, diagnostics), text, diagnostics)
        assert diagnostics.warnings == ()
