"""The two training loops that are compared: the program's own, and what a user writes
with diffusers and peft.

Both do the same work: one sample with one reference, forward, backward, clipping at
norm 1, AdamW, the loss read out. Noise and noise level of each step are keyed draws,
and the plain loop is handed the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from diffusers import QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from benchmarks.synthetic import RANK, SEED, ModelSize, load_model, make_batch
from toolkit.contracts.data import BatchSpec
from toolkit.contracts.training import StepResult
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.data.batches.epoch_order import EpochSource
from toolkit.memory.block_runner import BlockRunner
from toolkit.networks.lora import LoraNetwork
from toolkit.optim.optimizers import build_optimizer
from toolkit.train.flow_step import NETWORK, FlowMatchingStep
from toolkit.train.loop import train
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Callback, Run

LR = 1e-4
MAX_GRAD_NORM = 1.0

Draws = Callable[[BatchSpec, torch.Size], tuple[torch.Tensor, torch.Tensor]]
"""Noise and noise level of a batch (`FlowMatchingStep.sample_noise_and_t`)."""


class OurLoop(Callback):
    """The program's `train`, one optimizer step at a time."""

    essential = True

    def __init__(
        self,
        folder: Path,
        size: ModelSize,
        dtype: torch.dtype,
        level: str,
        qtype: str | None,
    ) -> None:
        self.model = load_model(folder, size, dtype, qtype)
        self.network = LoraNetwork(
            self.model.lora_targets(), RANK, RANK, dropout=0.0, seed=SEED
        )
        self.network.attach(self.model.network_module)
        self.network.fuse_projections(self.model.fused_projection_groups())
        self.network.cast_by_block(self.model.blocks())
        BlockRunner(self.model, torch.device("cpu"), dtype, level)
        parameters = self.network.parameters()
        optimizer = build_optimizer(
            "adamw", parameters.values(), LR, {"weight_decay": 0.01}
        )
        role = Role(parameters, optimizer, LR, lambda step: 1.0, MAX_GRAD_NORM)
        self.run = Run(
            "bench",
            folder,
            steps=0,
            grad_accum_steps=1,
            seed=SEED,
            roles={NETWORK: role},
            callbacks=[self],
        )
        self.step_fn = FlowMatchingStep(self.model, SEED)
        self.batch = make_batch(size, spec_of_step(0), dtype)
        self.losses: list[float] = []

    def step(self) -> None:
        """One optimizer step of the program's own loop."""
        self.run.steps += 1
        train(
            self.run,
            EpochSource(lambda epoch: [spec_of_step(epoch)], self._load),
            self.step_fn,
        )

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self.losses.append(result.loss)

    def _load(self, specs: Iterable[BatchSpec]) -> Iterator[LatentBatch]:
        for spec in specs:
            yield LatentBatch(**{**vars(self.batch), "spec": spec})


def spec_of_step(step: int) -> BatchSpec:
    """The batch of each step (from 0): an epoch of its own, so that each has its own
    draws."""
    return BatchSpec(epoch=step, items=(0,), positions=(0,))


class PlainLoop:
    """LoRA training with diffusers and peft, as their examples show it: eager."""

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        targets: Sequence[str],
        batch: LatentBatch,
        draws: Draws,
        checkpointing: bool,
        accumulation: int = 1,
        autocast: bool = False,
        mask: bool = True,
    ) -> None:
        """transformer: frozen, on the device where the work is done. autocast: in
        bfloat16, as accelerate does it.

        mask: passes the text's mask on as trainers do, although all of it is true:
        kernels with a mask are slower.
        """
        self.transformer = transformer
        transformer.add_adapter(
            LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(targets))
        )
        cast_training_params(transformer, dtype=torch.float32)
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer.train()
        self.parameters = [p for p in transformer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=0.01)
        self.dtype, self.device = (
            transformer.img_in.weight.dtype,
            transformer.img_in.weight.device,
        )
        self.batch = batch
        self.draws = draws
        self.accumulation = accumulation
        self.autocast = autocast
        self.mask = mask
        self.losses: list[float] = []
        """Of each micro-batch."""

    def step(self) -> None:
        """One optimizer step."""
        losses = [
            self._gradients(len(self.losses) + number)
            for number in range(self.accumulation)
        ]
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses += [loss.item() for loss in losses]

    def _gradients(self, number: int) -> torch.Tensor:
        """Forward and backward of one micro-batch; its loss."""
        latents = self.batch.latents_BCHW.to(self.device, torch.float32)
        noise, t = (
            drawn.to(self.device)
            for drawn in self.draws(spec_of_step(number), latents.shape[1:])
        )
        noisy = (1 - t.view(-1, 1, 1, 1)) * latents + t.view(-1, 1, 1, 1) * noise
        target_tokens = self._pack(noisy)
        references = [
            self._pack(reference[None].to(self.device))
            for reference in self.batch.control_latents[0]
        ]
        height, width = (side // 2 for side in latents.shape[-2:])
        embeds = self.batch.prompts.embeds_BLD.to(self.device)
        mask = (
            torch.ones(embeds.shape[:2], dtype=torch.int64, device=self.device)
            if self.mask
            else None
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            predicted = self.transformer(
                hidden_states=torch.cat([target_tokens, *references], dim=1).to(
                    self.dtype
                ),
                timestep=t.to(self.dtype),
                encoder_hidden_states=embeds,
                encoder_hidden_states_mask=mask,
                img_shapes=[[(1, height, width)] * (1 + len(references))]
                * len(latents),
                return_dict=False,
            )[0][:, : target_tokens.shape[1]]
        loss = (predicted.float() - self._pack(noise - latents).float()).square().mean()
        (loss / self.accumulation).backward()
        return loss.detach()

    @staticmethod
    def _pack(latents: torch.Tensor) -> torch.Tensor:
        return QwenImageEditPlusPipeline._pack_latents(latents, *latents.shape)


def plain_rival(
    folder: Path,
    dtype: torch.dtype,
    ours: OurLoop,
    quanto: bool = False,
    lean: bool = False,
) -> PlainLoop:
    """A plain loop that does what `ours` does: the same model, LoRA layers and start,
    batch and draws.

    quanto: the blocks' linears are optimum-quanto's own int8 ones. lean: without the
    mask and gradient checkpointing, in bf16 under autocast.
    """
    transformer = QwenImageTransformer2DModel.from_pretrained(
        folder, subfolder="transformer", torch_dtype=dtype
    )
    transformer.requires_grad_(False)
    if quanto:
        _quantize(transformer)
    given = (
        ours.network.targets,
        ours.batch,
        ours.step_fn.sample_noise_and_t,
        not lean,
    )
    plain = PlainLoop(
        transformer, *given, autocast=lean and dtype is torch.bfloat16, mask=not lean
    )
    own = dict(transformer.named_parameters())
    for name, parameter in ours.network.parameters().items():
        own[name.replace(".weight", ".default.weight")].data.copy_(parameter.data)
    return plain


def _quantize(transformer: QwenImageTransformer2DModel) -> None:
    from optimum.quanto import freeze, qint8, quantize

    for block in transformer.transformer_blocks:
        quantize(block, weights=qint8)
        freeze(block)
    transformer.requires_grad_(False)  # freeze() leaves the quantized weights trainable
