"""The two training loops that are compared: the program's own, and what a user writes with diffusers and peft.

Both do the same work: one sample with one reference, forward, backward, clipping at norm 1, AdamW, the loss read out.
Noise and noise level of each step are keyed draws, and the plain loop is handed the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from diffusers import QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from benchmarks.synthetic import RANK, SEED, ModelSize, make_batch, open_adapter
from toolkit.contracts import Batch, BatchSpec, StepResult
from toolkit.networks.lora import LoraNetwork
from toolkit.optim.optimizers import build_optimizer
from toolkit.train.flow_step import ROLE, FlowMatchingStep
from toolkit.train.hook import Hook
from toolkit.train.loop import train
from toolkit.train.run import Role, Run

LR = 1e-4
MAX_GRAD_NORM = 1.0


class OurLoop(Hook):
    """The program's `train`, one optimizer step at a time."""

    def __init__(
        self, folder: Path, size: ModelSize, dtype: torch.dtype, checkpointing: bool, qtype: str | None
    ) -> None:
        self.adapter = open_adapter(folder, size, dtype, qtype)
        self.network = LoraNetwork(self.adapter.lora_targets(), RANK, RANK, dropout=0.0, seed=SEED)
        self.network.attach(self.adapter.network_module)
        self.adapter.use_checkpointing(checkpointing)
        parameters = self.network.parameters()
        optimizer = build_optimizer("adamw", parameters.values(), LR, {"weight_decay": 0.01})
        role = Role(parameters, optimizer, LR, lambda step: 1.0, MAX_GRAD_NORM)
        self.run = Run("bench", folder, steps=0, accumulation=1, seed=SEED, roles={ROLE: role}, hooks=[self])
        self.step_fn = FlowMatchingStep(self.adapter, SEED)
        self.batch = make_batch(size, spec_of_step(0), dtype)
        self.losses: list[float] = []

    def step(self) -> None:
        """One optimizer step of the program's own loop."""
        self.run.steps += 1
        train(self.run, lambda epoch: [spec_of_step(epoch)], self._load, self.step_fn)

    def on_result(self, run: Run, result: StepResult) -> None:
        self.losses.append(result.loss)

    def _load(self, specs: Iterable[BatchSpec]) -> Iterator[Batch]:
        for spec in specs:
            yield Batch(**{**vars(self.batch), "spec": spec})


def spec_of_step(step: int) -> BatchSpec:
    """The batch of each step (from 0): an epoch of its own, so that each has its own draws."""
    return BatchSpec(epoch=step, items=(0,), positions=(0,))


class PlainLoop:
    """LoRA training with diffusers and peft, as their examples show it: eager, the attention mask passed on."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, ours: OurLoop, checkpointing: bool, quanto: bool = False
    ) -> None:
        """quanto: the blocks' linears are optimum-quanto's own int8 ones. ours: gives the LoRA's layers and start."""
        self.transformer = QwenImageTransformer2DModel.from_pretrained(
            folder, subfolder="transformer", torch_dtype=dtype
        )
        self.transformer.requires_grad_(False)
        if quanto:
            self._quantize()
        targets = list(ours.network.targets)
        self.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
        cast_training_params(self.transformer, dtype=torch.float32)
        self._start_as(ours)
        if checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.transformer.train()
        self.parameters = [p for p in self.transformer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=0.01)
        self.dtype = dtype
        self.batch = ours.batch
        self.draws = ours.step_fn.draws
        self.losses: list[float] = []

    def _quantize(self) -> None:
        from optimum.quanto import freeze, qint8, quantize

        for block in self.transformer.transformer_blocks:
            quantize(block, weights=qint8)
            freeze(block)
        self.transformer.requires_grad_(False)  # freeze() leaves the quantized weights trainable

    def _start_as(self, ours: OurLoop) -> None:
        own = dict(self.transformer.named_parameters())
        for name, parameter in ours.network.parameters().items():
            own[name.replace(".weight", ".default.weight")].data.copy_(parameter.data)

    def step(self) -> None:
        """One training step."""
        latents = self.batch.latents_BCHW.float()
        noise, t = self.draws(spec_of_step(len(self.losses)), latents.shape[1:])
        noisy = (1 - t.view(-1, 1, 1, 1)) * latents + t.view(-1, 1, 1, 1) * noise
        target_tokens = self._pack(noisy)
        reference_tokens = self._pack(self.batch.references[0][0][None])
        height, width = (side // 2 for side in latents.shape[-2:])
        embeds = self.batch.prompts.embeds_BLD
        predicted = self.transformer(
            hidden_states=torch.cat([target_tokens, reference_tokens], dim=1).to(self.dtype),
            timestep=t.to(self.dtype),
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            img_shapes=[[(1, height, width), (1, height, width)]] * len(latents),
            return_dict=False,
        )[0][:, : target_tokens.shape[1]]
        loss = (predicted.float() - self._pack(noise - latents).float()).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.detach().item())

    @staticmethod
    def _pack(latents: torch.Tensor) -> torch.Tensor:
        return QwenImageEditPlusPipeline._pack_latents(latents, *latents.shape)
