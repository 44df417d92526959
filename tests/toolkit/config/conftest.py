"""A config file in a temporary working directory, loaded with the models of the
built-in processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import BaseModel

from extensions.sd_trainer.config import SdTrainerConfig
from tests.model_folders import write_model
from toolkit.config import JobConfig, load_job
from toolkit.config.reading.process import JobContext, ProcessConfig
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.errors import ConfigErrors, UserError, did_you_mean


class WriterConfig(ProcessConfig):
    """`type: writer`: a process that writes a model folder, which later ones of its job
    read."""

    path: str
    """The folder."""

    def outputs(self, job: JobContext) -> frozenset[Path]:
        return frozenset({Path(self.path).resolve()})


class EncodingConfig(DiffusionSection):
    """`type: encoding`: a process that reads a trainer's keys and does not train."""

    process_types: ClassVar[tuple[str, ...]] = ("encoding",)

    not_used: ClassVar = frozenset({"train", "logging"})


MODELS: dict[str, type[BaseModel] | None] = {
    **dict.fromkeys(SdTrainerConfig.process_types, SdTrainerConfig),
    "encoding": EncodingConfig,
    "writer": WriterConfig,
    "drop_in": None,
}


def find_model(name: str) -> type[BaseModel] | None:
    if name not in MODELS:
        raise UserError(f"unknown process type {name!r}. {did_you_mean(name, MODELS)}")
    return MODELS[name]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that no test changes."""
    return write_model(tmp_path_factory.mktemp("config") / "model")


@pytest.fixture
def load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> Callable[..., JobConfig]:
    """Writes a text to `job.yaml` (or `file`) in an empty working directory and loads
    it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "model").symlink_to(model_folder)

    def load(
        text: str, *, file: str = "job.yaml", find=find_model, **options
    ) -> JobConfig:
        Path(file).write_text(text, encoding="utf-8")
        return load_job(file, find, **options)

    return load


@pytest.fixture
def mistakes(load: Callable[..., JobConfig]) -> Callable[..., list[str]]:
    """The lines a wrong config prints, without the name of the file."""

    def mistakes(text: str, **options) -> list[str]:
        with pytest.raises(ConfigErrors) as caught:
            load(text, **options)
        return [
            line.removeprefix(options.get("file", "job.yaml") + ":")
            for line in str(caught.value).splitlines()
        ]

    return mistakes


@pytest.fixture
def section(load: Callable[..., JobConfig]) -> Callable[..., SdTrainerConfig]:
    """The section of a small training job, with more lines put into it (indented by
    6)."""
    return lambda *lines, **options: (
        load(trainer(*lines), **options).processes[0].section
    )


@pytest.fixture
def faults(mistakes: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """The messages of a small training job with more lines put into it, without their
    places."""
    return lambda *lines: [
        line.split(": process[0].", 1)[1] for line in mistakes(trainer(*lines))
    ]


def trainer(*lines: str) -> str:
    """A small training job. `datasets` and `model` are added where no line gives
    them."""
    given = "\n".join(lines)
    more = [] if "datasets:" in given else ["datasets: [{folder_path: photos}]"]
    more += [] if "model:" in given else ["model: {name_or_path: ./model}"]
    body = "\n".join(
        f"      {line}" for block in [*more, *lines] for line in block.splitlines()
    )
    return f"job: extension\nconfig:\n  name: test\n  process:\n    - type: sd_trainer\n{body}\n"
