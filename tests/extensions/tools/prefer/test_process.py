"""`prefer` on the tiny model: which images it makes, and what it says of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from extensions.tools.prefer.config import PreferConfig
from extensions.tools.shared.candidates import Group, read_groups
from extensions.tools.shared.image_files import read_settings
from tests.diffusers_reference import REFERENCES
from tests.extensions.tools.generate.test_process import SMALL, write_lora
from tests.running import lines, run_tool, section_of
from toolkit.errors import UserError

ONE_STEP = SMALL.replace("--steps 2", "--steps 1")


@pytest.fixture
def prefer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], tuple[Group, ...]]:
    """Runs a command in `tmp_path` in this process; returns the groups in `out`."""
    monkeypatch.chdir(tmp_path)

    def prefer(line: str) -> tuple[Group, ...]:
        run_tool("prefer", shlex.split(line))
        return read_groups(tmp_path / "out")

    return prefer


@pytest.mark.slow
def test_candidates_are_made_once_and_more_are_added(
    prefer, unit_gain_model: Path, tmp_path: Path
) -> None:
    write_lora(unit_gain_model, tmp_path / "mine.safetensors")
    (tmp_path / "prompts.txt").write_text(f"tea\na cup --d 7 --ci {REFERENCES[0]}\n")
    line = f"mine.safetensors:0.5 --model {unit_gain_model} --prompts prompts.txt --count 2 {ONE_STEP}"
    tea, cup = prefer(line)
    assert (tea.prompt, tea.seed, tea.control, tea.lora) == (
        "tea",
        (42, 43),
        (),
        (("mine.safetensors",),) * 2,
    )
    assert (cup.prompt, cup.seed) == ("a cup", (7, 8)) and cup.model == str(
        unit_gain_model
    )
    (control,) = cup.control
    assert (tmp_path / "out" / control).resolve() == Path(REFERENCES[0]).resolve()
    settings = read_settings(tmp_path / "out" / cup.files[1])
    assert (settings["seed"], settings["lora"][0]["strength"]) == (8, 0.5)
    rows = lines(tmp_path / "out" / "candidates.jsonl")
    assert [[*row] for row in rows] == [
        ["prompt", "control", "model", "seed", "lora", "files"]
    ] * 2

    images = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert len(images) == 4
    # as a stop between two images leaves it
    (missing := tmp_path / "out" / cup.files[1]).unlink()
    (tmp_path / "out" / "votes.jsonl").write_text("{}\n")
    times = {path: path.stat().st_mtime_ns for path in images if path != missing}
    groups = prefer(f"{line.replace('--count 2', '--count 3')} --prompt coffee")
    assert [(each.prompt, each.seed) for each in groups] == [
        ("tea", (42, 43, 44)),
        ("a cup", (7, 8, 9)),
        ("coffee", (42, 43, 44)),
    ]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert missing.is_file()
    assert (tmp_path / "out" / "votes.jsonl").read_text() == "{}\n"
    assert len(list((tmp_path / "out").glob("*.png"))) == 9


def test_a_source_is_a_run_a_lora_or_a_job(
    tiny_model: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "output" / "one"
    run.mkdir(parents=True)
    for name in ("one_000000100", "one_000000200", "one_best"):
        save_file(
            load_file(write_lora(tiny_model, run / "x.safetensors")),
            run / f"{name}.safetensors",
        )
    (run / "x.safetensors").unlink()
    (run / "run.json").write_text(json.dumps({"name": "one", "status": "stopped"}))
    process = {
        "type": "sd_trainer",
        "training_folder": "output",
        "trigger_word": "pipo",
        "model": {"name_or_path": str(tiny_model), "low_vram": True},
        "datasets": [{"folder_path": "gone"}],
        "train": {"steps": 1},
    }
    job = json.dumps(
        {"job": "extension", "config": {"name": "one", "process": [process]}}
    )
    (run / "config.yaml").write_text(job)
    (tmp_path / "my_job.yaml").write_text(job)

    def resolved(line: str) -> PreferConfig:
        return section_of("prefer", shlex.split(f"{line} --prompt x")).resolved()

    of_run = resolved("output/one")
    assert (
        of_run.lora == ("output/one/one_000000200.safetensors",)
        and of_run.trigger_word == "pipo"
    )
    assert of_run.output == "datasets/one_votes" and of_run.found_model().low_vram
    save_file(load_file(run / "one_best.safetensors"), run / "one.safetensors")
    assert resolved("output/one").lora == ("output/one/one.safetensors",)
    file = "output/one/one_best.safetensors:0.5"
    assert resolved(f"{file} --lora output/one/one.safetensors").lora == (
        file,
        "output/one/one.safetensors",
    )
    of_job = resolved("my_job.yaml")
    assert (of_job.lora, of_job.trigger_word, of_job.output) == (
        (),
        "pipo",
        "datasets/my_job_votes",
    )
    assert of_job.found_model().low_vram


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("empty --prompt x", "source: empty: no run is here"),
        ("none.safetensors --prompt x", "'none.safetensors' is not a file"),
        (
            "photo.png --prompt x",
            "'photo.png' is neither the folder of a run, nor a LoRA file, nor a job file",
        ),
        ("none.yaml --prompt x", "none.yaml: no such config"),
        ("mine.safetensors --model {m}", "--prompt: is required. Or give 'prompts'"),
        ("mine.safetensors --model {m} --prompt x --count 1", "--count: "),
        (
            "mine.safetensors --model {m} --prompt x --output other",
            "candidates.jsonl:1: was not written by this",
        ),
    ],
)
def test_wrong_input_is_refused(
    line: str, said: str, tiny_model: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lora(tiny_model, tmp_path / "mine.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "candidates.jsonl").write_text('{"name": "mine"}\n')
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        section_of("prefer", shlex.split(line.format(m=tiny_model)))
