"""`type: flow_trainer`: the trainer of a latent flow model, as a subclass of
`trainer.RolesTrainer`.

It connects the model, the data, and the roles: the transformer, and where the job says
so the text encoder, the autoencoder and its discriminator. The base class runs the job.
The steps are in `joint` and `toolkit.train`; `writers` writes the files. The runner of
jobs creates the process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from extensions.from_scratch.autoencoders import KINDS
from extensions.from_scratch.flow_config import (
    FLOW,
    LOSS_FLOW,
    TEXT_ENCODER,
    FlowTrainerConfig,
)
from extensions.from_scratch.joint import (
    JointBatch,
    JointLoader,
    JointStep,
    JointStream,
    LatentScale,
)
from extensions.from_scratch.latent_flow.family import (
    FAMILY,
    encoder_positions,
    encoder_width,
    text_encoder_kind,
)
from extensions.from_scratch.latent_flow.model import LatentFlowModel
from extensions.from_scratch.latent_flow.new import refuse_transformer
from extensions.from_scratch.latent_flow.text import refuse_encoder
from extensions.from_scratch.pixels import Picture, PixelLoader, StreamPixels
from extensions.from_scratch.plan import FlowPlanner, pixels_at_once
from extensions.from_scratch.start import (
    START,
    require_start,
    source_hashes,
    start_hashes,
    text_folders,
    write_start,
)
from extensions.from_scratch.trainer import LossBalance, RolesTrainer
from extensions.from_scratch.writers import FlowWriter
from jobs.process.image_trainer import Loader
from toolkit.contracts.network import Network
from toolkit.contracts.training import StepLosses, TrainStep
from toolkit.data.batches.dataloader import BatchLoader, LatentBatch
from toolkit.data.batches.stream_latents import StreamLatents
from toolkit.errors import UserError
from toolkit.flow.settings import FlowSettings
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.compiling import Programs, check_backend, decide_compiling
from toolkit.memory.estimate import StepShape
from toolkit.models.families import ModelLoadOptions
from toolkit.models.from_config import refuse_arguments
from toolkit.networks.full import FullNetwork, modules_with_weights
from toolkit.number_types import DTYPE_BYTES
from toolkit.optim.optimizer_args import optimizer_bytes
from toolkit.system.device import DTYPES, configure_cuda
from toolkit.train.callbacks.sample import Samples
from toolkit.train.callbacks.save import PrepareNetwork
from toolkit.train.callbacks.validation import Validation
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.loop import train, try_largest_batch
from toolkit.train.optimizer_step import Role
from toolkit.train.roles import build_role, step_in_backward
from toolkit.train.run import Run

logger = logging.getLogger(__name__)


CAPTIONS = 1000
"""Captions at the beginning of a stream from which a new tokenizer is made."""


class FlowStep(FlowMatchingStep):
    """`FlowMatchingStep`; its loss is also logged under the name of FluxFlow's guide.

    Example::

        roles = tuple(self.networks)
        step = FlowStep(model, seed, samples_per_epoch=uses, roles=roles, **named)
        losses = step(batch)
    """

    def __call__(self, batch: LatentBatch, step: int = 0) -> StepLosses:
        losses = super().__call__(batch, step)
        losses.numbers[LOSS_FLOW] = losses.by_role[FLOW].detach().mean()
        return losses


class FlowTrainerProcess(RolesTrainer):
    """Trains a flow model on folders of images or a stream of shards; README.md lists
    its output files.

    Example::

        process:
          - type: flow_trainer
            model: {vae: output/my_model/vae/vae}
            datasets: [{folder_path: datasets/photos, resolution: 256}]
    """

    section: FlowTrainerConfig

    model: LatentFlowModel

    networks: Mapping[str, FullNetwork]
    """By role."""

    block_runner: BlockRunner
    """Runs the transformer's blocks."""

    @property
    def programs(self) -> Programs:
        return self.block_runner.programs

    @property
    def caches_latents(self) -> bool:
        return not self.section.autoencoder

    # ------------------------------------------------------------ before anything
    # expensive

    planner_class = FlowPlanner

    def refuse_parts(self) -> None:
        self._refuse_model()
        super().refuse_parts()

    def _refuse_model(self) -> None:
        """Raises UserError for arguments from which a part cannot be made."""
        model = self.section.model
        if model.name_or_path:
            fault = FAMILY.config_error(model.folder())
            if fault:
                raise UserError(f"model.name_or_path: {fault}")
            return
        new = model.new_vae
        if new:
            refuse_arguments(
                KINDS[new.class_name].model_class, new.config, "model.new_vae.config"
            )
        text = model.text_encoder
        if text.name_or_path:
            encoder, tokenizer = text_folders(model)
            text_encoder_kind(encoder)
            if not tokenizer.is_dir():
                raise UserError(
                    f"model.text_encoder.tokenizer: {tokenizer} is not a folder. Give that of a tokenizer."
                )
            width = encoder_width(encoder)
            most = encoder_positions(encoder)
        else:
            with _within("model."):
                refuse_encoder(text.config)
            width = text.config.get("hidden_size", 768)
            most = text.config.get("max_position_embeddings")
        if most and most < text.max_tokens:
            raise UserError(
                f"model.text_encoder.max_tokens: {text.max_tokens}, and the text encoder has positions for {most}."
            )
        transformer = model.transformer
        channels = model.family().latent_channels
        with _within("model."):
            refuse_transformer(
                transformer.class_name,
                transformer.config,
                channels,
                text.projection_dim or width,
            )

    def check_base(self) -> None:
        hashes = self.process_group.run_on_rank0_and_broadcast(
            lambda: source_hashes(self.section.model) | start_hashes(self._start)
        )
        self.resumption.check_base(hashes)

    # ------------------------------------------------------------ model and data

    @property
    def _start(self) -> Path:
        return self.save_root / START

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.section.train.dtype]

    def open_model(self) -> None:
        section, settings, device = self.section, self.section.train, self.device
        self.process_group.run_on_rank0_and_broadcast(self._prepare_start)
        self.check_base()
        check_backend(settings.compile, device, "")
        configure_cuda(device, settings.cuda_allow_tf32, settings.cuda_cudnn_benchmark)
        weights = DTYPES[section.weights_dtype()]
        options = ModelLoadOptions(
            folder=self._start, device=device, dtype=self._dtype, weights_dtype=weights
        )
        self.model = LatentFlowModel(options)

    def _prepare_start(self) -> None:
        if self.resumption.state:
            require_start(self._start, self.resumption.state)
            return
        data = self.data
        streamed = data.stream.first(CAPTIONS) if data.stream else ()
        folders = (text for sample in data.scan.samples for text in sample.texts)
        captions = (sample.caption for sample in streamed) if data.stream else folders
        write_start(
            self.section.model,
            self._start,
            captions,
            self.seed,
            self._measured(),
            self.device,
        )

    def _measured(self) -> tuple[Picture, ...]:
        """The images that measure the scale of the latents."""
        along = self.section.autoencoder
        return (
            Picture.some_of(self.data.items, self.data.stream, along.measured_images)
            if along
            else ()
        )

    def encode(self) -> None:
        section = self.section
        data = self.data
        model = self.model
        if section.trains_text():
            model.train_text_encoder()
        if section.autoencoder:
            model.train_autoencoder(section.autoencoder.spade, self.seed)
        if not data.stream:
            cut = model.count_cut(
                {text for sample in data.scan.samples for text in sample.texts}
            )
            if cut:
                most = model.family.max_tokens
                captions = f"{cut:,} captions have" if cut > 1 else "1 caption has"
                logger.info(
                    f"{captions} more than {most} tokens: what comes after them is not seen (max_tokens)"
                )
        self.encode_images()

    # ------------------------------------------------------------ trained roles and
    # callbacks

    def attach(self) -> None:
        section = self.section
        model = self.model
        modules: dict[str, nn.Module] = {FLOW: model.network_module}
        if section.trains_text():
            modules[TEXT_ENCODER] = model.text_encoder
        self.networks = {
            role: self._network(role, module) for role, module in modules.items()
        }
        settings = section.train
        if decide_compiling(settings.compile, self.device):
            compiled = settings.compile.for_sizes(self.data.has_several)
        else:
            compiled = None
        self.block_runner = BlockRunner(
            model, self.device, self._dtype, settings.checkpointing_level(), 0, compiled
        )
        self.roles = {
            role: self._role(role, network) for role, network in self.networks.items()
        }
        self.trained = None
        if section.autoencoder:
            every = section.measure_every()
            scale = (
                LatentScale(model.autoencoder, self._measured(), every)
                if every
                else None
            )
            self.trained = self.trained_vae(model.autoencoder, scale)
            self.roles |= self.vae_roles(self.trained)

    def _network(self, role: str, module: nn.Module) -> FullNetwork:
        network = FullNetwork(modules_with_weights(module), self._dtype)
        network.attach(module)
        count = sum(p.numel() for p in network.parameters().values())
        logger.info(f"{role}: {count:,} trainable parameters")
        return network

    def _role(self, name: str, network: Network) -> Role:
        optimizer_section = self.section.role_optimizer(name)
        settings = self.section.train
        group = self.process_group
        parameters = network.parameters()
        group.broadcast(list(parameters.values()))
        role = build_role(
            optimizer_section,
            parameters,
            self.plan.optimizer_steps,
            self.seed,
            group,
            settings.ema_config,
            stochastic_rounding=settings.full_bf16,
        )
        role.every = optimizer_section.every
        if settings.fused_backward_pass:
            role.optimizer_step = step_in_backward(
                role, accumulates=self.section.micro_batches_per_step > 1
            )
        return role

    def weights_writer(self) -> PrepareNetwork:
        return FlowWriter(
            self._start, self.networks, self.section.save, self.trained
        ).snapshot

    def validation(self) -> Validation | None:
        validator = self.validator
        if validator is None:
            return None
        return Validation(
            self.measure_validation, validator.identity, lambda: validator.by_image
        )

    def samples(self) -> Samples | None:
        sampler = self.sampler
        if sampler is None:
            return None
        return Samples(sampler.generate, [prompt.prompt for prompt in sampler.prompts])

    # ------------------------------------------------------------ the loop

    def fit(self, run: Run) -> None:
        model = self.model
        named = FlowSettings.named_in(self.section.train)
        flow = FlowStep(
            model,
            self.seed,
            samples_per_epoch=self.plan.samples_per_epoch,
            roles=tuple(self.networks),
            **named,
        )
        step: TrainStep[Any] = flow
        along = self.trained
        if along and self.section.autoencoder:
            losses = self.section.autoencoder.losses
            step = JointStep(along.step(losses, self.seed, self._dtype), flow, model)
            run.callbacks = [*run.callbacks, LossBalance(losses)]
            if along.scale:
                along.scale.apply()
        dataset = self.dataset
        loader: Loader[LatentBatch | JointBatch]
        if isinstance(dataset, StreamLatents):
            if along:
                loader = JointStream(StreamPixels(dataset.stream), dataset)
            else:
                loader = dataset
        else:
            of_flow = BatchLoader(dataset, self.seed)
            if along:
                loader = JointLoader(PixelLoader(self.data.items), of_flow)
            else:
                loader = of_flow
        source, largest = self.batches(run, loader, pixels_at_once)
        if run.state.step < run.steps:
            batch = largest()
            latents = (
                cast("JointStep", step).encoded(batch)
                if isinstance(batch, JointBatch)
                else batch
            )
            self._choose_checkpointing(run, cast("LatentBatch", latents))
            line = try_largest_batch(
                run, batch, step, self.block_runner.increase_checkpointing
            )
            if line:
                logger.info(line)
            self.resumption.record_compiled(self.programs.record)
        train(run, source, step)

    def _choose_checkpointing(self, run: Run, batch: LatentBatch) -> None:
        """Makes a level of `train.gradient_checkpointing: auto`, by the largest batch;
        the same on all ranks."""
        model = self.model
        runner = self.block_runner
        tokens = model.num_tokens(
            batch.latents_BCHW, batch.prompts, batch.control_latents
        )
        train = self.section.train
        number = DTYPE_BYTES[train.dtype]
        stored = DTYPE_BYTES[self.section.weights_dtype()]
        weights = sum(p.numel() for p in model.network_module.parameters())
        blocks = len(model.blocks())
        work = StepShape(
            tokens=tokens,
            width=model.hidden_size,
            blocks=blocks,
            number_bytes=number,
            kind="full",
            casts=0 if stored == number else weights * number // blocks,
            gradients=stored * weights,
            gradients_wait=train.gradient_accumulation > 1,
        )
        runner.warn_of_slow_attention(work, len(batch))
        to_come = 0
        for name, role in run.roles.items():
            optimizer = self.section.role_optimizer(name)
            shapes = [tuple(p.shape) for p in role.parameters.values()]
            to_come += (
                optimizer_bytes(optimizer.optimizer, optimizer.optimizer_params, shapes)
                - role.state_bytes
            )
        gather = self.process_group.all_gather_object
        runner.choose_checkpointing(work, needed=max(0, to_come), gather=gather)


@contextmanager
def _within(section: str) -> Iterator[None]:
    """Puts the section before the key that a message begins with."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{section}{error}") from error
