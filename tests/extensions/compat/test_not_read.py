"""Files and commands of programs that are not read: each is answered with one line,
which names the program."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from docs.config_page import keys
from docs.generate import section_models
from tests.conftest import ROOT
from toolkit.config import load_job
from toolkit.errors import ConfigErrors
from toolkit.extension import discover

SAYS = "which is not read. docs/coming_from.md says what its main keys are here."

FILES = {
    "SimpleTuner": (
        "config.json",
        '{"model_family": "qwen_image", "--data_backend_config": "data.json"}',
        "1:1",
    ),
    "SimpleTuner, variables": (
        "config.env",
        "A=1\nexport MODEL_FAMILY=qwen_image\n",
        "2:1",
    ),
    "OneTrainer": (
        "preset.json",
        '{"model_type": "QWEN", "training_method": "LORA", "base_model_name": "a"}',
        "1:1",
    ),
    "diffusion-pipe": (
        "main.toml",
        "output_dir = 'a'\ndataset = 'b.toml'\nepochs = 1\n[model]\ntype = 'qwen_image'\n",
        "1:1",
    ),
    "diffusion-pipe, datasets": (
        "data.toml",
        "resolutions = [1024]\nenable_ar_bucket = true\n[[directory]]\npath = 'a'\n",
        "1:1",
    ),
    "diffusion-pipe, command": (
        "train.sh",
        "deepspeed --num_gpus=1 train.py --deepspeed --config main.toml\n",
        "1:24",
    ),
    "OneTrainer, command": (
        "train.sh",
        "python scripts/train.py --config-path preset.json\n",
        "1:8",
    ),
    "FlyMyAI": (
        "fly.yaml",
        "pretrained_model_name_or_path: a\ndata_config:\n  img_dir: b\n  caption_type: txt\n"
        "  caption_dropout_rate: 0.1\noutput_dir: c\nmax_train_steps: 3000\nrank: 16\n",
        "1:1",
    ),
    "DiffSynth-Studio": (
        "training_args.json",
        '{"dataset_base_path": "a", "lora_target_modules": "to_q"}',
        "1:1",
    ),
    "DiffSynth-Studio, command": (
        "train.sh",
        "cd x\naccelerate launch examples/qwen_image/model_training/train.py \\\n  --dataset_base_path a\n",
        "2:19",
    ),
    "diffusers": (
        "train.sh",
        "accelerate launch train_dreambooth_lora_qwen_image.py --rank 4\n",
        "1:19",
    ),
    "kohya's sd-scripts, datasets": (
        "data.toml",
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n",
        "1:1",
    ),
    "kohya's sd-scripts": (
        "a.toml",
        "[m]\npretrained_model_name_or_path = 'a'\ntrain_data_dir = 'b'\n",
        "1:1",
    ),
    "kohya's GUI": (
        "gui.json",
        '{"LoRA_type": "Standard", "train_data_dir": "a", "unet_lr": 1}',
        "1:1",
    ),
    "kohya's GUI, part": (
        "gui.json",
        '{"LoRA_type": "Flux1", "network_dim": 8, "output_name": "a", "sdxl": true}',
        "1:1",
    ),
    "kohya's GUI, whole model": (
        "gui.json",
        '{"pretrained_model_name_or_path": "a", "max_resolution": "1024,1024", "image_folder": "b"}',
        "1:1",
    ),
}
"""Whose it is -> name of a file, its text, the place in it."""


@pytest.mark.parametrize("case", FILES)
def test_one_line_says_whose_it_is_and_where_its_keys_are_explained(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, text, place = FILES[case]
    Path(name).write_text(text)
    with pytest.raises(ConfigErrors) as error:
        load_job(name, discover().find_config)
    [line] = str(error.value).splitlines()
    program = case.partition(",")[0]
    assert (
        line.startswith(f"{name}:{place}: is a ")
        and program in line
        and line.endswith(SAYS)
    )


def test_a_config_of_axolotl_is_refused_in_one_line(mistakes) -> None:
    text = (
        "base_model: a/b\ndatasets:\n  - {path: c/d, type: alpaca}\n"
        "adapter: lora\nlora_r: 16\nlora_alpha: 32\nsequence_len: 2048\n"
        "micro_batch_size: 2\noutput_dir: out\n"
    )
    assert mistakes(text) == [
        "1:1: is a config of axolotl, which trains language models, and is not read."
    ]


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        ("train", "slider"),
        ("extension", "concept_slider"),
        ("extension", "ultimate_slider_trainer"),
    ],
)
def test_a_slider_of_ai_toolkit_is_refused_in_one_line(
    mistakes, job: str, kind: str
) -> None:
    more = "  device: cuda:0\n" if job == "train" else ""
    text = (
        f"job: {job}\nconfig:\n  name: slide\n{more}  process:\n    - type: {kind}\n"
        "      network: {type: lierla, linear: 8}\n      slider: {targets: []}\n"
    )
    (line,) = mistakes(text, find=discover().find_config)
    assert f"process[0].type: {kind!r} is ai-toolkit's training of sliders" in line


def test_it_ends_with_exit_code_2(tmp_path: Path, run_py: Callable[..., Any]) -> None:
    file = tmp_path / "training_args.json"
    file.write_text(FILES["DiffSynth-Studio"][1])
    for command in ([str(file)], ["import", str(file)]):
        done = run_py(*command)
        assert (done.returncode, done.stdout) == (2, "") and SAYS in done.stderr


def test_the_page_has_fifteen_keys_of_each_and_ours_beside_them() -> None:
    by_hand = (
        (ROOT / "docs" / "coming_from.md")
        .read_text(encoding="utf-8")
        .partition("<!-- by hand -->")[2]
    )
    known = keys(section_models())
    tables = by_hand.split("\n## ")[1:]
    assert len(tables) == 7
    for table in tables:
        rows = [
            line.split(" | ") for line in table.splitlines() if line.startswith("| ")
        ][1:]
        assert len(rows) >= 15
        ours = [key for row in rows for key in re.findall(r"`([\w.\[\]]+)", row[1])]
        assert len(ours) >= 15 and [key for key in ours if key not in known] == []
