"""The small model of mascots: loaded from its folder, with an adapter or quantized, and
sampled for a classifier."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import torch  # noqa: E402
from mascots.mascot import ALL  # noqa: E402
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
