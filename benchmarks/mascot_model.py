"""The small model of mascots: loaded from its folder, with an adapter or quantized, and
sampled for a classifier. Tests of the quickstart judge by it whether a training has
learned.

Shape suffixes: B batch, H/W height and width in pixels."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import torch  # noqa: E402
import yaml  # noqa: E402
from mascots.drawing import draw  # noqa: E402
from mascots.mascot import ALL, Casting, Characters, Lots, random_mascot  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.mascot_classifier import MascotClassifier, pixels_of  # noqa: E402
from toolkit.config.sections.model import ModelConfig  # noqa: E402
from toolkit.contracts.data import Size  # noqa: E402
from toolkit.contracts.model import DiffusionModel  # noqa: E402
from toolkit.data.batches.latent_cache import CachePair, ItemEncoder  # noqa: E402
from toolkit.files.tensor_cache import TensorCache  # noqa: E402
from toolkit.models.families import family_for  # noqa: E402
from toolkit.models.loading import model_folder  # noqa: E402
from toolkit.networks.applied import AppliedAdapters  # noqa: E402
from toolkit.networks.lora_formats import load_adapter_file  # noqa: E402
from toolkit.train.base_model import load_base_model  # noqa: E402
from toolkit.train.sampling import SamplePrompt, Sampler  # noqa: E402

SEED = 77
"""Of drawings and samples; pretraining has others."""

SIDE = 128
"""Pixels along a side of a sample."""

NAMED = tuple(name for name in ALL if name != "mark")
"""What captions of pretraining name."""

STEPS, GUIDANCE = 8, 2.0
GUIDANCE_OF = {"text": 3.0}
"""Part -> its guidance where `GUIDANCE` is not the best: a reference is kept better
with less of it."""


@dataclass
class TinyModel:
    """A model folder with a classifier that judges it."""

    model: DiffusionModel
    classifier: MascotClassifier
    steps: int = STEPS
    guidance: float = GUIDANCE

    def samples(
        self, prompts: Sequence[str], references: Sequence[Sequence[Image.Image]] = ()
    ) -> list[Image.Image]:
        """A sample of 128 x 128 pixels for each prompt, with its references."""
        with tempfile.TemporaryDirectory() as folder:
            asked = []
            for index, prompt in enumerate(prompts):
                files = []
                for number, picture in enumerate(
                    references[index] if references else ()
                ):
                    files.append(Path(folder, f"{index}_{number}.png"))
                    picture.save(files[-1])
                size = Size(SIDE, SIDE)
                asked.append(
                    SamplePrompt(
                        prompt,
                        "",
                        size,
                        SEED + index,
                        self.guidance,
                        self.steps,
                        tuple(files),
                    )
                )
            stores = CachePair(TensorCache(None), TensorCache(None))
            sampler = Sampler(
                self.model, asked, ItemEncoder(self.model, torch.float32), stores
            )
            return [sampler.generate(index) for index in range(len(asked))]

    def seen(self, pictures: Sequence[Image.Image]) -> list[dict[str, str]]:
        """Attribute -> value of each picture, as the classifier sees it."""
        return self.classifier.attributes(pixels_of(pictures))


def load(
    folder: str, lora: str = "", strength: float = 1.0, qtype: str = ""
) -> DiffusionModel:
    """The model of a folder in float32, with an adapter file; qtype: its blocks
    quantized."""
    quantized = {"quantize": True, "qtype": qtype} if qtype else {}
    section = ModelConfig(
        name_or_path=folder, model_kwargs={"match_target_res": True}, **quantized
    )
    model = load_base_model(section, torch.device("cpu"), torch.float32)
    if lora:
        changes = load_adapter_file(
            Path(lora), family_for(section).every_linear_layer(model_folder(section))
        )
        AppliedAdapters(model.network_module, [changes], torch.device("cpu")).use(
            [(changes, strength)]
        )
    return model


# ------------------------------------------------------------ what tests judge by


def reconstruction_psnr(
    model: DiffusionModel, characters: Characters, count: int
) -> float:
    """Mean PSNR in dB of drawn pictures of such characters through the autoencoder."""
    found = []
    for index in range(count):
        mascot = random_mascot(Lots(SEED, "vae", index), Casting(characters))
        pixels_BCHW = pixels_of([draw([mascot], SIDE, SIDE)])
        with torch.no_grad():
            again_BCHW = model.decode_latents(model.encode_images(pixels_BCHW))
        error = (again_BCHW.clamp(-1, 1) - pixels_BCHW).square().mean()
        found.append(float(10 * torch.log10(4 / error)))
    return sum(found) / len(found)


@dataclass(frozen=True)
class ExampleJob:
    """A job of the examples, and the model it trains on."""

    file: Path

    def job(self) -> dict[str, Any]:
        job: dict[str, Any] = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        return job

    def tiny(self, lora: str, classifier: MascotClassifier) -> TinyModel:
        """The model of the job with a LoRA file, to be sampled with the steps and the
        guidance of the job."""
        section = training(self.job())
        return TinyModel(
            load(str(ROOT / section["model"]["name_or_path"]), lora),
            classifier,
            section["sample"]["sample_steps"],
            section["sample"]["guidance_scale"],
        )


def training(job: dict[str, Any]) -> dict[str, Any]:
    """The trainer's section of a job."""
    return _section(job, lambda section: section["type"] == "sd_trainer")


def character(job: dict[str, Any]) -> dict[str, str]:
    """The looks and the trigger word of the new character."""
    return _section(job, lambda section: "character" in section)["character"]


def _section(
    job: dict[str, Any], is_wanted: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    return next(filter(is_wanted, job["config"]["process"]))
