"""A small job with everything random switched on, what it leaves when nothing happens
to it, and how to start it."""

from __future__ import annotations

import copy
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops
from safetensors.torch import load_file
from torch import Tensor

from tests.faults.nursery import Child, Fault, Nursery
from tests.processes import environment, free_port
from toolkit.system.distributed import ProcessGroup
from toolkit.train.sharded_state import read_rows, shapes_of_rows

STEPS = 6
TERM, INT, KILL = int(signal.SIGTERM), int(signal.SIGINT), int(signal.SIGKILL)

STEP = "toolkit.train.flow_step:FlowMatchingStep.__call__"
"""Called first by the trial of the largest batch, then for each micro-batch."""

STEP_3_OF_TWO = 1 + 3
"""The call of STEP for step 3 in a process of two."""


def draw_pictures(folder: Path, *stems: str, size: tuple[int, int] = (80, 64)) -> Path:
    """Small smooth images with captions, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        pixels = Random(stem).randbytes(4 * 3 * 3)
        Image.frombytes("RGB", (4, 3), pixels).resize(
            size, Image.Resampling.BICUBIC
        ).save(folder / f"{stem}.png")
        (folder / f"{stem}.txt").write_text(f"a photo of {stem}", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images. Read only."""
    return draw_pictures(tmp_path_factory.mktemp("data"), "a", "b", "c")


def section_of(model: Path, pictures: Path) -> dict[str, Any]:
    """EMA, accumulation across the end of the epoch, samples between the saves."""
    return {
        "type": "sd_trainer",
        "training_folder": "output",
        "device": "cpu",
        "training_seed": 3,
        "network": {"type": "lora", "linear": 4, "linear_alpha": 4, "dropout": 0.1},
        "save": {"dtype": "float32", "save_every": 2, "max_states_to_keep": 0},
        "datasets": [{"folder_path": str(pictures), "resolution": 64}],
        "train": {
            "steps": STEPS,
            "gradient_accumulation": 2,
            "lr": 0.01,
            "optimizer": "adamw",
            "dtype": "fp32",
            "gradient_checkpointing": False,
            "ema_config": {"use_ema": True, "ema_decay": 0.9},
        },
        "sample": {
            "prompts": ["a photo"],
            "width": 64,
            "height": 64,
            "sample_steps": 2,
            "sample_every": 3,
            "format": "png",
        },
        "model": {"name_or_path": str(model)},
    }


@pytest.fixture(scope="session")
def small_section(tiny_model: Path, pictures: Path) -> dict:
    """With dropout of both kinds."""
    section = section_of(tiny_model, pictures)
    section["datasets"][0]["caption_dropout_rate"] = 0.3
    section["model"]["model_kwargs"] = {"match_target_res": True}
    return section


@dataclass
class Job:
    """One job in a folder of its own, to be changed and started again and again."""

    nursery: Nursery
    cwd: Path
    section: dict
    name: str = "job"
    started: list[Child] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.cwd / "output" / self.name

    def change(self, **values: object) -> None:
        """Sets values by their dotted path, `train__lr` for train.lr."""
        for path, value in values.items():
            *parents, key = path.split("__")
            target = self.section
            for parent in parents:
                target = target[parent]
            target[key] = value

    def write(self) -> Path:
        """The job's file."""
        path = self.cwd / "job.yaml"
        document = {
            "job": "extension",
            "config": {"name": self.name, "process": [self.section]},
        }
        text = json.dumps(document)
        # another process may be reading it
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        return path

    def start(self, *flags: str, faults: Sequence[Fault] = ()) -> Child:
        self.started.append(
            self.nursery.fork(
                [self.write(), *flags], self.cwd, f"run{len(self.started)}", faults
            )
        )
        return self.started[-1]

    def run(self, *flags: str, faults: Sequence[Fault] = (), code: int = 0) -> str:
        """All output of a start that is to end with this exit code; no end is a
        traceback."""
        return self.start(*flags, faults=faults).ends_with(code)

    def metrics(self) -> list[dict]:
        """Lines of metrics.jsonl without their times."""
        return self.lines("metrics.jsonl")

    def lines(self, name: str) -> list[dict]:
        """Lines of a JSONL file of the run, without their times."""
        path = self.folder / name
        return (
            [without_times(line) for line in path.read_text().splitlines()]
            if path.exists()
            else []
        )

    def steps(self) -> list[int]:
        return [line["step"] for line in self.metrics()]

    def states(self) -> list[int]:
        return sorted(
            int(path.name.removeprefix("step_"))
            for path in self.folder.glob("state/step_*")
        )

    def status(self) -> str:
        return json.loads((self.folder / "run.json").read_text())["status"]

    def forget_state(self, step: int) -> None:
        """Removes a state that the uninterrupted run does not have."""
        shutil.rmtree(self.folder / "state" / f"step_{step:09d}")

    def end(self) -> None:
        for child in self.started:
            child.end()

    def result(self) -> dict[str, object]:
        """Everything that has to be equal: network files and states byte for byte,
        metrics, pixels of samples."""
        found: dict[str, object] = {"metrics": self.metrics()}
        for path in [
            *self.folder.glob("*.safetensors"),
            *self.folder.glob("state/*/*"),
        ]:
            found[path.relative_to(self.folder).as_posix()] = path.read_bytes()
        for path in filter(
            Path.is_file,
            [*self.folder.glob("samples/*"), *self.folder.glob("samples/layers/*")],
        ):
            found[re.fullmatch(r"(\d+_\d+(_layer\d+)?)\.png", path.name)[1]] = (
                Image.open(path).tobytes()
            )
        return found


def pictures_of(job: Job) -> np.ndarray:
    """All samples of a run in the order of its steps; 0 to 255."""
    paths = sorted(job.folder.glob("samples/*.png"))
    return np.array([np.asarray(Image.open(path), dtype=np.float64) for path in paths])


def without_times(line: str) -> dict:
    return {
        key: value
        for key, value in json.loads(line).items()
        if key != "time" and not key.endswith("_s")
    }


@pytest.fixture
def job(nursery: Nursery, tmp_path: Path, small_section: dict) -> Iterator[Job]:
    made = Job(nursery, tmp_path, copy.deepcopy(small_section))
    yield made
    made.end()


@pytest.fixture(scope="session")
def whole(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, small_section: dict
) -> Job:
    """The small job when nothing happens to it. Read only."""
    made = Job(nursery, tmp_path_factory.mktemp("whole"), copy.deepcopy(small_section))
    made.run()
    assert made.states() == [2, 4, 6]
    return made


@pytest.fixture
def encoded(job: Job, whole: Job) -> None:
    """The job finds images and texts encoded, which is a fifth of its CPU time."""
    shutil.copytree(whole.cwd / "output" / "_cache", job.cwd / "output" / "_cache")


@pytest.fixture
def finished(job: Job, whole: Job, encoded: None) -> Job:
    """The same run, finished, to be gone on from."""
    shutil.copytree(whole.folder, job.folder)
    return job


@pytest.fixture
def same(job: Job, whole: Job) -> Callable[[], None]:
    """Fails unless the job has come to the same end as the whole one."""

    def check() -> None:
        ours, theirs = job.result(), whole.result()
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if ours[name] != theirs[name]] == []
        assert job.status() == "finished"

    return check


def assert_same_but_for_rounding(job: Job, other: Job) -> None:
    """Both have the same metrics, weights and states in the files that `other` has."""
    for name in ("metrics.jsonl", "validation.jsonl"):
        if (other.folder / name).exists():
            for ours, theirs in zip(job.lines(name), other.lines(name), strict=True):
                assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    for file in other.folder.glob("*.safetensors"):
        assert_same_tensors(job.folder / file.name, file)


def tensors_of(file: Path) -> dict[str, Tensor]:
    """What a file has, and of a file of a state also what the ranks wrote as rows."""
    shapes = shapes_of_rows(file.parent)
    wanted = dict.fromkeys(name for name in shapes if name.startswith(f"{file.stem}/"))
    rows = read_rows(file.parent, wanted, ProcessGroup())
    return load_file(file) | {
        name.partition("/")[2]: tensor for name, tensor in rows.items()
    }


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    found, expected = tensors_of(ours), tensors_of(theirs)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape and found[name].dtype == tensor.dtype
        # Adam divides by the size of a gradient: what is rounding in one that is nearly
        # 0 is more in the weight.
        assert (found[name].float() - tensor.float()).abs().max() < 1e-5, (
            f"{theirs}: {name}"
        )


def assert_same_images(job: Job, other: Job) -> None:
    """The samples differ by one of 255 at most."""
    for ours, theirs in zip(
        *(sorted(each.folder.glob("samples/*")) for each in (job, other)), strict=True
    ):
        difference = ImageChops.difference(Image.open(ours), Image.open(theirs))
        assert all(most <= 1 for _, most in difference.getextrema()), (ours, theirs)


def start_together(
    job: Job,
    of_each: Sequence[Fault] = (),
    of_second: Sequence[Fault] = (),
    processes: int = 2,
) -> list[Child]:
    """The processes of one job, as a launcher starts them."""
    port = free_port()
    faults = [[*of_each], [*of_each, *of_second], *[[*of_each]] * (processes - 2)]
    return [
        job.start(
            faults=[("environment", environment(rank, processes, port)), *faults[rank]]
        )
        for rank in range(processes)
    ]


def run_together(job: Job, code: int = 0, **how: Any) -> str:
    """What all print when they end with this exit code. how: of `start_together`."""
    children = start_together(job, **how)
    codes = [child.wait() for child in children]
    output = "".join(child.output for child in children)
    assert codes == [code] * len(children), output
    assert "Traceback" not in output, output
    return output


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the log, which grows, and the lock."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("log.txt", "run.lock")
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
