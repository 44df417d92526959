"""`save`: when files are written and how many are kept; `sample`: shapes, and what an
item takes from its section."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.parts import needs_foreign_names
from tests.toolkit.config.conftest import trainer
from toolkit.config.sections import output as section_module
from toolkit.config.sections.output import PACKAGES, LoggingConfig
from toolkit.errors import install_command
from toolkit.registry import HINTED_TOOLS, LEFT_OUT


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "steps", "epochs"),
    [
        ("", 250, 0),
        ("save_every: 0", 0, 0),
        ("save_every_n_steps: 100", 100, 0),
        (
            "save_every_n_epochs: 2",
            0,
            2,
        ),  # the default of save_every is nothing that was asked for
        ("save_every_n_epochs: 0", 0, 0),
        ("save_every: 0, save_every_n_epochs: 2", 0, 2),
        ("save_every: 250, save_every_n_epochs: 2", 250, 0),  # steps override epochs
        ("save_every: 100, save_every_n_epochs: 0", 100, 0),
        ("save_every: null, save_every_n_epochs: 3", 0, 3),
    ],
)
def test_steps_above_zero_decide_where_they_are_given(
    section, keys: str, steps: int, epochs: int
) -> None:
    assert section(f"save: {{{keys}}}").save.interval() == (steps, epochs)


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ("", 5),
        ("max_step_saves_to_keep: 0", 0),
        ("save_last_n_steps: 3", 3),
        ("save_every_n_epochs: 1", 5),
        ("save_every_n_epochs: 1, save_last_n_epochs: 2", 2),
        ("save_every_n_epochs: 1, save_last_n_epochs: 0", 0),
        ("save_every_n_epochs: 1, save_last_n_epochs: 2, max_step_saves_to_keep: 9", 2),
        ("save_every: 10, save_last_n_epochs: 2, max_step_saves_to_keep: 9", 9),
    ],
)
def test_as_many_files_stay_as_the_deciding_interval_says(
    section, keys: str, kept: int
) -> None:
    assert section(f"save: {{{keys}}}").save.files_to_keep() == kept


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        (
            "save_every: 50, save_every_n_epochs: 2",
            "save_every_n_epochs: has no effect: 'save_every: 50' takes preced",
        ),
        (
            "save_last_n_epochs: 2",
            "save_last_n_epochs: has no effect: files are not saved by epoch.",
        ),
        (
            "save_last_n_steps: 1000",
            "save_last_n_steps: 1000 files are kept: it is their number, not a distance",
        ),
    ],
)
def test_keys_that_do_nothing_or_look_misunderstood_are_told(
    load, keys: str, warning: str
) -> None:
    (line,) = load(trainer(f"save: {{{keys}}}")).warnings
    assert line.split("process[0].save.")[1].startswith(warning)


@pytest.mark.parametrize(
    "keys",
    [
        "save_every: 5",
        "save_every_n_epochs: 2, save_last_n_epochs: 2",
        "save_every: 5, no_metadata: true",
    ],
)
def test_jobs_without_contradiction_are_silent(load, keys: str) -> None:
    assert load(trainer(f"save: {{{keys}}}")).warnings == ()


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "save_every_n_epochs: -1",
            "save_every_n_epochs: -1 is out of range: must be >= 0.",
        ),
        (
            "save_last_n_epochs: -1",
            "save_last_n_epochs: -1 is out of range: must be >= 0.",
        ),
        ("save_every_n_epochs: 0.5", "save_every_n_epochs: 0.5"),
        ("no_metadata: 3", "no_metadata: 3"),
        ("push_to_hub: true", "push_to_hub: needs a repository: set hf_repo_id"),
        (
            "save_last_n_steps: 3, max_step_saves_to_keep: 4",
            "save_last_n_steps: 'save_last_n_steps' and 'max_step_sav",
        ),
    ],
)
def test_mistakes_of_a_save_section(faults, keys: str, message: str) -> None:
    (found,) = faults(f"save: {{{keys}}}")
    assert found.startswith(f"save.{message}")


def test_push_to_hub_without_the_tool_that_uploads_is_refused(
    faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = HINTED_TOOLS["publication"]
    monkeypatch.setenv(LEFT_OUT, tool)
    assert faults("save: {push_to_hub: true, hf_repo_id: me/x}") == [
        f"save.push_to_hub: needs the tool {tool!r}, which is absent. Leave it out."
    ]


# ------------------------------------------------------------ sample


def test_prompts_become_samples(section) -> None:
    sample = section(
        "sample: {prompts: [a, '', 'b -- c'], neg: false, seed: 5, walk_seed: true}"
    ).sample
    assert [item.prompt for item in sample.samples] == ["a", "", "b -- c"]
    assert [(item.seed, item.neg, item.width) for item in sample.sample_items()] == [
        (5, "", 1024),
        (6, "", 1024),
        (7, "", 1024),
    ]


def test_a_text_among_the_samples_is_its_prompt(section) -> None:
    sample = section("sample: {samples: [a cat --d 7 --w 512, {prompt: a dog}]}").sample
    first, second = sample.sample_items()
    assert (first.prompt, first.seed, first.width, second.prompt, second.seed) == (
        "a cat",
        7,
        512,
        "a dog",
        42,
    )


def test_an_item_outranks_its_section(section) -> None:
    sample = section(
        "sample: {neg: ugly, seed: 5, samples: [{prompt: a, neg: '', seed: 0, width: 512}, {prompt: b}]}"
    ).sample
    first, second = sample.sample_items()
    assert (first.neg, first.seed, first.width) == ("", 0, 512)
    assert (second.neg, second.seed, second.width) == ("ugly", 5, 1024)


@pytest.mark.parametrize(
    ("keys", "steps", "epochs"),
    [
        ("", 250, 0),
        ("sample_every: 0", 0, 0),
        ("sample_every_n_epochs: 2", 0, 2),
        ("sample_every_n_epochs: 0", 0, 0),
        ("sample_every: 100, sample_every_n_epochs: 2", 0, 2),  # epochs override steps
        ("sample_every: 100, sample_every_n_epochs: 0", 100, 0),
    ],
)
def test_epochs_above_zero_decide(section, keys: str, steps: int, epochs: int) -> None:
    assert section(f"sample: {{{keys}}}").sample.interval() == (steps, epochs)


@needs_foreign_names
def test_a_file_of_prompts_has_one_per_line(section, tmp_path) -> None:
    text = "\ufeff# portraits\na cat, smiling -- happy\n\n   # none\r\n  a dog [trigger] --w 96 --n bad  \n"
    (tmp_path / "my prompts.txt").write_text(text, encoding="utf-8")
    for key in ("prompts", "sample_prompts"):
        first, second = section(
            f"sample: {{{key}: my prompts.txt, neg: ugly}}"
        ).sample.sample_items()
        assert (first.prompt, first.neg) == ("a cat, smiling -- happy", "ugly")
        assert (second.prompt, second.width, second.neg) == (
            "a dog [trigger]",
            96,
            "bad",
        )


def test_a_mistake_in_a_file_of_prompts_names_its_line(faults, tmp_path) -> None:
    (tmp_path / "p.txt").write_text("a\nb --w 1\n")
    assert faults("sample: {prompts: p.txt}") == [
        "sample.prompts.p.txt:2.--w: 1 is out of range: must be >= 64."
    ]
    (tmp_path / "p.txt").write_text("# nothing\n")
    told = "'p.txt' holds no prompt. Write one per line; '#' begins"
    assert told in faults("sample: {prompts: p.txt}")[0]
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    assert "cannot be read (not UTF-8" in faults("sample: {prompts: p.txt}")[0]


def test_a_pipe_is_no_file_of_prompts(faults, tmp_path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    assert "'p.txt' is not a file." in faults("sample: {prompts: p.txt}")[0]


@needs_foreign_names
def test_the_shift_comes_from_the_section(section) -> None:
    keys = "flow_shift: 3, samples: [{prompt: a}, {prompt: b, discrete_flow_shift: 2}, {prompt: c --fs 1.5}]"
    assert [
        item.flow_shift for item in section(f"sample: {{{keys}}}").sample.sample_items()
    ] == [3, 2, 1.5]


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "prompts: [a], samples: [{prompt: b}]",
            "prompts: 'samples' is given as well. Remove one of them.",
        ),
        (
            "prompts: [a], sample_prompts: b.txt",
            "prompts: 'sample_prompts' is given as well. Remove one of them.",
        ),
        (
            "prompts: a",
            "prompts: is not a list. Write one prompt per line, each after '- ', or give a text file (.txt)",
        ),
        (
            "prompts: none.txt",
            "prompts: 'none.txt' cannot be read (No such file or directory; working directory: ",
        ),
        ("flow_shift: 0", "flow_shift: 0 is out of range: must be >= 0.001."),
        ("prompts: [a, 5]", 'prompts[1]: 5 is not text. Put it in quotes: "5"'),
        ("prompts: [null]", "prompts[0]: needs a value."),
        ("samples: [{seed: 1}]", "samples[0].prompt: is required."),
        (
            "samples: [{prompt: a, ctrl_img: none.png}]",
            "samples[0].ctrl_img: 'none.png' does not exist",
        ),
        (
            "samples: [{prompt: a, ctrl_img_2: none.png}]",
            "samples[0].ctrl_img_2: 'none.png' does not exist",
        ),
        (
            "samples: [{prompt: a, ctrl_img_1: photos}]",
            "samples[0].ctrl_img_1: 'photos' is not a file.",
        ),
        ("sampler: ddpm", "sampler: 'ddpm' is unknown. Use 'flowmatch'."),
        ("width: 32", "width: 32 is out of range: must be >= 64."),
        ("sample_steps: 0", "sample_steps: 0 is out of range: must be >= 1."),
        ("format: gif", "format: 'gif' is unknown."),
    ],
)
def test_mistakes_of_a_sample_section(faults, keys: str, message: str) -> None:
    (found,) = faults(f"sample: {{{keys}}}")
    assert found.startswith(f"sample.{message}")


WANDB_VARIABLES = (
    "WANDB_API_KEY",
    "WANDB_MODE",
    "WANDB_BASE_URL",
    "WANDB_IDENTITY_TOKEN_FILE",
    "NETRC",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and no word of W&B in the environment."""
    for name in WANDB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def logging(section):
    """The `logging` section of a job with these lines."""
    return lambda *lines: section("logging:", *(f"  {line}" for line in lines)).logging


@pytest.fixture
def warnings(load):
    return lambda *lines: [
        line.split("logging.")[1]
        for line in load(trainer(*lines)).warnings
        if "logging." in line
    ]


# ------------------------------------------------------------ which trackers


@needs_foreign_names
@pytest.mark.parametrize(
    ("lines", "trackers"),
    [
        ([], ()),
        (["logging_dir: ''"], ()),
        (["logging_dir: null"], ()),
        (["logging_dir: 0"], ()),
        (["logging_dir: false"], ()),
        (["logging_dir: tb"], ("tensorboard",)),
        (["logging_dir: tb", "log_with: ''"], ("tensorboard",)),
        (["logging_dir: tb", "log_with: TensorBoard"], ("tensorboard",)),
        (["log_with: wandb"], ("wandb",)),
        (["logging_dir: tb", "log_with: all"], ("tensorboard", "wandb")),
        (
            ["logging_dir: tb", "log_with: [trackio, TensorBoard, trackio]"],
            ("trackio", "tensorboard"),
        ),
        (["logging_dir: tb", "log_with: [auto, mlflow]"], ("tensorboard", "mlflow")),
        (["log_with: [mlflow]"], ("mlflow",)),
        (["use_wandb: true", "log_with: [wandb, mlflow]"], ("wandb", "mlflow")),
        (["use_wandb: true"], ("wandb",)),
        (["use_wandb: true", "logging_dir: tb"], ("tensorboard", "wandb")),
        (["use_wandb: true", "logging_dir: 0"], ("wandb",)),
        (["use_wandb: true", "log_with: wandb"], ("wandb",)),
        (
            ["use_wandb: true", "logging_dir: tb", "log_with: all"],
            ("tensorboard", "wandb"),
        ),
        (["use_wandb: false", "logging_dir: tb"], ("tensorboard",)),
        (
            ["use_wandb: false", "logging_dir: tb", "log_with: tensorboard"],
            ("tensorboard",),
        ),
        (["use_wandb: null"], ()),
    ],
)
def test_the_trackers_follow_from_the_keys_of_either_style(
    logging, offline, lines: list[str], trackers
) -> None:
    assert logging(*lines).trackers() == trackers


@needs_foreign_names
def test_names_of_other_programs_mean_the_same(logging, offline) -> None:
    found = logging("use_wandb: true", "project_name: faces", "run_name: third")
    assert (found.wandb_project, found.wandb_run_name) == ("faces", "third")


@needs_foreign_names
def test_log_dir_of_the_process_is_logging_dir(section) -> None:
    assert section("log_dir: tb").logging.logging_dir == "tb"
    assert section("log_dir: null").logging.logging_dir == ""


@needs_foreign_names
def test_the_process_wins_over_a_default(load, offline) -> None:
    defaults = "  defaults: {logging: {use_wandb: true, logging_dir: tb}}\n"
    text = trainer("logging: {log_with: tensorboard}") + defaults
    assert load(text).processes[0].section.logging.trackers() == ("tensorboard",)
    text = (
        trainer("logging: {use_wandb: false}")
        + "  defaults: {logging: {log_with: wandb}}\n"
    )
    assert load(text).processes[0].section.logging.trackers() == ()


@needs_foreign_names
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["use_wandb: true", "logging_dir: tb", "log_with: tensorboard"],
            "use_wandb: true contradicts 'log_with: ten",
        ),
        (
            ["use_wandb: false", "log_with: wandb"],
            "use_wandb: false contradicts 'log_with: wandb'. Keep log_with.",
        ),
        (["use_wandb: maybe"], "use_wandb: 'maybe' is neither true nor false."),
        (
            ["log_with: tensorbord", "logging_dir: tb"],
            "log_with: 'tensorbord' is unknown. Did you mean 'tensorboard'?",
        ),
        (
            ["log_with: all"],
            "log_with: 'all' writes TensorBoard files. Set logging_dir to a folder.",
        ),
        (
            ["log_with: tensorboard"],
            "log_with: 'tensorboard' writes TensorBoard files. Set logging_dir to a folder",
        ),
        (
            ["logging_dir: job.yaml"],
            "logging_dir: 'job.yaml' is not a folder. Give a folder.",
        ),
        (
            ["project_name: a", "wandb_project: b"],
            "'project_name' and 'wandb_project' mean the same, but",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(
    faults, offline, lines: list[str], message: str
) -> None:
    [found] = faults("logging:", *(f"  {line}" for line in lines))
    assert message in found


# ------------------------------------------------------------ what they need


@pytest.mark.parametrize(("tracker", "package"), PACKAGES.items())
def test_a_missing_package_is_named_with_the_command(
    faults, offline, monkeypatch, tracker: str, package: str
) -> None:
    monkeypatch.setattr(section_module, "find_spec", lambda name: None)
    [found] = faults(
        f"logging: {{log_with: {tracker}, logging_dir: {'tb' if tracker == 'tensorboard' else 0}}}"
    )
    assert found == (
        f"logging.log_with: needs the package {package!r}, which is not installed. Run: {install_command(package)}"
    )


def test_a_folder_with_the_name_of_a_package_is_no_package(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "not_a_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not section_module._is_installed("not_a_package")
    assert section_module._is_installed("pydantic")


def test_wandb_without_a_key_is_refused_before_the_run(faults) -> None:
    [found] = faults("logging: {log_with: wandb}")
    assert found.startswith(
        "logging.log_with: Weights & Biases needs an API key, and none was found."
    )
    assert "WANDB_API_KEY" in found and "WANDB_MODE=offline" in found


def test_the_key_may_be_in_the_job_in_the_environment_or_in_netrc(
    logging, home: Path, monkeypatch, faults
) -> None:
    assert logging("log_with: wandb", f"wandb_api_key: {'a' * 40}").trackers()
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "a" * 40)
        assert logging("log_with: wandb").trackers()
    (home / ".netrc").write_text(
        "machine api.wandb.ai\n  login user\n  password secret\n"
    )
    (home / ".netrc").chmod(0o600)
    assert logging("log_with: wandb").trackers()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert "needs an API key" in faults("logging: {log_with: wandb}")[0]


def test_the_key_of_a_saved_config_is_known_to_be_redacted(
    faults, logging, monkeypatch: pytest.MonkeyPatch
) -> None:
    [found] = faults("logging: {log_with: wandb, wandb_api_key: <redacted>}")
    assert (
        found
        == "logging.wandb_api_key: was redacted when this file was saved. Set WANDB_API_KEY instead."
    )
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert logging("log_with: wandb").trackers()


def test_the_key_is_in_no_dump_and_no_repr() -> None:
    section = LoggingConfig(wandb_api_key="sesame-open")
    assert section.wandb_api_key == "sesame-open"
    assert "sesame" not in json.dumps(section.model_dump(mode="json")) + repr(
        section
    ) + str(section)


@pytest.mark.parametrize("key", ["logging_dir", "log_prefix", "log_tracker_name"])
def test_a_secret_is_no_name_of_a_folder(faults, key: str) -> None:
    lines = {"logging_dir": "tb", key: "hf_" + "Lit3ral" * 5}
    [found] = faults(
        "logging:", *(f"  {name}: {value}" for name, value in lines.items())
    )
    assert found.startswith(
        f"logging.{key}: is part of a folder name, which is visible on the disk"
    )


# ------------------------------------------------------------ what does nothing


@needs_foreign_names
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "log_prefix: x",
            [
                "log_prefix: has no effect: log_with is 'auto', so no TensorBoard files are written."
            ],
        ),
        (
            "log_tracker_name: x",
            ["log_tracker_name: has no effect without logging_dir or log_with."],
        ),
        (
            "run_name: x",
            ["run_name: has no effect without 'log_with: wandb' (or 'all')."],
        ),
        (
            "wandb_project: x, logging_dir: tb",
            ["wandb_project: has no effect without 'log_with: wandb' (or 'all')."],
        ),
        (
            "log_with: wandb, logging_dir: tb",
            [
                "logging_dir: has no effect: log_with is 'wandb', so no TensorBoard files are written."
            ],
        ),
        (
            "log_with: all, logging_dir: tb, log_prefix: a, log_tracker_name: b, wandb_project: c",
            [],
        ),
        ("use_wandb: false", []),
    ],
)
def test_what_concerns_a_tracker_that_is_not_used_is_said(
    warnings, offline, lines: str, said: list[str]
) -> None:
    assert warnings(f"logging: {{{lines}}}") == said


def test_caching_asks_for_no_tracker(load) -> None:
    text = trainer("logging: {log_with: wandb}").replace("sd_trainer", "encoding")
    assert load(text).processes[0].section.logging.log_with == "wandb"
