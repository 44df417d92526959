"""`type: cache`: everything is encoded once, and training then encodes nothing."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

from extensions.tools.cache.config import CacheConfig
from jobs.dry_run import plan_job
from tests.conftest import readme_commands
from tests.running import run_job, run_tool, section_of
from toolkit.config import JobContext, load_job
from toolkit.config.sections.model import ModelConfig
from toolkit.errors import ConfigErrors, UserError
from toolkit.extension import discover
from toolkit.models.kept import kept_entries
from toolkit.system import nvidia
from toolkit.system.device import DTYPES
from toolkit.train.base_model import load_base_model
from toolkit.train.run_reader import RunStatus

Run = Callable[..., subprocess.CompletedProcess]


def entries(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and time of writing of every entry, by its place in the cache; what
    scans learned is none."""
    return {
        path.relative_to(folder).as_posix(): (
            path.read_bytes(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "scans"
    }


def files(folder: Path) -> dict[str, bytes]:
    return {name: contents for name, (contents, _) in entries(folder).items()}


@pytest.fixture
def section(trainer, make_pictures, tmp_path: Path) -> Callable[..., dict]:
    """A section over two folders, one with references and caption dropout, as either
    process type."""
    plain = make_pictures(tmp_path / "2_plain", "a", "b")
    edits = make_pictures(tmp_path / "edits", "c", "d", "e", size=(64, 96))
    references = make_pictures(tmp_path / "before", "c", "d", "e", captions=False)
    dropped = {"caption_dropout_rate": 0.5, "control_path": str(references)}
    datasets = [
        {"folder_path": str(plain), "resolution": 64},
        {"folder_path": str(edits), "resolution": 64, **dropped},
    ]
    return lambda kind, **changes: (
        trainer(datasets=datasets, **changes) | {"type": kind}
    )


def test_a_large_model_is_not_computed_on_the_cpu_by_accident(
    write_job, section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is downloaded or written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = write_job(
        section(
            "cache", device="auto", model={"name_or_path": "Qwen/Qwen-Image-Edit-2509"}
        )
    )
    with pytest.raises(
        UserError,
        match=r"^device: auto: .* a model of 58 GB .* 'device: cpu'\. Likely cause: ",
    ):
        run_job(job)
    assert not (tmp_path / "hub").exists() and not list(
        tmp_path.glob("output/*/config.yaml")
    )


@pytest.mark.slow
def test_training_after_it_encodes_nothing(
    run_py: Run, write_job, section, tmp_path: Path, monkeypatch, said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "output" / "_cache"
    before = {name: files(tmp_path / name) for name in ("2_plain", "edits", "before")}
    job = write_job(section("cache"), name="encode")
    result = run_py(job)
    assert (result.returncode, result.stderr) == (0, "")
    # 5 targets and 3 references; 5 captions and, for the three that may be dropped, the
    # text of each reference alone.
    assert (
        sorted(name.split("/")[0] for name in entries(cache))
        == ["latents"] * 8 + ["text"] * 8
    )
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["_cache"]
    assert {name: files(tmp_path / name) for name in before} == before
    complete = entries(cache)

    # Broken off: one of each kind is missing, one of each is damaged. Only these are
    # made again.
    spoilt = sorted(complete)[::5]
    for name in spoilt[::2]:
        (cache / name).write_bytes(complete[name][0][:-1])
    for name in spoilt[1::2]:
        (cache / name).unlink()
    run_job(job)
    assert sum("is damaged" in line for line in said) == (len(spoilt) + 1) // 2
    repaired = entries(cache)
    assert {name: contents for name, (contents, _) in repaired.items()} == {
        name: contents for name, (contents, _) in complete.items()
    }
    assert {name for name in repaired if repaired[name][1] != complete[name][1]} == set(
        spoilt
    )

    training = section("sd_trainer", train={"steps": 4, "batch_size": 2})
    run_job(write_job(training, name="train"))
    assert entries(cache) == repaired
    assert (tmp_path / "output" / "train" / "train.safetensors").is_file()
    assert {name: files(tmp_path / name) for name in before} == before


def test_bad_pictures_are_named_and_nothing_is_cached(
    write_job, section, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edits" / "d.png").write_bytes(b"no picture")
    (tmp_path / "before" / "e.png").unlink()
    with pytest.raises(UserError, match=r"(?s)d\.png.*e\.png|e\.png.*d\.png"):
        run_job(write_job(section("cache")))
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_the_commands_of_the_page_see_and_prune_the_cache(
    write_job, section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said
) -> None:
    """Another job shares the cache: what only it uses is counted and pruned; a running
    job keeps all of it."""
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "output" / "_cache"

    def run(*flags: str) -> list[str]:
        said.clear()
        run_tool("cache", flags)
        return [line for line in said if "entries" in line]

    pictures = {
        "samples": [{"prompt": "a hat", "width": 64, "height": 64}],
        "sample_steps": 2,
    }
    job = write_job({**section("sd_trainer"), "sample": pictures}, name="mine")
    (tmp_path / "config").mkdir()
    job.rename(tmp_path / "config" / "my_char.yaml")
    first, skipping, counting, pruning = readme_commands(
        "extensions/tools/cache/README.md", "cache"
    )
    assert [re.sub(r" \([\d.]+ k?B\)", "", line) for line in run(*first)] == [
        "latents: 8 entries used, 0 entries not used by this job",
        "text: 10 entries used, 0 entries not used by this job",
    ]
    mine = entries(cache)
    damaged = sorted(mine)[0]
    (cache / damaged).write_bytes(b"damaged")
    run(*skipping)
    assert (cache / damaged).read_bytes() == b"damaged"
    run(*first, "--workers", "3")
    assert files(cache) == {name: contents for name, (contents, _) in mine.items()}

    other = section("cache", trigger_word="other")
    run_job(write_job(other))
    assert re.search(
        r" 5 entries \([\d.]+ kB\) not used by this job$", run(*counting)[1]
    )
    assert len(entries(cache)) == len(mine) + 5
    with monkeypatch.context() as patched:
        patched.setattr(
            "extensions.tools.cache.config.list_runs",
            lambda _: [SimpleNamespace(status=RunStatus.RUNNING, folder="r")],
        )
        with pytest.raises(
            ConfigErrors, match="--prune: r is training from this cache"
        ):
            run(*pruning)
    assert run(*pruning)[-1] == "5 entries deleted"
    assert entries(cache).keys() == mine.keys()


@pytest.mark.slow
def test_the_models_that_the_job_does_not_keep_are_listed_and_pruned(
    write_job, section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = section("sd_trainer")
    for qtype in ("int4", "int8"):
        model = ModelConfig(**whole["model"], quantize=True, qtype=qtype)
        dtype = CacheConfig.model_validate(section("cache")).weights_dtype()
        kept = {"training_folder": whole["training_folder"], "keep": True}
        assert load_base_model(
            model, torch.device("cpu"), DTYPES[dtype], **kept
        ).network_module
    job = write_job(
        {**whole, "model": {**whole["model"], "quantize": True, "qtype": "int4"}}
    )
    cache = Path(whole["training_folder"]) / "_cache"
    run_tool("cache", [str(job), "--prune", "--keep"])
    lines = sorted(
        line.partition(", in ")[0] for line in said if line.startswith("models: ")
    )
    assert [re.sub(r" \([\d.]+ k?M?B\)", "", line) for line in lines] == [
        "models: tiny in int4 used",
        "models: tiny in int8 not used by this job",
    ]
    assert len(kept_entries(cache)) == 2
    run_tool("cache", [str(job), "--prune"])
    assert [entry.model for entry in kept_entries(cache)] == ["tiny in int4"]
    assert said[-1] == "1 entries deleted"


def test_wrong_jobs_are_told(write_job, section, tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="job: nowhere: no such config"):
        section_of("cache", ["nowhere"])
    bad = write_job({**section("sd_trainer"), "trigger_wrd": "x"})
    with pytest.raises(ConfigErrors, match=rf"{bad}:\d+.*trigger_wrd"):
        section_of("cache", [str(bad)])
    with pytest.raises(ConfigErrors, match="has no process whose datasets"):
        section_of(
            "cache",
            [str(write_job({"type": "tiny_model", "path": str(tmp_path / "x")}))],
        )


# ------------------------------------------------------------ the plan


def test_the_plan_counts_what_there_is_to_encode_and_no_steps(
    run_py, write_job, trainer, make_pictures, tmp_path
) -> None:
    folder = make_pictures(tmp_path / "3_data", "a", "b")
    section = trainer(folder, train={"batch_size": 4}) | {"type": "cache"}
    result = run_py(write_job(section), "--dry-run", "--json")
    [plan] = json.loads(result.stdout)["processes"]
    assert (
        plan["type"],
        plan["samples_per_epoch"],
        plan["micro_batches_per_epoch"],
    ) == ("cache", 6, 2)
    assert (plan["optimizer_steps"], plan["epochs"]) == (0, 0)
    assert plan["datasets"][0]["buckets"] == [{"width": 64, "height": 64, "images": 2}]
    assert (
        plan["model"]["bytes"] > 0
        and plan["model"]["download"] is None
        and plan["will_not_start"] == []
    )
    assert "start" not in plan  # it writes no run folder
    assert not (tmp_path / "output").exists()


def test_a_model_that_is_not_here_or_too_large_for_the_cpu_is_told(
    write_job, trainer, make_pictures, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        nvidia, "read_facts", lambda: nvidia.NvidiaFacts("13.0", None, 0)
    )
    section = trainer(
        make_pictures(tmp_path / "data", "a"),
        device="auto",
        model={"name_or_path": "some/finetune"},
    )
    words = plan_job(
        load_job(write_job(section | {"type": "cache"}), discover().find_config)
    ).render()
    assert (
        "model: some/finetune (family not known)" in words
        and "will not start" not in words
    )
    section["model"]["arch"] = "qwen_image_2"
    words = plan_job(
        load_job(write_job(section | {"type": "cache"}), discover().find_config)
    ).render()
    assert (
        "model: some/finetune (Qwen-Image-2.1, Qwen Research License: not for commercial use)"
        in words
    )
    assert f"download: size unknown, to {tmp_path / 'hub'} (" in words
    assert (
        "warning: this will not start: device: auto: " in words
        and "this machine has no NVIDIA GPU" in words
    )


# ------------------------------------------------------------ the section


@pytest.fixture
def load(write_job, trainer, make_pictures, tmp_path):
    """The checked section of a `cache` process with these changes."""
    folder = make_pictures(tmp_path / "data", "a")

    def load_with(**changes) -> CacheConfig:
        section = {
            key: value
            for key, value in (trainer(folder) | {"type": "cache"} | changes).items()
            if value
        }
        return (
            load_job(write_job(section), lambda uid: CacheConfig).processes[0].section
        )

    return load_with


def test_it_takes_a_training_section_as_it_is_or_keys_of_its_own(load) -> None:
    assert load().dtype == "float32"
    assert load(train=None).dtype == "bfloat16"
    assert load(train=None, dtype="fp32").dtype == "float32"
    with pytest.raises(ConfigErrors, match="Did you mean 'datasets'"):
        load(dataset=["a"])


def test_it_is_still_there_while_its_folder_is(load, tmp_path) -> None:
    section = load(training_folder=str(tmp_path / "runs"))
    assert not section.outputs_exist(JobContext("job"))
    (tmp_path / "runs" / "_cache").mkdir(parents=True)
    assert section.outputs_exist(JobContext("job"))
