"""`type: sd_trainer`: what a trainer of a diffusion model fills into the steps of `jobs.process.trainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.export import NetworkWriter
from extensions.sd_trainer.memory_check import machine_of, memory_hook
from extensions.sd_trainer.merged_lora import MergedLoraWriter
from extensions.sd_trainer.model_folder import ModelFolderWriter
from extensions.sd_trainer.model_setup import (
    block_engine,
    block_quantizer,
    blocks_on_host,
    choose_int8_products,
    settle,
)
from extensions.sd_trainer.plan import plan_items, refuse_full_disk
from extensions.sd_trainer.trained import attach_network, base_merging, build_roles, starting_point
from jobs.process.trainer import Attached, Setup, Trainer
from toolkit.config.process import JobContext
from toolkit.contracts import BatchSpec, Item, ModelAdapter, ModelFacts, Network, Size
from toolkit.data.batches import BatchLoader, LatentBatch
from toolkit.data.captions import inject_trigger
from toolkit.data.encode import EncodedDataset, encode_items
from toolkit.data.fingerprint import Fingerprint, fingerprint
from toolkit.data.folder import Scan
from toolkit.data.held_out import HeldOut, scan_job
from toolkit.data.manifest import Manifest
from toolkit.data.order import EpochSource, epoch_batches
from toolkit.data.plan import RunPlan
from toolkit.data.stores import CacheStores
from toolkit.device import DTYPES, set_up_cuda
from toolkit.flow.settings import FlowSettings
from toolkit.memory.advice import memory_advice
from toolkit.memory.compiling import check_backend
from toolkit.memory.engine import BlockEngine
from toolkit.memory.quantize import quantizer
from toolkit.memory.sharding import block_sharing, gather_ahead
from toolkit.models.families import family_for
from toolkit.models.opening import checked_family, open_adapter
from toolkit.models.options import BlockTransform
from toolkit.networks.adapter import LayersNetwork
from toolkit.networks.formats import ModuleChange
from toolkit.run_files import EVENTS
from toolkit.train.changes import Change, corrections
from toolkit.train.events import EventLog
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.hooks.save import PrepareNetwork
from toolkit.train.hooks.standard import Reporting, Samples, Validation
from toolkit.train.int8_choice import first_use
from toolkit.train.lockstep import Follower, follow, leading
from toolkit.train.loop import probe, train
from toolkit.train.run import Hook, Run
from toolkit.train.sampling import SamplePrompt, Sampler
from toolkit.train.validation import Validator
from toolkit.train.windows import cut_into, parts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SdData:
    """The pictures of a job."""

    scan: Scan
    items: tuple[Item, ...]
    held_out: HeldOut | None


@dataclass(frozen=True)
class SdModel:
    """The model, its parts not yet loaded, and the weights that training starts from where the job names some."""

    adapter: ModelAdapter
    start: dict[str, ModuleChange] | None


@dataclass(frozen=True)
class SdEncoded:
    """What the encoders made: what is trained on, and what needs it to draw and to measure."""

    dataset: EncodedDataset
    sampler: Sampler | None
    validator: Validator | None


@dataclass(frozen=True)
class SdAttached(Attached):
    """The network on the model, and how its blocks are run."""

    network: Network
    engine: BlockEngine


class SdTrainerProcess(Trainer[SdData, SdModel, SdEncoded, SdAttached]):
    """Trains a network, or the model itself, on folders of images; README.md lists the files it leaves."""

    section: SdTrainerConfig

    def scan(self) -> SdData:
        manifest = Manifest.beside(self.section.training_folder)
        return SdData(*scan_job(self.section, family_for(self.section.model), manifest))

    def fingerprint(self, data: SdData) -> Fingerprint:
        return fingerprint(data.scan.samples)

    def make_plan(self, data: SdData) -> RunPlan:
        job, machine = JobContext(self.job.name), machine_of(self.section)
        return plan_items(self.section, job, data.scan, data.items, data.held_out, machine)

    def memory_advice(self) -> str:
        return memory_advice(self.section)

    def refuse(self, data: SdData, plan: RunPlan) -> None:
        refuse_full_disk(self.section, self.save_root)
        checked_family(self.section.model)

    def corrections(self, data: SdData, revision: int) -> list[Change]:
        has_references = any(sample.controls for sample in data.scan.samples)
        return corrections(revision, self.section.train.model_dump(mode="json"), has_references)

    def written_at_begin(self, data: SdData) -> None:
        data.scan.manifest.save()

    # ------------------------------------------------------------ model and data

    def open_model(self, setup: Setup[SdData]) -> SdModel:
        section, train, device = self.section, self.section.train, setup.device
        start = None if setup.resumption.state else starting_point(section)
        logger.info(f"device {device}, {train.dtype}")
        check_backend(train.compile, device)
        set_up_cuda(device, train.cuda_allow_tf32, train.cuda_cudnn_benchmark)
        adapter = open_adapter(
            section.model,
            device,
            self._dtype,
            quantizer,
            weights_dtype=DTYPES[section.weights_dtype()],
            merging=base_merging(section),
            block_quantizer=block_quantizer(section),
            on_host=blocks_on_host(section),
            block_sharing=self._sharing(device),
        )
        return SdModel(adapter, start)

    def _sharing(self, device: torch.device) -> BlockTransform | None:
        if not self._is_shared_out:
            return None
        return block_sharing(device, self._dtype, self.team.size, self.team.exchange)

    @property
    def _is_shared_out(self) -> bool:
        """Whether each process has a part of the model only."""
        return self.section.train.parallel == "fsdp" and not self.team.alone

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.section.train.dtype]

    def encode(self, setup: Setup[SdData], model: SdModel) -> SdEncoded:
        adapter, stores = model.adapter, CacheStores(self.training_folder)
        dataset = self._encode(setup, adapter, stores)
        sampler = self._sampler(setup, adapter, dataset, stores)
        validator = self._validator(setup, adapter, stores)
        adapter.drop_encoders(keep=_encoders_in_use(adapter.family, dataset, sampler))
        return SdEncoded(dataset, sampler, validator)

    def _encode(self, setup: Setup[SdData], adapter: ModelAdapter, stores: CacheStores) -> EncodedDataset:
        items, of_sample = setup.data.items, stores.of_samples(self.section)
        if not self.team.alone:  # each encodes its share first: what is on disk then is there for all
            share = items[self.team.rank :: self.team.size]
            encode_items(share, adapter, of_sample, self._dtype, setup.progress)
            self.team.gather("encoded")
        dataset = encode_items(items, adapter, of_sample, self._dtype, setup.progress)
        setup.status.finish(f"latents and text embeddings of {len(items)} items are ready")
        return dataset

    def _validator(self, setup: Setup[SdData], adapter: ModelAdapter, stores: CacheStores) -> Validator | None:
        held_out, settings = setup.data.held_out, self.section.validation
        if not held_out or settings is None or not self.team.is_first:
            return None
        of_sample = stores.of_samples(self.section) if held_out.from_training else lambda _: stores.on_disk
        dataset = encode_items(held_out.items, adapter, of_sample, self._dtype, setup.progress)
        setup.status.finish()
        return Validator(adapter, dataset, settings.timesteps, settings.seed, self._led(adapter))

    def _led(self, adapter: ModelAdapter) -> Callable[..., Tensor]:
        """A pass of the model in what only the first process does."""
        return leading(adapter, self.team) if self._is_shared_out else adapter.predict_velocity

    def _sampler(
        self, setup: Setup[SdData], adapter: ModelAdapter, dataset: EncodedDataset, stores: CacheStores
    ) -> Sampler | None:
        prompts = self._sample_prompts()
        if not prompts or self.section.train.disable_sampling or not self.team.is_first:
            return None
        sampler = Sampler(adapter, prompts, dataset.encoder, stores.on_disk, self._led(adapter))
        sampler.encode(setup.progress)
        setup.status.finish()
        sampler.stop_asked = lambda: setup.request.asked
        return sampler

    def _sample_prompts(self) -> list[SamplePrompt]:
        """Of `sample`, then of `first_sample`."""
        family = family_for(self.section.model)
        sections = [given for given in (self.section.sample, self.section.first_sample) if given]
        return [
            SamplePrompt(
                prompt=inject_trigger(item.prompt, self.section.trigger_word, add=False),
                negative=inject_trigger(item.neg, self.section.trigger_word, add=False),
                size=family.drawable(Size(item.width, item.height)),
                seed=item.seed,
                guidance_scale=item.guidance_scale,
                steps=item.sample_steps,
                flow_shift=item.flow_shift,
                references=tuple(Path(path).expanduser() for path in item.ctrl_img),
            )
            for section in sections
            for item in section.pictures()
        ]

    # ------------------------------------------------------------ what is trained, and who watches

    def attach(self, setup: Setup[SdData], model: SdModel, encoded: SdEncoded) -> SdAttached:
        adapter = model.adapter
        network = attach_network(self.section, adapter, setup.seed, model.start)
        if self._is_shared_out:
            gather_ahead(adapter.blocks())
        engine = block_engine(self.section, adapter, setup.device)
        shared_out = network.shared_out()
        self.team.copy_from_first([p for name, p in network.parameters().items() if name not in shared_out])
        roles = build_roles(self.section, network, setup.plan.optimizer_steps, setup.seed, self.team)
        return SdAttached(roles, network, engine)

    def weights_writer(self, setup: Setup[SdData], attached: SdAttached, reporting: Reporting) -> PrepareNetwork:
        kind = ModelFolderWriter if self.section.network.trains_model else NetworkWriter
        writer = kind(attached.network, self.section, self.meta, setup.plan)
        if "merged_lora" not in self.section.save.also:
            return writer.prepare
        assert isinstance(attached.network, LayersNetwork)  # all kinds that `merged_lora` goes with
        return MergedLoraWriter(writer, attached.network, self.section.save, reporting.event).prepare

    def validation(self, setup: Setup[SdData], encoded: SdEncoded, attached: SdAttached) -> Validation | None:
        validator = encoded.validator
        if validator is None:
            return None

        def measure(stop_asked: Callable[[], bool]) -> dict[str, float] | None:
            with attached.network.inference():
                return validator.losses(stop_asked)

        return Validation(measure, validator.identity)

    def samples(self, setup: Setup[SdData], encoded: SdEncoded, attached: SdAttached) -> Samples | None:
        sampler = encoded.sampler
        if sampler is None:
            return None

        def draw(index: int) -> Image.Image:
            with attached.network.inference():
                return sampler.draw(index)

        return Samples(draw, [prompt.prompt for prompt in sampler.prompts])

    def build_run(self, setup: Setup[SdData], model: SdModel, attached: SdAttached, hooks: list[Hook]) -> Run:
        run = super().build_run(setup, model, attached, hooks)
        run.in_lockstep = self._is_shared_out
        if run.in_lockstep:
            follow(Follower(model.adapter, attached.network, run))
        return run

    # ------------------------------------------------------------ the loop

    def fit(self, setup: Setup[SdData], run: Run, model: SdModel, encoded: SdEncoded, attached: SdAttached) -> None:
        settings, items = self.section.train, setup.data.items
        adapter, network, engine = model.adapter, attached.network, attached.engine
        loader = BatchLoader(encoded.dataset, setup.seed)
        workers = max(dataset.num_workers for dataset in self.section.datasets)
        batches_of_epoch = partial(epoch_batches, items, settings.batch_size, run.seed)
        uses = sum(item.sample.repeats for item in items)
        step = FlowMatchingStep(adapter, run.seed, samples_per_epoch=uses, **FlowSettings.named_in(settings))
        if self.team.alone:
            event = EventLog(self.save_root / EVENTS).add
            run.hooks = [*run.hooks, *memory_hook(self.section, items, lambda: engine.level, setup.device, event)]
        if run.state.step < run.steps:
            cut = cut_into(run.accumulation, self.team.size)
            own = (parts(spec, cut)[-1] for spec in batches_of_epoch(run.state.epoch))
            largest = max(own, key=partial(_cost, items, adapter))
            batch = loader.load(largest)

            def first() -> tuple[LatentBatch, Tensor]:
                """The first item of the first epoch and its noise, wherever the run goes on."""
                first_batch = loader.load(first_use(batches_of_epoch(0)))
                return first_batch, step.draws(first_batch.spec, first_batch.latents_BCHW.shape[1:])[0]

            choose_int8_products(self.section, adapter, network, setup.device, first, self.team)
            remembered = sum(role.state_bytes for role in run.roles.values())
            settle(engine, self.section, adapter, network, batch, remembered, self.team.gather)
            # Of a model that is shared out no process repeats a pass by itself.
            if line := probe(run, batch, step, *([] if self._is_shared_out else [engine.save_more])):
                logger.info(line)

        def load(specs: Iterable[BatchSpec]) -> Iterator[LatentBatch]:
            return loader.prefetch(step.look_ahead(specs, partial(_latent_size, items, adapter.family)), workers)

        train(run, EpochSource(batches_of_epoch, load), step)


def _encoders_in_use(family: ModelFacts, dataset: EncodedDataset, sampler: Sampler | None) -> list[str]:
    """Parts that training still needs: a text encoder for shuffled captions, the VAE to see samples."""
    needed = {"text_encoder": dataset.needs_text_encoder, "vae": sampler is not None}
    return [part for encoder, parts in family.encoder_parts.items() if needed[encoder] for part in parts]


def _cost(items: Sequence[Item], adapter: ModelAdapter, spec: BatchSpec) -> int:
    """Pixels the transformer sees of a batch, references as if they were square: what its memory grows with."""

    def cost(item: Item) -> int:
        bucket, references = item.crop.bucket, len(item.sample.controls)
        square = Size(max(bucket), max(bucket))
        return prod(bucket) + (references and references * prod(adapter.reference_size(square, bucket)))

    return sum(cost(items[index]) for index in spec.items)


def _latent_size(items: Sequence[Item], family: ModelFacts, spec: BatchSpec) -> Size:
    return family.latent_size(items[spec.items[0]].crop.bucket)
