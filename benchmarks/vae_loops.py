"""The two loops that `bench_from_scratch.py step` compares: the program's own, and what a user writes with diffusers.

Both read the same files, encode, draw latents with the same noise, decode, and step AdamW on the same loss, clipped at
norm 1. Shape suffixes: B batch, C latent channels, H/W height and width."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn.functional import avg_pool2d, interpolate

from extensions.from_scratch.autoencoder_losses import kl_weight
from extensions.from_scratch.autoencoder_step import AutoencoderStep, trained_parameters
from extensions.from_scratch.autoencoders import make_autoencoder
from extensions.from_scratch.losses_config import VAE
from extensions.from_scratch.pixels import PixelLoader
from extensions.from_scratch.vae_config import VaeTrainerConfig
from toolkit.data.dataloader import loaded_ahead
from toolkit.data.epoch_order import EpochSource, epoch_batches
from toolkit.data.types import BatchSpec
from toolkit.system.distributed import ProcessGroup
from toolkit.system.seeding import generator
from toolkit.train.interface import StepResult
from toolkit.train.loop import train
from toolkit.train.roles import build_role
from toolkit.train.run import Callback, Run


class OurVaeLoop(Callback):
    """The program's `train`, one optimizer step at a time."""

    def __init__(self, folder: Path, section: dict[str, Any]) -> None:
        """folder: of the run. section: of a `vae_trainer` whose model is an `AutoencoderKL`."""
        self.config = config = VaeTrainerConfig(**section)
        self.items = config.scan().items
        self.seed = 0
        self.autoencoder = make_autoencoder(config.model, self.seed, torch.device("cpu"))
        self.autoencoder.module.train()
        parameters = trained_parameters(self.autoencoder, config.model.train)
        role = build_role(config.role_optimizer(VAE), parameters, config.train.steps, self.seed, ProcessGroup())
        self.run = Run("step", folder, steps=0, grad_accum_steps=1, seed=self.seed, roles={VAE: role}, callbacks=[self])
        self.step_fn = AutoencoderStep(self.autoencoder, config.losses, self.seed)
        self.source = EpochSource(
            partial(epoch_batches, self.items, config.train.batch_size, self.seed),
            partial(loaded_ahead, PixelLoader(self.items).load, workers=0),
        )
        self.losses: list[float] = []

    def step(self) -> None:
        """One optimizer step of the program's own loop."""
        self.run.steps += 1
        train(self.run, self.source, self.step_fn)

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self.losses.append(result.loss)


class PlainVaeLoop:
    """Training of an `AutoencoderKL` as one writes it: files are opened when their turn comes, losses written out."""

    def __init__(self, like: OurVaeLoop) -> None:
        """like: whose weights, images and noise it takes; it must not have stepped."""
        self.model: AutoencoderKL = copy.deepcopy(like.autoencoder.module)
        self.losses_config, self.batch_size = like.config.losses, like.config.train.batch_size
        self.files = [item.sample.image for item in like.items]
        self.seed = like.seed
        self.specs = self._specs(like)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=like.config.train.lr)
        self.losses: list[float] = []

    @staticmethod
    def _specs(like: OurVaeLoop) -> Iterator[BatchSpec]:
        for epoch in range(1_000_000):
            yield from like.source.batches(epoch)

    def step(self) -> None:
        """One optimizer step."""
        spec = next(self.specs)
        pixels = [np.asarray(Image.open(self.files[index]).convert("RGB")) for index in spec.items]
        real_BCHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        distribution = self.model.encode(real_BCHW).latent_dist
        mean_BCHW, logvar_BCHW = distribution.mean, distribution.logvar
        draws = [generator(self.seed, "posterior", spec.epoch, position) for position in spec.positions]  # as ours
        noise_BCHW = torch.stack([torch.randn(mean_BCHW.shape[1:], generator=each) for each in draws])
        fake_BCHW = self.model.decode(mean_BCHW + noise_BCHW * (0.5 * logvar_BCHW).exp()).sample
        loss = self._loss(fake_BCHW, real_BCHW, mean_BCHW, logvar_BCHW)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    def _loss(
        self, fake_BCHW: torch.Tensor, real_BCHW: torch.Tensor, mean_BCHW: torch.Tensor, logvar_BCHW: torch.Tensor
    ) -> torch.Tensor:
        weights = self.losses_config
        difference_BCHW = fake_BCHW - real_BCHW
        means_BChw = avg_pool2d(difference_BCHW, 4, ceil_mode=True, count_include_pad=False)
        low_BCHW = interpolate(means_BChw, size=difference_BCHW.shape[-2:], mode="bilinear", align_corners=False)
        loss = weights.reconstruction * (low_BCHW.abs().mean() + 0.5 * (difference_BCHW - low_BCHW).abs().mean())
        loss = loss + weights.mse * difference_BCHW.square().mean()
        kl = 0.5 * (mean_BCHW.square() + logvar_BCHW.exp() - 1 - logvar_BCHW).mean()
        return loss + kl_weight(weights, len(self.losses)) * kl
