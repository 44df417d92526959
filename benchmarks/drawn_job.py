"""`run.py` with the published model drawn instead of read: a job as a user starts it,
to its third step.

`python benchmarks/drawn_job.py job.json --marks marks.json`, with a model folder of
`random_weights.write_folder`. The file of marks has the seconds since the process
began, written again at each mark, and the job ends after `--steps`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

BEGUN = time.time()
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from toolkit.system.torch_version import prepare_allocator  # noqa: E402

prepare_allocator()  # as run.py does, before torch is imported

import torch  # noqa: E402
from PIL import Image  # noqa: E402

import run  # noqa: E402
from benchmarks.device_timer import finish, peaks  # noqa: E402
from benchmarks.gpu_rows import fail_if_asked, write_whole  # noqa: E402
from benchmarks.random_weights import RandomWeightsModel, drawn_models, write_folder  # noqa: E402
from benchmarks.synthetic import ModelSize  # noqa: E402
from extensions.sd_trainer.process import SdTrainerProcess  # noqa: E402
from toolkit.train.run import Callback, Run  # noqa: E402

IMPORTED = time.time()

CAPTIONS = [
    " ".join(["a drawn picture", *["with a word"] * count])
    for count in (0, 2, 6, 11, 17)
]
"""Of five lengths."""


def write_pictures(folder: Path, sides: tuple[int, int]) -> None:
    folder.mkdir()
    for number, caption in enumerate(CAPTIONS):
        Image.effect_noise(sides, 64).convert("RGB").save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")


def write_job(folder: Path, size: ModelSize, device: str) -> Path:
    """The job of FluxFlow's guide to characters: int8 weights, rank 16, AdamW in 8
    bits, an average, four micro-steps.

    With a drawn model, and pictures of two sizes with captions of five lengths. Samples
    need a decoder, which a drawn model lacks: none comes before the first step.
    """
    folder.mkdir(parents=True)
    write_folder(folder / "model", size)
    side = 8 * size.latent_side
    datasets = {
        "40_character": (side, side),
        "20_character_body": (side * 3 // 4 // 32 * 32, side * 5 // 4 // 32 * 32),
    }
    for name, sides in datasets.items():
        write_pictures(folder / name, sides)
    optimizer = "adamw8bit" if find_spec("bitsandbytes") else "adamw"
    captions = {
        "caption_ext": "txt",
        "caption_dropout_rate": 0.05,
        "shuffle_tokens": False,
    }
    shared = {**captions, "cache_latents_to_disk": True, "resolution": [side, side]}
    section = {
        "type": "sd_trainer",
        "training_folder": str(folder / "output"),
        "device": device,
        "trigger_word": "maya_char",
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "save": {"dtype": "float16", "save_every": 340, "max_step_saves_to_keep": 10},
        "datasets": [
            {"folder_path": str(folder / name), **shared} for name in datasets
        ],
        "train": {
            "batch_size": 1,
            "steps": 3400,
            "gradient_accumulation_steps": 4,
            "train_unet": True,
            "train_text_encoder": False,
            "gradient_checkpointing": True,
            "noise_scheduler": "flowmatch",
            "optimizer": optimizer,
            "lr": 2e-4,
            "ema_config": {"use_ema": True, "ema_decay": 0.999},
            "dtype": "bf16",
            "skip_first_sample": True,
        },
        "model": {
            "name_or_path": str(folder / "model"),
            "is_qwen": True,
            "quantize": True,
            "quantize_dtype": "int8",
        },
        "sample": {
            "sampler": "flowmatch",
            "sample_every": 340,
            "width": side,
            "height": side,
            "prompts": [
                f"maya_char, {what}"
                for what in ("portrait, smiling", "full body", "realistic_body")
            ],
            "neg": "low quality, blurry, artifacts",
            "guidance_scale": 3.5,
            "sample_steps": 28,
        },
    }
    document = {
        "job": "extension",
        "config": {"name": "character", "process": [section]},
    }
    path = folder / "job.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


class WordyModel(RandomWeightsModel):
    """A caption with one more word is one token longer."""

    def encode_prompt(
        self, prompt: str, references: Sequence[Image.Image]
    ) -> torch.Tensor:
        drawn_LD = super().encode_prompt(prompt, references)
        more_LD = drawn_LD[:1].expand(len(prompt.split()), -1)
        return torch.cat([drawn_LD, more_LD])


class Milestones(Callback):
    """Writes down when training began and when each of the first steps was done."""

    included_in_step_time = False

    def __init__(self, asked: argparse.Namespace, device: torch.device) -> None:
        self._asked, self._device = asked, device
        self._marks: dict[str, Any] = {
            "imported_s": IMPORTED - asked.begun,
            "steps_s": [],
        }

    def on_start(self, run: Run) -> None:
        self._mark("ready_s", self._now())

    def after_step(self, run: Run) -> None:
        finish(self._device)
        fail_if_asked()
        self._mark("steps_s", [*self._marks["steps_s"], self._now()])
        if len(self._marks["steps_s"]) == self._asked.steps:
            sys.stdout.flush()
            # everything is measured; a save would take seconds, and the next start
            # would resume
            os._exit(0)

    def _now(self) -> float:
        return time.time() - self._asked.begun

    def _mark(self, name: str, value: object) -> None:
        self._marks |= {name: value, "peak_gb": peaks(self._device)["allocated_gb"]}
        write_whole(Path(self._asked.marks), self._marks)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("job")
    parser.add_argument("--marks", required=True, metavar="FILE")
    parser.add_argument(
        "--begun",
        type=float,
        default=BEGUN,
        help="when the process was started, as time.time()",
    )
    parser.add_argument(
        "--steps", type=int, default=3, help="optimizer steps, then the job ends"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments(argv)
    own = SdTrainerProcess.build_callbacks

    def build_callbacks(process: SdTrainerProcess) -> list[Callback]:
        return [*own(process), Milestones(asked, process.device)]

    with (
        drawn_models(WordyModel),
        mock.patch.object(SdTrainerProcess, "build_callbacks", build_callbacks),
    ):
        if code := run.main([asked.job]):
            return code  # the last line says why
    print("the job ended before everything was measured", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
