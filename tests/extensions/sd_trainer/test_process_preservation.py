"""Prior preservation in whole jobs, and the keys that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from tests.parts import needs_part
from tests.running import lines, run_job

OF_CLASS = {"diff_output_preservation": True, "diff_output_preservation_class": "dog"}
BLANK = {"blank_prompt_preservation": True, "blank_prompt_preservation_multiplier": 2}


@pytest.fixture
def run(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch
) -> Callable[..., tuple[bytes, list[dict]]]:
    """Runs a job with these keys of `train`; returns the LoRA and the lines of its
    metrics."""
    photos = make_pictures(tmp_path / "2_photos", "a", "b", "c")
    monkeypatch.chdir(tmp_path)

    def run(
        folder: str, kind: str = "sd_trainer", **train: object
    ) -> tuple[bytes, list[dict]]:
        section = trainer(
            photos,
            trigger_word="zxq",
            training_folder=folder,
            network={"type": "lora", "linear": 4, "linear_alpha": 4, "dropout": 0.1},
            train={
                "steps": 4,
                "lr": 0.01,
                "batch_size": 2,
                "max_grad_norm": 0,
                "gradient_accumulation": 2,
                **train,
            },
        )
        run_job(write_job({**section, "type": kind}))
        made = tmp_path / folder / "job"
        if kind == "cache":
            return b"", []
        rows = lines(made / "metrics.jsonl")
        return (made / "job.safetensors").read_bytes(), rows

    return run


@pytest.mark.slow
def test_a_run_holds_both_prompts_and_resumes_bit_for_bit(run, tmp_path: Path) -> None:
    keys = {**OF_CLASS, **BLANK}
    whole, rows = run("whole", **keys)
    names = ("loss/diff_output_preservation", "loss/blank_prompt_preservation")
    for name in names:
        assert rows[0][name] == 0  # the adapter does nothing yet
        assert all(line[name] > 0 for line in rows[1:])
    # Three captions, the same with the class, and the empty prompt.
    assert (
        len(list((tmp_path / "whole" / "_cache" / "text").rglob("*.safetensors"))) == 7
    )

    run("halves", steps=2, **keys)
    assert run("halves", **keys)[0] == whole
    assert run("fused", fused_backward_pass=True, **keys)[0] == whole


@pytest.mark.slow
@needs_part("tools.cache")
def test_the_cache_process_encodes_their_prompts_too(run, tmp_path: Path) -> None:
    run("output", kind="cache", **OF_CLASS)
    text = tmp_path / "output" / "_cache" / "text"
    times = {path: path.stat().st_mtime_ns for path in text.rglob("*.safetensors")}
    assert len(times) == 6
    run("output", steps=1, **OF_CLASS)
    assert {
        path: path.stat().st_mtime_ns for path in text.rglob("*.safetensors")
    } == times


def section(
    network: str = "lora", trigger_word: str = "zxq", **train: object
) -> SdTrainerConfig:
    return SdTrainerConfig(
        type="sd_trainer",
        trigger_word=trigger_word,
        datasets=[{"folder_path": "photos/"}],
        model={"name_or_path": "a"},
        network={"type": network},
        train=train,
    )


def test_a_factor_of_zero_costs_no_pass() -> None:
    none = section(**BLANK | {"blank_prompt_preservation_multiplier": 0})
    assert (
        none.train.preservations()
        == none.train.preserved_prompts("zxq runs", ["zxq"])
        == {}
    )
    name = "loss/blank_prompt_preservation"
    assert (
        name in section(**BLANK).logged_numbers() and name not in none.logged_numbers()
    )
    train = section(**OF_CLASS, **BLANK).train
    assert train.preserved_prompts("zxq runs", ["zxq"]) == {
        "diff_output_preservation": "dog runs",
        "blank_prompt_preservation": "",
    }
    assert train.preserved_prompts("runs", [])["diff_output_preservation"] == "runs"


def test_the_class_stands_for_the_trigger_words_of_all_datasets(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch
) -> None:
    """Else a caption that names two characters would hold back what is learned of the
    other one."""
    photos = str(make_pictures(tmp_path / "photos", "a"))
    Path(photos, "a.txt").write_text("zxq beside zx")
    monkeypatch.chdir(tmp_path)
    datasets = [
        {"folder_path": photos, "trigger_word": word, "resolution": 64}
        for word in ("zx", "zxq")
    ]
    job = trainer(
        photos,
        datasets=datasets,
        training_folder="output",
        train={"steps": 1, **OF_CLASS},
    )
    run_job(write_job({**job, "type": "cache"}))
    # the caption, and "dog beside dog"
    assert len(list(Path("output/_cache/text").rglob("*.safetensors"))) == 2
    prompts = section(**OF_CLASS).train.preserved_prompts(
        "zxq beside zx", ["zx", "zxq"]
    )
    assert prompts == {"diff_output_preservation": "dog beside dog"}
