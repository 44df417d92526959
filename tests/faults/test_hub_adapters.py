"""`train.assistant` named as on the hub: fetched, found in the cache, killed, resumed,
and in no file of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.extensions.sd_trainer.test_process_lora_beside import write_lora
from tests.faults.conftest import KILL, STEP, Job
from tests.model_folders import COMMIT
from tests.small_hub import small_hub

NAME = "someone/adapter"
FILE = "adapter.safetensors"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """An adapter of the tiny model, in a folder of its own."""
    (tmp_path / "given").mkdir()
    return write_lora(tmp_path / "given" / FILE, seed=7)


@pytest.fixture
def cache(tmp_path: Path, lora: Path) -> Path:
    """A hub cache with the repository."""
    repository = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT / FILE).write_bytes(lora.read_bytes())
    return tmp_path / "hub"


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_with_it_and_has_no_trace_of_it(
    job: Job, cache: Path, lora: Path
) -> None:
    job.change(train__assistant=NAME, sample=None)
    offline = ("offline", str(cache))
    said = job.run("-v", faults=[offline])
    assert (
        f"train.assistant: {FILE} times 1 is on in training, off in samples and validation"
        in said
    )
    expected = job.result()
    job.folder.rename(job.cwd / "whole")
    assert (
        job.start(
            faults=[offline, ("slow", STEP, 0.1), ("kill_self", STEP, 10, KILL)]
        ).wait()
        == -KILL
    )
    assert "resuming from" in job.run(faults=[offline])
    got = job.result()
    assert (
        got.keys() == expected.keys()
        and [name for name in got if got[name] != expected[name]] == []
    )
    own = [weight.numpy().tobytes() for weight in load_file(lora).values()]
    own = [weight for weight in own if len(weight) > 64]
    for path in job.folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(weight in data for weight in own), path
    # The same file by its path is the same training, also from the middle of it.
    job.change(train__assistant=str(lora), resume=4)
    assert "resuming from" in job.run(faults=[offline])
    last = f"{job.name}.safetensors"
    assert (
        load_file(job.folder / last).keys()
        == load_file(job.cwd / "whole" / last).keys()
    )
    assert all(load_file(job.folder / last)[name].equal(tensor)
               for name, tensor in load_file(job.cwd / "whole" / last).items())  # fmt: skip


def test_offline_and_not_here_is_one_line_before_anything_is_written(
    job: Job, tmp_path: Path
) -> None:
    job.change(train__assistant=NAME)
    for flags in ((), ("--dry-run",)):
        said = job.run(*flags, faults=[("offline", str(tmp_path / "empty"))], code=2)
        expected = f"'{NAME}' is not in the hub cache, and HF_HUB_OFFLINE forbids to ask the hub. "
        assert (
            f"train.assistant: {expected}Unset it, or run 'hf download {NAME}' where there is"
            in said
        )
        assert not job.folder.exists()


@pytest.mark.slow
def test_it_is_fetched_before_the_model_and_checked_against_it(
    job: Job, lora: Path, tmp_path: Path
) -> None:
    wide = write_lora(tmp_path / "wide.safetensors", inputs=32)
    settings = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    for file, code in ((wide, 2), (lora, 0)):
        with small_hub(
            {FILE: file.read_bytes(), "README.md": b"no"}, f"{NAME}{code}"
        ) as hub:
            values = {
                "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
                "ENDPOINT": hub.url,
                "HUGGINGFACE_CO_URL_TEMPLATE": hub.url
                + "/{repo_id}/resolve/{revision}/{filename}",
                "HF_HUB_OFFLINE": False,
            }
            faults = [("environment", settings | {"HF_ENDPOINT": hub.url})]
            faults += [
                ("set_value", f"huggingface_hub.constants:{name}", value)
                for name, value in values.items()
            ]
            job.change(train__assistant=f"{NAME}{code}", train__steps=1, sample=None)
            assert (
                f"train.assistant: {NAME}{code} is not in the hub cache: the run downloads it first"
                in job.run("--dry-run", "-v", faults=faults)
            )
            assert hub.asked == []
            said = job.run(faults=faults, code=code)
            assert f"downloading {FILE} of {NAME}{code}" in said
            assert ("is of another model: " in said) == bool(code)
            assert job.folder.exists() == (code == 0)
