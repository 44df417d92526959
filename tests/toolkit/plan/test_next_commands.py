"""The commands that a run shows at its end. That they run:
tests/config/test_examples_quickstart.py."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT
from toolkit.commands import command
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.files.safetensors_io import save_file
from toolkit.plan.next_commands import lead_on, next_commands

SAMPLE = {
    "width": 64,
    "height": 96,
    "sample_steps": 7,
    "guidance_scale": 2.5,
    "seed": 9,
    "samples": [
        {"prompt": "[trigger]'s cup", "ctrl_img": ["a b.png"], "neg": "blurry"}
    ],
}


def section(**changes: object) -> DiffusionSection:
    return DiffusionSection.model_validate({
        "type": "sd_trainer",
        "trigger_word": "maya",
        "model": {"name_or_path": "m"},
        "datasets": [{"folder_path": "d"}],
        **changes,
    })  # fmt: skip


def test_they_have_the_settings_of_the_first_sample_and_the_files_of_the_run(
    tmp_path: Path,
) -> None:
    folder, sampled = tmp_path / "my run", section(sample=SAMPLE)
    # nothing is saved
    assert next_commands(folder, "x", sampled) == [command("report", folder)]
    folder.mkdir()
    for name in ("x", "x_lora", *(f"x_{step:09}" for step in range(1, 7))):
        (folder / f"{name}.safetensors").touch()
    generate, grid, report = map(shlex.split, next_commands(folder, "x", sampled))
    picture = [
        "--prompt",
        "maya's cup",
        "--width",
        "64",
        "--height",
        "96",
        "--steps",
        "7",
        "--cfg",
        "2.5",
    ]
    picture += ["--seed", "9", "--negative", "blurry", "--reference", "a b.png"]
    assert generate[2:] == ["generate", "--lora", f"{folder}/x.safetensors", *picture]
    files = [f"{folder}/x_{step:09}.safetensors" for step in range(3, 7)]
    assert grid[2:] == [
        "grid",
        "--lora",
        *files,
        *picture,
        "--output",
        f"{folder}/grid",
    ]
    assert report[2:] == ["report", str(folder)]
    # the steps of a LoRA that the commands do not name
    fast = section(sample={**SAMPLE, "lora": "lightning.safetensors"})
    generate = shlex.split(next_commands(folder, "x", fast)[0])
    assert not {"--steps", "--cfg"} & {*generate}

    # Trained on from step 6 to 8, without a save at the end: the newest file has no
    # step in its name.
    save_file({}, folder / "x.safetensors", {"training_info": '{"step": 8}'})
    _, grid, _ = map(shlex.split, next_commands(folder, "x", sampled))
    assert grid[4:8] == [*files[1:], f"{folder}/x.safetensors"]
    (folder / "x.safetensors").write_bytes(b"")

    for file in files[1:]:
        Path(file).unlink()
    for step in (1, 2):
        (folder / f"x_{step:09}.safetensors").unlink()
    _, grid, _ = next_commands(folder, "x", section())
    assert (
        f"x.safetensors' --strength 0.5 0.75 1 --prompt maya --output '{folder}/grid'"
        in grid
    )

    (folder / "x.safetensors").unlink()
    (folder / "x_lora.safetensors").unlink()
    (folder / "x").mkdir()
    (folder / "x" / "model_index.json").touch()
    assert [line.split()[2] for line in next_commands(folder, "x", section())] == [
        "generate",
        "report",
    ]


def test_a_whole_transformer_in_a_file_is_used_beside_its_model(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").touch()
    full = section(network={"type": "full"}, save={"layout": "single_file"})
    generate, report = map(shlex.split, next_commands(tmp_path, "x", full))
    assert generate[2:7] == [
        "generate",
        "--model",
        "m",
        "--transformer-path",
        f"{tmp_path}/x.safetensors",
    ]
    assert report[2] == "report"


def test_an_example_on_the_small_model_leads_on_to_ones_own_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    small = section(
        model={"name_or_path": "config/examples/tiny_mascots"},
        datasets=[{"folder_path": "config/examples/mascots/pipo"}],
    )
    (own,) = lead_on(small)
    assert own.startswith(f"{command('new', 'my_char', 'datasets/my_char')} ")
    published = section(model={"name_or_path": "Qwen/Qwen-Image-Edit-2509"}).model
    assert lead_on(small.model_copy(update={"model": published})) == []
    assert lead_on(object()) == []
    own = {"datasets": [*small.datasets, *section().datasets]}
    assert lead_on(small.model_copy(update=own)) == [], (
        "what comes first after a run of one's own images is about that run"
    )
