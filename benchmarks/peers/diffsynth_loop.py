"""DiffSynth-Studio's own pipeline, training module, loss and `launch_training_task`.

The package has no command line for training, so this script calls its training function
with the transformer and one cached sample. The width of the transformer, 3072, is fixed
in DiffSynth's code. Its data module imports torchvision to crop images, which this job
does not need, so the script provides an empty module instead.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from turns import Turns, job_of_command_line, own_output

CHANNEL = own_output()

import torch  # noqa: E402
import transformers  # noqa: E402, F401 - it looks for torchvision before the empty one is there

if "torchvision" not in sys.modules:
    empty = ModuleType("torchvision")
    empty.__spec__ = ModuleSpec("torchvision", None)
    sys.modules["torchvision"] = empty

from accelerate import Accelerator  # noqa: E402
from diffsynth.diffusion import (  # noqa: E402
    DiffusionTrainingModule,
    FlowMatchSFTLoss,
    launch_training_task,
)
from diffsynth.models.qwen_image_dit import QwenEmbedRope, QwenImageDiT  # noqa: E402
from diffsynth.pipelines.qwen_image import QwenImagePipeline  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

ENDLESS = 1_000_000


class Training(DiffusionTrainingModule):
    """One cached sample into its own loss, with checkpointing as its examples have
    it."""

    def __init__(self, job) -> None:
        super().__init__()
        with torch.device("meta"):
            transformer = QwenImageDiT(num_layers=job["size"]["layers"])
        weights = {}
        for path in sorted((job["folder"] / "transformer").glob("*.safetensors")):
            weights |= load_file(path)
        transformer.load_state_dict(weights, assign=True)
        transformer.pos_embed = QwenEmbedRope(
            theta=10000, axes_dim=[16, 56, 56], scale_rope=True
        )
        self.pipe = QwenImagePipeline(device="cpu", torch_dtype=torch.bfloat16)
        self.pipe.dit = transformer
        self.pipe.scheduler.set_timesteps(1000, training=True)
        self.pipe.freeze_except([])
        lora = self.add_lora_to_model(
            transformer, job["targets"], job["rank"], upcast_dtype=torch.bfloat16
        )
        self.pipe.dit = lora

    def forward(self, data, inputs=None):
        return FlowMatchSFTLoss(self.pipe, **inputs, use_gradient_checkpointing=True)


class OneSample(torch.utils.data.Dataset):
    """The same latents and text, endlessly."""

    load_from_cache = True

    def __init__(self, job) -> None:
        side = job["size"]["latent_side"]
        tokens = job["size"]["text_tokens"]
        self.sample = {
            "input_latents": torch.randn(1, 16, side, side, dtype=torch.bfloat16),
            "prompt_emb": torch.randn(
                1, tokens, job["size"]["text_width"], dtype=torch.bfloat16
            ),
            "prompt_emb_mask": torch.ones(1, tokens, dtype=torch.int64),
            "height": 8 * side,
            "width": 8 * side,
        }

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index):
        return self.sample


class Answers:
    """In the place of its logger: it ends the process when no turn follows."""

    def __init__(self) -> None:
        self.turns = Turns(CHANNEL)

    def on_step_end(self, accelerator, model, save_steps, loss, **_) -> None:
        if not self.turns.done(loss.item()):
            raise SystemExit


def main() -> None:
    torch.set_num_threads(1)
    job = job_of_command_line()
    settings = {"learning_rate": job["lr"], "num_workers": 0, "save_steps": ENDLESS}
    launch_training_task(
        Accelerator(cpu=True), OneSample(job), Training(job), Answers(), **settings
    )


main()
