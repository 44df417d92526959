"""How a process reads its section, and the folder that a trainer owns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import ExtensionJob
from jobs.process import BaseExtensionProcess, BaseProcess, BaseTrainProcess
from toolkit.errors import UserError


def process(**section: object) -> BaseProcess:
    job = SimpleNamespace(name="job", meta={"by": ["me"]})
    return BaseExtensionProcess(2, job, OrderedDict(type="x", **section))


def test_what_it_is_given() -> None:
    made = process(a=1)
    assert (made.process_id, made.name, made.job.name) == (2, "job", "job")
    assert made.config == made.raw_process_config == {"type": "x", "a": 1}
    assert made.section is None
    with pytest.raises(
        AttributeError, match=r"'BaseExtensionProcess' object has no attribute 'tymer'$"
    ):
        _ = made.tymer
    with pytest.raises(
        AttributeError,
        match=r"no attribute 'progress_bar'; use toolkit\.files\.log\.StatusLine$",
    ):
        _ = made.progress_bar
    made.run()
    made.on_error(ValueError())


@pytest.mark.parametrize(
    ("given", "name"), [("own", "own"), (None, "job"), ("", "job")]
)
def test_its_name_is_its_own_or_the_jobs(given: str | None, name: str) -> None:
    assert process(name=given).name == name


def test_meta_is_a_copy_that_can_be_added_to() -> None:
    made = process()
    made.add_meta(OrderedDict(step=3))
    made.meta["by"].append("you")
    assert made.meta == {"by": ["me", "you"], "step": 3}
    assert made.job.meta == {"by": ["me"]}


def test_get_conf_follows_a_dotted_path_through_lists_too() -> None:
    made = process(train={"lr": 1e-4}, datasets=[{"folder_path": "a"}])
    assert made.get_conf("train.lr") == 1e-4
    assert made.get_conf("datasets.0.folder_path") == "a"
    for absent in (
        "train.lr.x",
        "train.x",
        "datasets.1.folder_path",
        "datasets.x",
        "x.y",
    ):
        assert made.get_conf(absent, "default") == "default"


def test_null_counts_as_missing_and_zero_does_not() -> None:
    made = process(null=None, zero=0, off=False, empty="")
    assert made.get_conf("null", 5) == 5
    assert [made.get_conf(key, 5) for key in ("zero", "off", "empty")] == [0, False, ""]


def test_a_missing_required_key_is_named() -> None:
    with pytest.raises(UserError, match=r"^process\[2\]\.a\.b: required"):
        process(a={"b": None}).get_conf("a.b", required=True)


def test_as_type_converts_values_and_defaults() -> None:
    made = process(lr="1e-4")
    assert made.get_conf("lr", as_type=float) == 1e-4
    assert made.get_conf("steps", "10", as_type=int) == 10
    assert made.get_conf("steps", as_type=int) is None
    assert made.get_conf("lr", as_type=lambda text: text.upper()) == "1E-4"


@pytest.mark.parametrize("as_type", [int, float, lambda value: value.no_such()])
def test_as_type_that_refuses_names_key_and_value(as_type) -> None:
    with pytest.raises(UserError, match=r"process\[2\]\.lr: 'fast'"):
        process(lr="fast").get_conf("lr", as_type=as_type)


def test_text_is_no_truth_value() -> None:
    assert process(on=True).get_conf("on", as_type=bool) is True
    with pytest.raises(UserError, match="'false' is text"):
        process(on="false").get_conf("on", as_type=bool)


# ------------------------------------------------------------ the folder that a trainer
# owns

INIT = """
    from toolkit.extension import Extension
    from toolkit.config.reading.process import ProcessConfig

    class Checked(ProcessConfig):
        training_folder: str = "checked_output"
        training_seed: int = 7
        own_folder: str | None = None
        def run_folder(self, job):
            from pathlib import Path
            return Path(self.own_folder) if self.own_folder else None

    class Plain(Extension):
        uid = "plain"
        @classmethod
        def get_process(cls):
            from jobs.process import BaseTrainProcess
            return BaseTrainProcess

    class WithConfig(Plain):
        uid = "checked"
        @classmethod
        def get_config(cls): return Checked

    AI_TOOLKIT_EXTENSIONS = [Plain, WithConfig]
"""


@pytest.fixture
def build(
    build_job: Callable[..., ExtensionJob],
    write_extension: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., BaseTrainProcess]:
    monkeypatch.chdir(tmp_path)
    write_extension("trainers", INIT)
    return lambda **section: build_job(section).process[0]


def test_the_folder_is_named_by_job_and_process(build) -> None:
    here = Path.cwd()
    assert build(type="plain", training_folder="out").save_root == here / "out/job"
    second = build(type="plain", training_folder="out", name="second")
    assert second.save_root == here / "out/job/second"
    assert build(type="plain").save_root == here / "output/job"


def test_a_checked_section_knows_its_defaults_and_its_folder(build) -> None:
    process = build(type="checked")
    here = Path.cwd()
    assert (process.save_root, process.training_seed) == (
        here / "checked_output/job",
        7,
    )
    assert build(type="checked", own_folder="mine").save_root == here / "mine"


def test_the_seed_is_none_when_none_is_given(build) -> None:
    assert build(type="plain").training_seed is None
    assert build(type="plain", training_seed=5).training_seed == 5


def test_nothing_is_written_before_run_and_the_job_is_kept_unexpanded(
    build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "secret")
    process = build(type="plain", training_folder="out", word="${WORD}")
    assert process.get_conf("word") == "secret"
    assert not (tmp_path / "out").exists()
    process.run()
    assert [file.name for file in process.save_root.iterdir()] == ["config.yaml"]
    saved = (process.save_root / "config.yaml").read_text(encoding="utf-8")
    assert "${WORD}" in saved
    assert "secret" not in saved


def test_print(build, capsys: pytest.CaptureFixture[str]) -> None:
    build(type="plain").print("a", 1)
    assert capsys.readouterr().out == "a 1\n"
