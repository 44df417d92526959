"""The section: what has to be there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from extensions.from_scratch.new_model_config import NewModelConfig, TinyModelConfig
from tests.quantized import mark
from toolkit.config import JobContext, load_job
from toolkit.errors import ConfigErrors, UserError


def found(job: JobContext = JobContext("job"), **keys: str) -> list[str]:  # noqa: B008 - a constant
    section = NewModelConfig(type="new_model", **keys)
    return [f"{'.'.join(map(str, d.key))}: {d.message}" for d in section.check(job)]


def test_what_is_missing_or_in_the_way_is_told_at_its_key(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    keys = {
        "path": str(tmp_path / "file" / "new"),
        "base": str(tmp_path),
        "vae": str(tmp_path),
    }
    file, base, vae = found(**keys)
    assert file.startswith("path: ") and "is a file" in file
    assert (
        base
        == f"base: {str(tmp_path)!r} holds no model_index.json. Give the folder of a model."
    )
    assert (
        vae
        == f"vae: {str(tmp_path)!r} holds no config.json. Give the folder of a model."
    )
    assert (
        found(
            path=str(tmp_path / "new"),
            base=str(tiny_model),
            vae=str(tiny_model / "vae"),
        )
        == []
    )


def test_parts_that_another_program_quantized_are_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    keys = {"path": str(tmp_path / "new"), "base": str(base)}
    mark(base / "transformer" / "config.json")
    assert found(**keys) == []  # it is replaced
    place = mark(base / "vae" / "config.json")
    said = "the vae is quantized by sdnq (uint4), which is not read. Give the bf16 model that it was made from."
    assert found(**keys) == [f"base: {place}{said}"]
    assert found(**keys, vae=str(tiny_model / "vae")) == []
    assert found(**keys, vae=str(base / "vae")) == [f"vae: {place}{said}"]
    mark(base / "text_encoder" / "config.json")
    assert len(found(**keys)) == 2


def test_what_earlier_processes_write_is_not_missing(tmp_path: Path) -> None:
    job = JobContext("job", frozenset({tmp_path / "run", tmp_path / "tiny"}))
    assert (
        found(
            job,
            path=str(tmp_path / "new"),
            base=str(tmp_path / "tiny"),
            vae=str(tmp_path / "run" / "vae"),
        )
        == []
    )


# ------------------------------------------------------------ tiny models


@pytest.fixture
def load(write_job):
    return lambda **section: load_job(
        write_job({"type": "tiny_model", **section}), lambda uid: TinyModelConfig
    )


def test_a_path_is_all_it_needs(load, tmp_path) -> None:
    section = load(path=str(tmp_path / "model")).processes[0].section
    assert (section.seed, section.layers, section.heads, section.overwrite) == (
        0,
        2,
        2,
        False,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("layers", 0),
        ("heads", 0),
        ("sed", 1),
        ("path", None),
    ],
)
def test_a_mistake_names_its_key(load, tmp_path, key: str, value: object) -> None:
    with pytest.raises(ConfigErrors, match=rf"process\[0\]\.{key}:"):
        load(**{"path": str(tmp_path / "model"), key: value})


def test_a_file_is_no_folder(load, tmp_path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(ConfigErrors, match=r"process\[0\]\.path: .* is a file"):
        load(path=str(tmp_path / "model"))


def test_a_trainer_after_it_may_name_the_model_it_writes(
    write_job, trainer, make_pictures, tmp_path
) -> None:
    from toolkit.extension import discover

    model = str(tmp_path / "later")
    training = trainer(
        make_pictures(tmp_path / "data", "a"), model={"name_or_path": model}
    )
    extensions = discover()
    job = write_job({"type": "tiny_model", "path": model}, training)
    assert (
        load_job(job, extensions.find_config).processes[1].section.model.name_or_path
        == model
    )
    with pytest.raises(
        ConfigErrors, match=r"process\[0\]\.model\.name_or_path: .* does not exist"
    ):
        load_job(write_job(training), extensions.find_config)


def test_a_model_is_still_there_when_its_index_is(tmp_path) -> None:
    section = TinyModelConfig(type="tiny_model", path=str(tmp_path))
    assert not section.outputs_exist(JobContext("job"))
    (tmp_path / "model_index.json").write_text("{}")
    assert section.outputs_exist(JobContext("job"))


def test_captions_are_folders_of_text(load, tmp_path) -> None:
    with pytest.raises(
        ConfigErrors, match=r"process\[0\]\.captions: .* is not a folder"
    ):
        load(path=str(tmp_path / "model"), captions=str(tmp_path / "words"))
    (tmp_path / "words").mkdir()
    section = (
        load(path=str(tmp_path / "model"), captions=str(tmp_path / "words"))
        .processes[0]
        .section
    )
    with pytest.raises(UserError, match=r"holds no \.txt file"):
        section.texts()
    (tmp_path / "words" / "b.txt").write_text("second\n")
    (tmp_path / "words" / "a.txt").write_text(" first")
    assert section.texts() == ("first", "second")
