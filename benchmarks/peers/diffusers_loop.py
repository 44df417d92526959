"""A plain loop with peft around the transformer of diffusers, or around SimpleTuner's
own (`simpletuner` behind it).

SimpleTuner's trainer does not run here: importing its model class needs torchvision.
Its transformer is measured, in a loop that does what the plain one does.
"""

from __future__ import annotations

import sys

from turns import job_of_command_line, own_output, serve

CHANNEL = own_output()

import torch  # noqa: E402
from peft import LoraConfig  # noqa: E402


def main() -> None:
    torch.set_num_threads(1)
    job = job_of_command_line()
    if "simpletuner" in sys.argv:
        from simpletuner.helpers.models.qwen_image.transformer import (
            QwenImageTransformer2DModel,
        )
    else:
        from diffusers import QwenImageTransformer2DModel
    options = {"subfolder": "transformer", "torch_dtype": torch.bfloat16}
    transformer = QwenImageTransformer2DModel.from_pretrained(job["folder"], **options)
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=job["rank"], lora_alpha=job["rank"], target_modules=job["targets"])
    )
    transformer.enable_gradient_checkpointing()
    transformer.train()
    serve(CHANNEL, step_of(transformer, job))


def step_of(transformer, job):
    """A function that takes one step under autocast, as accelerate does it, and gives
    its loss."""
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=job["lr"], weight_decay=0.01)
    side = job["size"]["latent_side"] // 2
    tokens_BLC = torch.randn(1, side * side, 64)
    text_BLD = torch.randn(
        1, job["size"]["text_tokens"], job["size"]["text_width"], dtype=torch.bfloat16
    )
    mask_BL = torch.ones(text_BLD.shape[:2], dtype=torch.bool)

    def step() -> float:
        noise_BLC = torch.randn_like(tokens_BLC)
        level_B = torch.rand(1)
        noisy_BLC = (1 - level_B) * tokens_BLC + level_B * noise_BLC
        with torch.autocast("cpu", torch.bfloat16):
            predicted_BLC = transformer(
                hidden_states=noisy_BLC.bfloat16(),
                timestep=level_B,
                encoder_hidden_states=text_BLD,
                encoder_hidden_states_mask=mask_BL,
                img_shapes=[[(1, side, side)]],
                return_dict=False,
            )[0]
        loss = (predicted_BLC.float() - (noise_BLC - tokens_BLC)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


main()
