"""`type: sd_trainer`: the trainer of a diffusion model, as a subclass of `jobs.process.trainer.Trainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from PIL import Image
from torch import Tensor

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.memory_measured import memory_callback
from extensions.sd_trainer.metadata import job_metadata
from extensions.sd_trainer.plan import corrections_of, item_groups, plan_items
from extensions.sd_trainer.setup import (
    attach_network,
    build_block_runner,
    build_roles,
    choose_checkpointing_level,
    choose_w8a8_layers,
    load_pretrained_lora,
)
from extensions.sd_trainer.writers import ExtractedLoraWriter, LoraWriter, ModelFolderWriter
from jobs.process.trainer import Attached, Setup, Trainer
from toolkit.config.process import JobContext
from toolkit.data.dataloader import BatchLoader, LatentBatch
from toolkit.data.epoch_order import EpochSource, epoch_batches
from toolkit.data.fingerprint import DatasetHashes, fingerprint
from toolkit.data.folder import DatasetScan
from toolkit.data.latent_cache import CacheStores, EncodedDataset, ItemEncoder, encode_items
from toolkit.data.pixels import stream_source
from toolkit.data.run_plan import RunPlan
from toolkit.data.scan_cache import ScanCache
from toolkit.data.stream_dataset import StreamDataset
from toolkit.data.stream_latents import StreamLatents
from toolkit.data.types import Batch, BatchSource, BatchSpec, BucketedSample, Cursor, MicroBatch, Sample, Size
from toolkit.data.validation_split import ValidationSplit, scan_and_split
from toolkit.files.run_files import EVENTS, EventLog
from toolkit.flow.settings import FlowSettings
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.compiling import check_backend
from toolkit.memory.estimate import MemoryEstimate, machine_of
from toolkit.memory.fsdp import enable_forward_prefetch, shard_block_fn
from toolkit.memory.oom_hints import memory_advice
from toolkit.models.families import BlockTransform, family_for, model_bytes
from toolkit.models.interface import DiffusionModel, ModelFacts
from toolkit.models.loading import base_hashes, checked_family
from toolkit.networks.adapter import LinearAdapterNetwork
from toolkit.networks.interface import Network
from toolkit.networks.lora_formats import LayerDelta
from toolkit.system.device import DTYPES, check_device, configure_cuda
from toolkit.train.accumulation import split_spec, splits_per_micro_batch
from toolkit.train.base_model import load_base_model
from toolkit.train.callbacks.save import PrepareNetwork
from toolkit.train.callbacks.standard import Reporting, Samples, Validation
from toolkit.train.collectives import WorkerContext, install_command_handler, leading
from toolkit.train.config_diff import ConfigChange
from toolkit.train.flow_step import NETWORK, FlowMatchingStep
from toolkit.train.int8_calibration import first_sample_spec
from toolkit.train.loop import train, try_largest_batch
from toolkit.train.prior_preservation import PriorPreservation
from toolkit.train.resumption import ResumePlan
from toolkit.train.run import Run
from toolkit.train.sampling import SamplePrompt, Sampler, sample_prompts
from toolkit.train.validation import Validator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SdData:
    """The images of a job."""

    scan: DatasetScan
    items: tuple[BucketedSample, ...]
    validation_split: ValidationSplit | None
    stream: StreamDataset | None = None
    """Trained on instead of the items, which are then none."""


@dataclass(frozen=True)
class SdModel:
    """The model, whose parts are loaded on first use, and the pretrained weights of the network, if any."""

    model: DiffusionModel
    start: dict[str, LayerDelta] | None


@dataclass(frozen=True)
class SdEncoded:
    """What makes batches: the encoded dataset, or the encoder of a stream; and the sampler and validator with their
    encoded inputs."""

    dataset: EncodedDataset | StreamLatents
    sampler: Sampler | None
    validator: Validator | None


@dataclass(frozen=True)
class SdAttached(Attached):
    """The network on the model, and the runner of its blocks."""

    network: Network
    block_runner: BlockRunner


class SdTrainerProcess(Trainer[SdData, SdModel, SdEncoded, SdAttached]):
    """Trains a network, or the model itself, on folders of images or a stream of shards; README.md lists its output
    files."""

    section: SdTrainerConfig

    def scan(self) -> SdData:
        scan_cache = ScanCache.beside(self.section.training_folder)
        family = family_for(self.section.model)
        stream = StreamDataset.of(self.section, family.size_multiple)
        return SdData(*scan_and_split(self.section, family, scan_cache), stream)

    def fingerprint(self, data: SdData) -> DatasetHashes:
        return data.stream.hashes() if data.stream else fingerprint(data.scan.samples)

    def make_plan(self, data: SdData) -> RunPlan:
        job, machine = JobContext(self.job.name), machine_of(self.section.device)
        return plan_items(self.section, job, data.scan, data.items, data.validation_split, machine, data.stream)

    @property
    def saves_folders(self) -> bool:
        return bool(self.section.network.trains_model)

    def memory_advice(self) -> str:
        return memory_advice(self.section)

    def refuse(self, data: SdData, plan: RunPlan) -> None:
        check_device(self.section.device, model_bytes(self.section.model))  # first: the memory is that of the device
        checked_family(self.section.model)
        super().refuse(data, plan)

    def corrections(self, data: SdData, revision: int) -> list[ConfigChange]:
        return corrections_of(self.section, data.scan, revision)

    def check_base(self, resumption: ResumePlan) -> None:
        resumption.check_base(self.process_group.run_on_rank0_and_broadcast(partial(base_hashes, self.section.model)))

    def written_at_begin(self, data: SdData) -> None:
        data.scan.scan_cache.save()

    # ------------------------------------------------------------ model and data

    def open_model(self, setup: Setup[SdData]) -> SdModel:
        section, train, device = self.section, self.section.train, setup.device
        self.check_base(setup.resumption)
        start = None if setup.resumption.state else load_pretrained_lora(section)
        check_backend(train.compile, device, section.model.qtype if section.model.quantize else "")
        configure_cuda(device, train.cuda_allow_tf32, train.cuda_cudnn_benchmark)
        model = load_base_model(
            self._as_planned(setup.plan).model,
            device,
            self._dtype,
            DTYPES[section.weights_dtype()],
            self._block_sharding(device),
            section.training_folder,
        )
        return SdModel(model, start)

    def _as_planned(self, plan: RunPlan) -> SdTrainerConfig:
        """The section with the modulation table that `auto` became in the plan."""
        if not isinstance(plan.memory, MemoryEstimate):
            return self.section
        model = self.section.model.model_copy(update={"modulation_table": plan.memory.modulation_table})
        return self.section.model_copy(update={"model": model})

    def _block_sharding(self, device: torch.device) -> BlockTransform | None:
        if not self._is_sharded:
            return None
        return shard_block_fn(device, self._dtype, self.process_group.world_size, self.process_group.run_collective)

    @property
    def _is_sharded(self) -> bool:
        """Whether the model is sharded over the ranks."""
        return self.section.train.parallel == "fsdp" and not self.process_group.is_single_process

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.section.train.dtype]

    def encode(self, setup: Setup[SdData], model: SdModel) -> SdEncoded:
        diffusion_model, stores = model.model, CacheStores(self.training_folder)
        dataset: EncodedDataset | StreamLatents
        if setup.data.stream:
            dataset = self._stream_latents(setup, setup.data.stream, diffusion_model, stores)
        else:
            dataset = self._encode(setup, diffusion_model, stores)
        sampler = self._sampler(setup, diffusion_model, dataset.encoder, stores)
        validator = self._validator(setup, diffusion_model, stores)
        diffusion_model.unload_encoders(keep=_encoders_in_use(diffusion_model.family, dataset, sampler))
        return SdEncoded(dataset, sampler, validator)

    def _encode(self, setup: Setup[SdData], model: DiffusionModel, stores: CacheStores) -> EncodedDataset:
        items, of_sample = setup.data.items, stores.of_samples(self.section)
        if (
            not self.process_group.is_single_process
        ):  # each rank encodes its share first; the cache on disk is then complete
            share = items[self.process_group.rank :: self.process_group.world_size]
            encode_items(share, model, of_sample, self._dtype, setup.progress, self.extra_prompts)
            self.process_group.all_gather_object("encoded")
        dataset = encode_items(items, model, of_sample, self._dtype, setup.progress, self.extra_prompts)
        setup.status.finish(f"latents and text embeddings of {len(items)} items are ready")
        return dataset

    def _stream_latents(
        self, setup: Setup[SdData], stream: StreamDataset, model: DiffusionModel, stores: CacheStores
    ) -> StreamLatents:
        keep_text = bool(self.section.requested_text_cache(stream.settings))
        encoder = ItemEncoder(model, self._dtype)
        return StreamLatents(stream, model, encoder, setup.seed, stores.on_disk, keep_text, self.extra_prompts)

    def _validator(self, setup: Setup[SdData], model: DiffusionModel, stores: CacheStores) -> Validator | None:
        validation_split, settings = setup.data.validation_split, self.section.validation
        if not validation_split or settings is None or not self.process_group.is_main_process:
            return None
        of_sample = stores.of_samples(self.section) if validation_split.from_training else lambda _: stores.on_disk
        dataset = encode_items(validation_split.items, model, of_sample, self._dtype, setup.progress)
        setup.status.finish()
        return Validator(model, dataset, settings.timesteps, settings.seed, self._rank0_model(model))

    def _rank0_model(self, model: DiffusionModel) -> Callable[..., Tensor]:
        """The forward pass of the model in work that only rank 0 does."""
        return leading(model, self.process_group) if self._is_sharded else model.predict_velocity

    def _sampler(
        self, setup: Setup[SdData], model: DiffusionModel, encoder: ItemEncoder, stores: CacheStores
    ) -> Sampler | None:
        prompts = self._sample_prompts()
        if not prompts or self.section.train.disable_sampling or not self.process_group.is_main_process:
            return None
        sampler = Sampler(model, prompts, encoder, stores.on_disk, self._rank0_model(model))
        sampler.encode(setup.progress)
        setup.status.finish()
        sampler.watch = setup.watch_sampling
        return sampler

    def _sample_prompts(self) -> list[SamplePrompt]:
        """The prompts of `sample`, then of `first_sample`."""
        return sample_prompts(self.section.sample_pictures(), self.section.trigger_word, family_for(self.section.model))

    # ------------------------------------------------------------ what is trained, and the callbacks

    def attach(self, setup: Setup[SdData], model: SdModel, encoded: SdEncoded) -> SdAttached:
        diffusion_model = model.model
        network = attach_network(self.section, diffusion_model, setup.seed, model.start)
        if self._is_sharded:
            enable_forward_prefetch(diffusion_model.blocks())
        block_runner = build_block_runner(self.section, diffusion_model, setup.device)
        sharded = network.sharded_params()
        self.process_group.broadcast([p for name, p in network.parameters().items() if name not in sharded])
        roles = build_roles(self.section, network, setup.plan.optimizer_steps, setup.seed, self.process_group)
        return SdAttached(roles, network, block_runner)

    def weights_writer(self, setup: Setup[SdData], attached: SdAttached, reporting: Reporting) -> PrepareNetwork:
        kind = ModelFolderWriter if self.saves_folders else LoraWriter
        optimizer, steps = attached.roles[NETWORK].optimizer, setup.plan.optimizer_steps
        metadata = job_metadata(self.section, self.meta, self.name, steps, setup.seed, optimizer, setup.plan)
        writer = kind(attached.network, self.section, metadata)
        if "merged_lora" not in self.section.save.also:
            return writer.snapshot
        assert isinstance(attached.network, LinearAdapterNetwork)  # true of all kinds that `merged_lora` is valid for
        return ExtractedLoraWriter(writer, attached.network, self.section.save, reporting.event).snapshot

    def validation(self, setup: Setup[SdData], encoded: SdEncoded, attached: SdAttached) -> Validation | None:
        validator = encoded.validator
        if validator is None:
            return None

        def measure(should_stop: Callable[[], bool]) -> dict[str, float] | None:
            with attached.network.inference():
                return validator.losses(should_stop)

        return Validation(measure, validator.identity)

    def samples(self, setup: Setup[SdData], encoded: SdEncoded, attached: SdAttached) -> Samples | None:
        sampler = encoded.sampler
        if sampler is None:
            return None

        def generate(index: int) -> Image.Image:
            with attached.network.inference():
                return sampler.generate(index)

        texts = [prompt.prompt for prompt in sampler.prompts]
        of_each_set = len(self.section.sample.samples) if self.section.sample else 0
        if (first := self.section.first_sample) is None:
            return Samples(generate, texts)
        return Samples(generate, texts[:of_each_set], texts[of_each_set:], first.format)

    def build_run(self, setup: Setup[SdData], model: SdModel, encoded: SdEncoded, attached: SdAttached) -> Run:
        run = super().build_run(setup, model, encoded, attached)
        run.sharded = self._is_sharded
        if run.sharded:
            install_command_handler(WorkerContext(model.model, attached.network, run))
        return run

    # ------------------------------------------------------------ the loop, and what an extension adds to it

    def extra_prompts(self, sample: Sample) -> Mapping[str, str]:
        """Further prompts of a sample by name, the same names for all. Their embeddings, with the control images of the
        sample, are cached as captions are and come with each batch (`LatentBatch.extra_prompts`)."""
        return self.section.train.preserved_prompts(sample.caption, sample.rules.trigger)

    def make_step(
        self, setup: Setup[SdData], model: SdModel, encoded: SdEncoded, attached: SdAttached
    ) -> FlowMatchingStep:
        """The step of the loop. An extension adds to its `extra_losses`, or returns one of its own class."""
        train, uses = self.section.train, setup.plan.samples_per_epoch
        step = FlowMatchingStep(model.model, setup.seed, samples_per_epoch=uses, **FlowSettings.named_in(train))
        for name, factor in train.preservations().items():
            step.extra_losses[name] = PriorPreservation(model.model, attached.network, name, factor)
        return step

    def fit(self, setup: Setup[SdData], run: Run, model: SdModel, encoded: SdEncoded, attached: SdAttached) -> None:
        diffusion_model, network, block_runner = model.model, attached.network, attached.block_runner
        step = self.make_step(setup, model, encoded, attached)
        batches = self._batches(setup, run, diffusion_model, encoded)
        if self.process_group.is_single_process:
            event, data = EventLog(self.save_root / EVENTS).add, setup.data
            groups = item_groups(self.section, data.items, stream=data.stream)
            run.callbacks = [
                *run.callbacks,
                *memory_callback(self._as_planned(setup.plan), groups, lambda: block_runner.level, setup.device, event),
            ]
        if run.state.step < run.steps:
            batch = batches.largest()

            def first() -> tuple[LatentBatch, Tensor]:
                """The first item of the first epoch and its noise, also in a resumed run."""
                first_batch = batches.first()
                return first_batch, step.sample_noise_and_t(first_batch.spec, first_batch.latents_BCHW.shape[1:])[0]

            compiled = block_runner.compiled["blocks"]
            choose_w8a8_layers(
                self.section, diffusion_model, network, setup.device, compiled, first, self.process_group
            )
            existing_state_bytes = sum(role.state_bytes for role in run.roles.values())
            choose_checkpointing_level(
                block_runner,
                self.section,
                diffusion_model,
                network,
                batch,
                existing_state_bytes,
                self.process_group.all_gather_object,
            )
            # With a sharded model no rank may repeat a pass alone.
            if line := try_largest_batch(
                run, batch, step, *([] if self._is_sharded else [block_runner.increase_checkpointing])
            ):
                logger.info(line)
            setup.resumption.record_compiled(block_runner.compiled)
        train(run, _Announced(batches.source, step, batches.latent_size), step)
        if (stream := setup.data.stream) and (line := stream.unreadable.summary()):
            logger.warning(line)

    def _batches(self, setup: Setup[SdData], run: Run, model: DiffusionModel, encoded: SdEncoded) -> _Batches:
        settings, dataset, items = self.section.train, encoded.dataset, setup.data.items
        workers = max(entry.num_workers for entry in self.section.datasets)
        splits = splits_per_micro_batch(run.grad_accum_steps, self.process_group.world_size)
        if isinstance(dataset, StreamLatents):
            # With low_vram each encoder moves to the device and back: not while a step or a sample is computed.
            workers = 0 if self.section.model.low_vram else workers
            size, group = self.section.images_per_micro_batch, self.process_group
            processes = group.rank, group.world_size
            source = stream_source(dataset.stream, setup.seed, size, dataset.load, workers, run.should_stop, *processes)
            images = -(-size // splits)
            return _Batches(source, dataset.latent_size, partial(dataset.trial, images), dataset.first)
        loader = BatchLoader(dataset, setup.seed)
        grouped = settings.group_by_length
        batches_of_epoch = partial(epoch_batches, items, settings.batch_size, run.seed, group_by_length=grouped)

        def largest() -> LatentBatch:
            own = (split_spec(spec, splits)[-1] for spec in batches_of_epoch(run.state.epoch))
            return loader.load(max(own, key=partial(_cost, items, model)))

        return _Batches(
            EpochSource(batches_of_epoch, partial(loader.prefetch, workers=workers)),
            partial(_latent_size, items, model.family),
            largest,
            lambda: loader.load(first_sample_spec(batches_of_epoch(0))),
        )


@dataclass(frozen=True)
class _Batches:
    """What is trained on."""

    source: BatchSource
    latent_size: Callable[[BatchSpec], Size]
    """Of the latents of a batch."""

    largest: Callable[[], LatentBatch]
    """Of one process, for a trial."""

    first: Callable[[], LatentBatch]
    """The first sample alone."""


@dataclass(frozen=True)
class _Announced:
    """A `BatchSource` of which the model is told the timesteps ahead."""

    source: BatchSource
    step: FlowMatchingStep
    latent_size: Callable[[BatchSpec], Size]

    def iterate(self, cursor: Cursor) -> Iterator[MicroBatch]:
        return self.source.iterate(cursor)

    def load(self, specs: Iterable[BatchSpec]) -> Iterator[Batch]:
        return self.source.load(self.step.announce_timesteps(specs, self.latent_size))


def _encoders_in_use(family: ModelFacts, dataset: EncodedDataset | StreamLatents, sampler: Sampler | None) -> list[str]:
    """Encoders that training still needs: the text encoder for shuffled captions, the VAE for sample images, both for a
    stream."""
    if isinstance(dataset, StreamLatents):
        return [part for parts in family.encoder_parts.values() for part in parts]
    needed = {"text_encoder": dataset.needs_text_encoder, "vae": sampler is not None}
    return [part for encoder, parts in family.encoder_parts.items() if needed[encoder] for part in parts]


def _cost(items: Sequence[BucketedSample], model: DiffusionModel, spec: BatchSpec) -> int:
    """Pixels of a batch in the transformer, control images taken as square: a measure of its memory."""

    def cost(item: BucketedSample) -> int:
        bucket, references = item.crop.bucket, len(item.sample.control_images)
        square = Size(max(bucket), max(bucket))
        return prod(bucket) + (references and references * prod(model.reference_size(square, bucket)))

    return sum(cost(items[index]) for index in spec.items)


def _latent_size(items: Sequence[BucketedSample], family: ModelFacts, spec: BatchSpec) -> Size:
    return family.latent_size(items[spec.items[0]].crop.bucket)
