"""`logging`: which trackers a job asks for, under every name, and what they need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.parts import needs_foreign_names
from tests.toolkit.config.conftest import trainer
from toolkit.config.sections import output as section_module
from toolkit.config.sections.output import PACKAGES, LoggingConfig
from toolkit.errors import install_command

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


def test_the_key_of_a_saved_config_is_known_to_be_redacted(faults) -> None:
    [found] = faults("logging: {log_with: wandb, wandb_api_key: <redacted>}")
    assert (
        found
        == "logging.wandb_api_key: was redacted when this file was saved. Set WANDB_API_KEY instead."
    )


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
            "log_config: true",
            ["log_config: has no effect without logging_dir or log_with."],
        ),
        (
            "run_name: x",
            ["run_name: has no effect without 'log_with: wandb' (or 'all')."],
        ),
        (
            "wandb_entity: x, logging_dir: tb",
            ["wandb_entity: has no effect without 'log_with: wandb' (or 'all')."],
        ),
        (
            "log_with: wandb, logging_dir: tb",
            [
                "logging_dir: has no effect: log_with is 'wandb', so no TensorBoard files are written."
            ],
        ),
        (
            "log_with: all, logging_dir: tb, log_prefix: a, log_tracker_name: b, log_config: true, wandb_project: c",
            [],
        ),
        ("use_wandb: false, log_config: false", []),
    ],
)
def test_what_concerns_a_tracker_that_is_not_used_is_said(
    warnings, offline, lines: str, said: list[str]
) -> None:
    assert warnings(f"logging: {{{lines}}}") == said


def test_caching_asks_for_no_tracker(load) -> None:
    text = trainer("logging: {log_with: wandb}").replace("sd_trainer", "encoding")
    assert load(text).processes[0].section.logging.log_with == "wandb"
