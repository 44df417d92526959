"""Whole trainings of autoencoders with everything random switched on, killed within a
step, at a save and between the processes of a job: they end in the same bytes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.extensions.from_scratch.conftest import SMALL
from tests.faults.conftest import (
    KILL,
    STEPS,
    TERM,
    Job,
    contents,
    without_times,
)
from tests.faults.nursery import Child, Fault, Nursery

OF_VAE = "extensions.from_scratch.autoencoder_step:AutoencoderStep._autoencoder_losses"
OF_DISCRIMINATOR = (
    "extensions.from_scratch.autoencoder_step:AutoencoderStep._discriminator_losses"
)
"""Called once per micro-batch from the second step on, after the autoencoder's backward
pass."""

OF_THIS_START = "run.json|events.jsonl|/superseded/"
"""Files that tell what happened when, and what was moved aside."""

FINISHED = "jobs.job_state:JobState.finish"


@dataclass
class Pipeline(Job):
    """A VAE with SPADE and a discriminator, then its decoder with another
    discriminator's start."""

    def start(self, *flags: str, faults: Sequence[Fault] = ()) -> Child:
        return super().start(*flags, faults=[("unmeasured",), *faults])

    def sections(self) -> list[dict]:
        first = {**copy.deepcopy(self.section), "name": "one"}
        model = {"name_or_path": f"output/{self.name}/one/one", "train": "decoder"}
        second = {**copy.deepcopy(self.section), "name": "two", "model": model}
        second["discriminator"] = {**self.section["discriminator"], "start_step": 0}
        return [first, second]

    def write(self) -> Path:
        path = self.cwd / "job.yaml"
        document = {
            "job": "extension",
            "config": {"name": self.name, "process": self.sections()},
        }
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    def result(self) -> dict[str, object]:
        """Every file byte for byte; of metrics all but their times, of samples all but
        those in their names."""
        found: dict[str, object] = {}
        for name, text in contents(self.folder).items():
            if name.endswith(".jsonl"):
                found[name] = [without_times(line) for line in text.splitlines()]
            elif "/samples/" in name:
                found[re.sub(r"\d+__", "", name)] = text
            else:
                found[name] = text
        return {
            name: value
            for name, value in found.items()
            if not re.search(OF_THIS_START, name)
        }


@pytest.fixture(scope="session")
def vae_section(pictures: Path) -> dict:
    """SPADE, a discriminator with R1 and noise, EMA, accumulation across the end of the
    epoch, samples, validation."""
    return {
        "type": "vae_trainer",
        "training_folder": "output",
        "device": "cpu",
        "training_seed": 3,
        "model": {
            "class_name": "AutoencoderKL",
            "config": SMALL["AutoencoderKL"],
            "spade": True,
        },
        "losses": {"kl_warmup_steps": 4},
        "discriminator": {
            "channels": 4,
            "layers": 1,
            "r1_interval": 2,
            "start_step": 1,
        },
        "optimizers": {"discriminator": {"every": 2}},
        "train": {
            "steps": STEPS,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "lr": 0.001,
            "dtype": "fp32",
            "ema_config": {"use_ema": True, "ema_decay": 0.9},
        },
        "save": {"save_every": 2, "max_states_to_keep": 0},
        "sample": {"sample_every": 3, "count": 1, "format": "png"},
        "datasets": [{"folder_path": str(pictures), "resolution": 32}],
    }


@pytest.fixture(scope="session")
def whole(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, vae_section: dict
) -> Pipeline:
    """The job when nothing happens to it. Read only."""
    made = Pipeline(
        nursery, tmp_path_factory.mktemp("whole_vae"), copy.deepcopy(vae_section)
    )
    made.run()
    return made


@pytest.fixture
def pipeline(nursery: Nursery, tmp_path: Path, vae_section: dict) -> Iterator[Pipeline]:
    made = Pipeline(nursery, tmp_path, copy.deepcopy(vae_section))
    yield made
    made.end()


def assert_same(pipeline: Pipeline, whole: Pipeline) -> None:
    ours, theirs = pipeline.result(), whole.result()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.slow
def test_the_job_leaves_what_is_to_be_the_same(whole: Pipeline) -> None:
    found = whole.result()
    for name in ("one", "two"):
        states = {
            f"{name}/state/step_00000000{step}/weights.safetensors"
            for step in (2, 4, 6)
        }
        files = {
            f"{name}/{name}/{file}.safetensors"
            for file in ("spade", "discriminator", "diffusion_pytorch_model")
        }
        assert states | files <= found.keys()
    assert (
        found["one/one/discriminator.safetensors"]
        != found["two/two/discriminator.safetensors"]
    )


@pytest.mark.slow
def test_kills_within_a_step_between_the_processes_and_in_the_second_one(
    pipeline: Pipeline, whole: Pipeline
) -> None:
    """Between the two passes of a step the autoencoder has its gradients and the
    discriminator none: nothing of that is left. Between the processes the first one is
    done, and what says so is not written, then half written."""

    def ends(code: int, *fault: object) -> None:
        child = pipeline.start(faults=[fault])
        assert child.wait() == code, child.output

    one, two = (pipeline.folder / name for name in ("one", "two"))
    ends(-KILL, "kill_self", OF_DISCRIMINATOR, 7, KILL)  # in step 5
    assert (one / "state" / "step_000000002" / "MANIFEST.json").is_file()
    ends(75, "kill_self", OF_DISCRIMINATOR, 5, TERM)  # in step 5 again
    for _ in range(2):
        ends(99, "leave_at", FINISHED, 1)
        assert (one / "one").is_dir() and not (two / "state").exists()
    (pipeline.folder / "job_state.json").write_text('{"fin')
    # the largest batch is tried before the first step
    ends(-KILL, "kill_self", OF_VAE, 1 + 5, KILL)
    before = (one / "one" / "config.json").stat().st_mtime_ns
    ends(-KILL, "kill_self", OF_VAE, 1 + 6, KILL)
    pipeline.run()
    assert (one / "one" / "config.json").stat().st_mtime_ns == before, "not begun again"
    assert_same(pipeline, whole)


@pytest.mark.slow
def test_death_at_writes_of_its_saves(pipeline: Pipeline, whole: Pipeline) -> None:
    """Some writes of the saving thread, before or within one, in one folder again and
    again: folders of models, then states. Every write of a state:
    `test_kills.py`."""
    for half, call in ((False, 3), (True, 1), (False, 30), (True, 7)):
        died = ("leave_at_write", "save", call, half)
        assert pipeline.start(faults=[died]).wait(60) == 99, (call, half)
    pipeline.run()
    assert_same(pipeline, whole)
