"""LoRA jobs on streams of shards: encoded as they come, to the same bytes however they
are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from jobs.dry_run import JobPlan, plan_job
from tests.running import lines, run_job
from tests.toolkit.data.shard_server import write_shard
from tests.toolkit.plan.test_memory_plan import item, phase
from toolkit.config import load_job
from toolkit.contracts.data import Size
from toolkit.data.streams.stream_dataset import StreamDataset
from toolkit.errors import ConfigErrors
from toolkit.extension import discover
from toolkit.plan.memory import Machine
from toolkit.plan.memory_inputs import group_items, groups_of
from toolkit.plan.memory_plan import plan_memory

Run = Callable[..., tuple[bytes, list[dict]]]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of four images, by two sizes."""
    for number in range(3):
        write_shard(
            tmp_path / "shards" / f"{number}.tar",
            4,
            size=((64, 48), (48, 64))[number % 2],
        )
    return tmp_path / "shards"


@pytest.fixture
def streamed(trainer: Callable[..., dict], shards: Path) -> Callable[..., dict]:
    """A section on these shards; `entry` are keys of its dataset."""

    def section(
        entry: dict | None = None, train: dict | None = None, **changes: Any
    ) -> dict:
        keys = {
            "url": f"{shards}/*.tar",
            "resolution": 64,
            "webdataset": {"window": 4},
            "caption_dropout_rate": 0.3,
        }
        train = {"steps": 4, "batch_size": 2, **(train or {})}
        return trainer(
            train=train,
            trigger_word="tok",
            **{"datasets": [{**keys, **(entry or {})}], **changes},
        )

    return section


@pytest.fixture
def run(write_job, streamed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a job with these keys; returns the LoRA and the lines of its metrics."""
    monkeypatch.chdir(tmp_path)

    def run(
        folder: str, entry: dict | None = None, **changes: Any
    ) -> tuple[bytes, list[dict]]:
        run_job(write_job(streamed(entry, training_folder=folder, **changes)))
        made = tmp_path / folder / "job"
        metrics = lines(made / "metrics.jsonl")
        return (made / "job.safetensors").read_bytes(), metrics

    return run


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bytes_whatever_reads_and_keeps(
    run: Run, tmp_path: Path
) -> None:
    whole, metrics = run("whole")
    assert [line["samples"] for line in metrics] == [2, 4, 6, 8]
    assert not (tmp_path / "whole" / "_cache" / "latents").exists()
    run("halves", train={"steps": 2})
    kept = {
        "num_workers": 2,
        "cache": True,
    }
    assert run("halves", kept)[0] == whole
    assert (
        len(list((tmp_path / "halves" / "_cache" / "latents").rglob("*.safetensors")))
        == 4
    ), "those of steps 3 and 4"


@pytest.mark.slow
def test_samples_validation_weights_and_prior_preservation_work_on_a_stream(
    run: Run, make_pictures, tmp_path: Path
) -> None:
    make_pictures(tmp_path / "held", "a")
    preservation = {
        "diff_output_preservation": True,
        "diff_output_preservation_class": "dog",
    }
    _, metrics = run(
        "all",
        {
            "shuffle_tokens": True,
            "num_workers": 1,
            "webdataset": {"samples": 12},
        },
        train={
            "epochs": 1,
            "num_timestep_buckets": 4,
            "gradient_accumulation": 2,
            **preservation,
        },
        sample={
            "sample_every": 2,
            "width": 64,
            "height": 64,
            "sample_steps": 2,
            "prompts": ["a [trigger]"],
        },
        validation={"folder_path": str(tmp_path / "held"), "timesteps": 1},
    )
    assert len(metrics) == 3 and metrics[-1]["samples"] == 12
    made = tmp_path / "all" / "job"
    assert len(list((made / "samples").iterdir())) == 3
    assert len((made / "validation.jsonl").read_text().splitlines()) == 2
    assert "loss/diff_output_preservation" in metrics[0]


def test_buckets_of_noise_levels_need_the_number_of_samples(
    write_job, streamed
) -> None:
    path = write_job(streamed(train={"num_timestep_buckets": 4}))
    with pytest.raises(ConfigErrors, match="num_timestep_buckets: a stream needs"):
        load_job(path, discover().find_config)


@pytest.mark.slow
def test_a_dry_run_opens_no_more_than_the_first_shard_and_imports_no_torch(
    run_py, write_job, streamed, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    result = run_py(
        write_job(streamed()), "--dry-run", env={"PYTHONPATH": str(tmp_path)}
    )
    assert result.returncode == 0, result.stderr
    assert (
        f"stream of 3 shards: {shards}/0.tar to {shards}/2.tar; number of samples not known"
        in result.stdout
    )
    assert (
        f"first sample: {shards}/0.tar/000, 64x48 pixels, caption 'tok 0/0'"
        in result.stdout
    )
    assert (
        "encoded as they arrive, again at each use; VAE and text encoder stay loaded"
        in result.stdout
    )
    result = run_py(write_job(streamed()), "--dry-run", "--json")
    (plan,) = json.loads(result.stdout)["processes"]
    assert (
        plan["stream"]["shards"] == 3
        and plan["stream"]["samples"] is None
        and plan["datasets"] == []
    )


@pytest.mark.slow
def test_epochs_of_unknown_length_are_read_through(
    run: Run, write_job, streamed
) -> None:
    once = {"training_folder": "once", "train": {"epochs": 1}}

    def planned(**train: object) -> JobPlan:
        path = write_job(streamed(**once | {"train": {"epochs": 1, **train}}))
        return plan_job(load_job(path, discover().find_config))

    plan = planned(ema_config={"use_ema": True}).render()
    assert "read through once: how many steps that are is not known" in plan
    assert "999" not in plan and "time: the first steps will tell" in plan
    (found,) = planned().to_json()["processes"]
    assert found["optimizer_steps"] is None and found["epochs"] == 1
    _, metrics = run("once", train={"epochs": 1})
    assert len(metrics) == 6 and metrics[-1]["samples"] == 12
    assert "complete at step 6: nothing to do" in planned().render()


def test_the_plan_counts_the_encoders_that_stay_and_what_encoding_ahead_takes(
    make_stream_of_noise,
) -> None:
    def planned(threads: int) -> tuple[Any, Any]:
        entry = {"url": "0.tar", "num_workers": threads}
        given = {
            "type": "sd_trainer",
            "model": {"name_or_path": "Qwen/Qwen-Image-Edit-2509"},
        }
        section = SdTrainerConfig.model_validate(
            given | {"datasets": [entry], "train": {"gradient_checkpointing": "full"}}
        )
        data = SimpleNamespace(stream=make_stream_of_noise(section), held_out=())
        assert groups_of(section, data)[0].bucket == Size(1024, 1024)
        of_folder = plan_memory(
            section, group_items([item(references=0)]), Machine("cuda")
        )
        return plan_memory(
            section, groups_of(section, data), Machine("cuda")
        ), of_folder

    plan, of_folder = planned(0)
    there, before = (phase(found, "training").parts for found in (plan, of_folder))
    assert (
        there["VAE"] > 2e8
        and there["text encoder"] > 1e10
        and "text encoder" not in before
    )
    assert "encoding ahead" not in there
    assert (
        "the whole text encoder (15.5 GB) stays in memory" in plan.notes[0]
        and of_folder.notes == ()
    )
    ahead = phase(planned(2)[0], "training").parts["encoding ahead"]
    assert ahead > 2e8 and plan.peak_bytes < planned(2)[0].peak_bytes


@pytest.fixture
def make_stream_of_noise(shards: Path) -> Callable[[SdTrainerConfig], StreamDataset]:
    def make(section: SdTrainerConfig) -> StreamDataset:
        entry = section.datasets[0].model_copy(update={"url": (f"{shards}/0.tar",)})
        stream = StreamDataset.of(section.model_copy(update={"datasets": (entry,)}), 32)
        assert stream
        return stream

    return make


@pytest.mark.slow
def test_two_ranks_train_on_a_stream_what_one_trains(
    run_ranks, write_job, streamed, tmp_path: Path
) -> None:
    """Each decodes and encodes its own part of a batch, whose size was chosen for the
    whole."""
    found = []
    for processes in (1, 2):
        section = streamed(
            {"num_workers": 1},
            {"steps": 4, "batch_size": 3},
            training_folder=f"of_{processes}",
        )
        run_ranks(processes, write_job(section))
        found.append(lines(tmp_path / f"of_{processes}" / "job" / "metrics.jsonl"))
    for one, two in zip(*found, strict=True):
        assert two["samples"] == one["samples"]
        for name in ("loss", "grad_norm", "t_mean"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), (name, one["step"])
