"""What many tests share: running the command line, writing jobs and drop-in
extensions."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks import cuda_report
from benchmarks.cuda_report import (  # noqa: F401 - hooks of pytest
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_ignore_collect,
)
from tests import cpu_seconds
from tests.cpu_seconds import (  # noqa: F401 - hooks of pytest
    pytest_runtest_logreport,
    pytest_runtest_makereport,
    pytest_runtest_protocol,
    pytest_terminal_summary,
)
from tests.faults.nursery import Child, Nursery
from tests.html_browser import Browser, opened_browser
from tests.processes import ROOT, environment, free_port
from toolkit import extension
from toolkit.files.log import OWN_PACKAGES
from toolkit.models import kept

if TYPE_CHECKING:
    from tests.diffusers_reference import Member

# Compiled modules are kept, whatever the environment says: 460 test files are rewritten
# once, not by every worker of every suite (13 s of a CPU), and each process that a test
# starts imports half a second sooner.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# People behind a firewall set these; the tests have a small hub on this machine.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.pop(_name, None)

TURNED_HEIC = ROOT / "tests/toolkit/data/pixels/turned.heic"
"""As an iPhone held upright writes it: 96 x 64 red, its left upper quarter green and
its right half blue, and that it is to be turned clockwise, in the format's own way and
in EXIF, which does not count."""


gc.disable()  # until all tests are collected, of which next to nothing is garbage


def pytest_addoption(parser: pytest.Parser) -> None:
    cuda_report.pytest_addoption(parser)
    cpu_seconds.pytest_addoption(parser)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A worker that has finished takes tests from the other's end: neither waits, and
    the tests of a file stay together, with what they share."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish() -> None:
    """What is there by now stays: a job collects its garbage twice, and need not look
    through all of that."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """The same for what the test before has left: modules, fixtures, reports. What the
    first job of a file imports costs each later one as much CPU as all that it does."""
    pytest_collection_finish()


def readme_commands(page: str, tool: str) -> list[list[str]]:
    """The flags of each `.venv/bin/python run.py TOOL ...` that stands on a line of its
    own in a page."""
    begin = f".venv/bin/python run.py {tool} "
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [
        shlex.split(line.removeprefix(begin), comments=True)
        for line in lines
        if line.startswith(begin)
    ]


FAST_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Elsewhere (no AVX-512) a product in bfloat16 takes a CPU 6 to 50 times as long as one
in float32."""


READ_AT_THE_START = ("PYTHON", "HF_", "OMP_", "TORCH")
"""How names of variables begin that count for an interpreter or a library once, when it
starts."""


@pytest.fixture(autouse=True)
def room_to_keep_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans and starts keep quantized models whatever is free on the disk of the tests;
    processes of their own see what is free."""
    monkeypatch.setattr(kept, "LEAST_FREE", -(10**12))


@pytest.fixture(scope="session", autouse=True)
def installed_packages_are_looked_through_once() -> Iterator[None]:
    """`discover` reads the metadata of every installed package, 10 ms of a CPU, for
    each job of a test; what is installed depends on where Python looks."""
    found = cache(lambda paths, group: extension_points(group=group))
    extension_points = extension.entry_points
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            extension, "entry_points", lambda group: found((*sys.path,), group)
        )
        yield


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    server = Nursery()
    yield server
    server.close()


@pytest.fixture
def run_py(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `run.py`, in `tmp_path` unless `cwd` says otherwise; `env` adds to the
    environment.

    It is forked from a process that has imported everything, which saves seconds; with
    a variable that is read at the start of an interpreter or of a library it is a new
    one.
    """

    def run(
        *arguments: object, cwd: Path = tmp_path, env: dict[str, str] | None = None
    ):
        command = [sys.executable, str(ROOT / "run.py"), *map(str, arguments)]
        if hasattr(os, "fork") and not any(
            name.startswith(READ_AT_THE_START) for name in env or ()
        ):
            child = request.getfixturevalue("start_py")(*arguments, cwd=cwd, env=env)
            return subprocess.CompletedProcess(command, child.wait(120), *child.outputs)
        return subprocess.run(
            command,
            cwd=cwd,
            env=child_environment(env),
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def start_py(
    nursery: Nursery, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Child]]:
    """Starts `run.py`, forked, in `tmp_path` unless `cwd` says otherwise; `env` adds to
    the environment.

    What still runs at the end of the test is killed.
    """
    started: list[Child] = []

    def start(
        *arguments: object, cwd: Path = tmp_path, env: dict[str, str] | None = None
    ) -> Child:
        said = tmp_path_factory.mktemp("said") / "run"
        started.append(
            nursery.fork(arguments, cwd, str(said), environment=child_environment(env))
        )
        return started[-1]

    yield start
    for child in started:
        child.end()


@pytest.fixture
def run_ranks(start_py: Callable[..., Child]) -> Callable[..., None]:
    """Runs `run.py` in so many processes that train together, to a good end of all."""

    def run(processes: int, *arguments: object) -> None:
        port = free_port()
        ranks = [
            environment(rank, processes, port) if processes > 1 else {}
            for rank in range(processes)
        ]
        for child in [start_py(*arguments, env=env) for env in ranks]:
            child.ends_with(0)

    return run


@contextmanager
def heard() -> Iterator[list[str]]:
    """What the program logs inside the block; the list grows with it."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in OWN_PACKAGES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the program logs during the test."""
    with heard() as messages:
        yield messages


def child_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that a test starts. PYTHONPATH, where `extra` has
    it, comes before the folders through which this process may have found its
    libraries."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", **(extra or {})}
    if extra and "PYTHONPATH" in extra and (before := os.environ.get("PYTHONPATH")):
        found["PYTHONPATH"] = os.pathsep.join((extra["PYTHONPATH"], before))
    return found


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job with these processes as `<name>.yaml` (JSON is YAML) and returns its
    path."""

    def write(*processes: dict, name: str = "job", **top: object) -> Path:
        path = tmp_path / f"{name}.yaml"
        job = {
            "job": "extension",
            "config": {"name": name, "process": list(processes)},
            **top,
        }
        path.write_text(json.dumps(job), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_extension(tmp_path: Path) -> Callable[..., Path]:
    """Writes a package `<folder>/<name>` with these files and returns it; `init` is its
    `__init__.py`."""

    def write(name: str, init: str, folder: str = "drop_ins", **modules: str) -> Path:
        package = tmp_path / folder / name
        package.mkdir(parents=True)
        for module, source in {"__init__": init, **modules}.items():
            (package / f"{module}.py").write_text(dedent(source), encoding="utf-8")
        return package

    return write


@pytest.fixture
def simple_extension(write_extension: Callable[..., Path]) -> Callable[..., Path]:
    """Writes an extension whose process runs these lines; `uid` is also the folder's
    name."""

    def write(
        uid: str,
        run: str = "pass",
        folder: str = "drop_ins",
        package: str | None = None,
    ) -> Path:
        init = f"""
            from toolkit.extension import Extension

            class Simple(Extension):
                uid = {uid!r}
                name = "simple"

                @classmethod
                def get_process(cls):
                    from .process import SimpleProcess
                    return SimpleProcess

            AI_TOOLKIT_EXTENSIONS = [Simple]
        """
        process = (
            "from jobs.process import BaseExtensionProcess\n\n\n"
            "class SimpleProcess(BaseExtensionProcess):\n"
            "    def run(self):\n"
            "        super().run()\n"
            + "".join(f"        {line}\n" for line in dedent(run).splitlines())
        )
        return write_extension(package or uid, init, folder, process=process)

    return write


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """The device of tests with the mark `cuda`; products in float32 are not rounded to
    TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield torch.device("cuda:0")
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Qwen-Image-Edit folder with tiny random parts, written once per
    session. Read only."""
    from toolkit.models.tiny import write_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def layered_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of Qwen-Image-Layered."""
    from toolkit.models.tiny import TinySpec, write_tiny_model

    folder = tmp_path_factory.mktemp("layered") / "model"
    write_tiny_model(folder, TinySpec(arch="qwen_image_layered"))
    return folder


@pytest.fixture
def examples_alone(tmp_path: Path) -> Path:
    """A working directory that holds nothing but the examples."""
    shutil.copytree(ROOT / "config", tmp_path / "work" / "config")
    return tmp_path / "work"


@pytest.fixture(scope="session")
def pipeline(tiny_model: Path):
    """diffusers' own pipeline over the tiny model, float32. A test that loads a LoRA
    into it takes it out again."""
    from tests.diffusers_reference import load_pipeline

    return load_pipeline(tiny_model)


@pytest.fixture(scope="session")
def unit_gain_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights in which every input is plainly seen (see
    `write_unit_gain`). Read only."""
    from tests.diffusers_reference import write_unit_gain

    folder = tmp_path_factory.mktemp("models") / "unit_gain"
    write_unit_gain(folder, tiny_model)
    return folder


@pytest.fixture(scope="session")
def unit_gain_pipeline(unit_gain_model: Path):
    """diffusers' own pipeline over it, as `pipeline`."""
    from tests.diffusers_reference import load_pipeline

    return load_pipeline(unit_gain_model)


@pytest.fixture(scope="session")
def member(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Member]:
    """By its name in `diffusers_reference.MEMBERS`, written once per session."""
    from tests.diffusers_reference import MEMBERS, write_member

    return cache(
        lambda name: write_member(tmp_path_factory.mktemp("members"), MEMBERS[name])
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium (tests/html_browser.py), for tests marked `slow`."""
    with opened_browser() as opened:
        yield opened


@pytest.fixture
def make_pictures() -> Callable[..., Path]:
    """Writes small smooth images `<stem>.png` with captions into a folder, all
    different, and returns the folder."""
    from PIL import Image

    def make(
        folder: Path,
        *stems: str,
        size: tuple[int, int] = (80, 64),
        captions: bool = True,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for stem in stems:
            pixels = Random(f"{folder.name}/{stem}").randbytes(4 * 3 * 3)
            Image.frombytes("RGB", (4, 3), pixels).resize(
                size, Image.Resampling.BICUBIC
            ).save(folder / f"{stem}.png")
            if captions:
                (folder / f"{stem}.txt").write_text(
                    f"a photo of {stem}", encoding="utf-8"
                )
        return folder

    return make


@pytest.fixture
def trainer(tiny_model: Path) -> Callable[..., dict]:
    """A short `sd_trainer` section on the tiny model; `train` is merged, other keys are
    replaced."""

    def section(*folders: Path, train: dict | None = None, **changes: object) -> dict:
        return {
            "type": "sd_trainer",
            "training_folder": "output",
            "device": "cpu",
            "training_seed": 3,
            "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
            "save": {"dtype": "float32", "save_every": 0},
            "datasets": [
                {"folder_path": str(folder), "resolution": 64} for folder in folders
            ],
            "train": {
                "steps": 2,
                "lr": 0.01,
                "optimizer": "adamw",
                "dtype": "fp32",
                **(train or {}),
            },
            "model": {
                "name_or_path": str(tiny_model),
                "model_kwargs": {"match_target_res": True},
            },
            **changes,
        }

    return section


@pytest.fixture
def parts_and_whole(
    run_py, write_job, trainer, make_pictures, tmp_path: Path
) -> Callable[..., tuple[Path, Path, str]]:
    """Trains a network on an int8 base, with every dropout, checkpointing and an
    average: a step and one more, and 2 at once. Returns the two files and what the last
    run printed."""

    def make(network: dict, **changes: object) -> tuple[Path, Path, str]:
        folder = make_pictures(tmp_path / "2_photos", "a", "b")
        rates = dict.fromkeys(("dropout", "rank_dropout", "module_dropout"), 0.1)
        network = {**rates, "exclude_patterns": [r".*_mod\.1"], **network}
        for run, steps in (("parts", 1), ("parts", 2), ("whole", 2)):
            section = trainer(
                folder,
                training_folder=run,
                train={
                    "steps": steps,
                    "gradient_checkpointing": True,
                    "ema_config": {"use_ema": True},
                },
                network=network,
                **changes,
            )
            section["model"] |= {"quantize": True, "qtype": "int8"}
            result = run_py(write_job(section), "-v")
            printed = result.stdout + result.stderr
            assert result.returncode == 0, printed
            counts = re.findall(
                r"(?:on 24 layers: |: 24 layers, )([\d,]+) trainable parameters",
                printed,
            )
            # the plan and the network
            assert len(counts) == 2 and len(set(counts)) == 1, printed
        parts, whole = (
            tmp_path / run / "job" / "job.safetensors" for run in ("parts", "whole")
        )
        return parts, whole, printed

    return make
