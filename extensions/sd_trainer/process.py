"""`type: sd_trainer`: the trainer of a diffusion model, as a subclass of
`jobs.process.image_trainer.ImageTrainer`.

The base class runs the job: it plans, resumes, encodes the images and calls the loop.
This class adds the parts of a diffusion model: the model, the network on it, the
training step, the samples and the files. How these are built is in `setup`, `writers`
and `metadata`. The runner of jobs creates it; extensions with another loss derive from
it (docs/extensions.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from PIL import Image

from extensions.sd_trainer.comfyui import write_workflows
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.metadata import job_metadata
from extensions.sd_trainer.setup import (
    attach_network,
    bring_files_beside,
    build_block_runner,
    build_roles,
    load_files_beside,
    load_pretrained_lora,
)
from extensions.sd_trainer.writers import (
    LoraWriter,
    ModelFolderWriter,
    SingleFileWriter,
)
from jobs.process.image_trainer import ImageTrainer
from toolkit.config.sections.lora_beside import ASSISTANT, OF_SAMPLES
from toolkit.contracts.data import (
    Batch,
    BatchSource,
    BatchSpec,
    BucketedSample,
    Cursor,
    MicroBatch,
    Sample,
    Size,
)
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network import Network
from toolkit.data.batches.dataloader import BatchLoader, LatentBatch
from toolkit.data.batches.image_data import ImageData
from toolkit.data.batches.latent_cache import EncodedDataset
from toolkit.data.batches.stream_latents import StreamLatents
from toolkit.errors import RunError
from toolkit.flow.settings import FlowSettings
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.compiling import Programs, check_backend
from toolkit.memory.fsdp import enable_forward_prefetch, shard_block_fn
from toolkit.models.families import family_for, model_bytes
from toolkit.models.loading import base_hashes, checked_family
from toolkit.networks.applied import Changes, NamedAdapters
from toolkit.networks.lora_formats import LayerDelta
from toolkit.networks.spelling import SPELLINGS, STORED
from toolkit.plan.diffusion import SdPlanner
from toolkit.plan.memory import Machine
from toolkit.plan.memory_inputs import count_trainable_params, groups_of
from toolkit.plan.memory_plan import plan_memory
from toolkit.plan.oom_hints import memory_advice
from toolkit.system.device import DTYPES, check_device, configure_cuda
from toolkit.train.base_model import load_base_model
from toolkit.train.callbacks.memory_check import memory_check
from toolkit.train.callbacks.sample import Samples
from toolkit.train.callbacks.save import PrepareNetwork
from toolkit.train.callbacks.validation import Validation
from toolkit.train.collectives import WorkerContext, install_command_handler, leading
from toolkit.train.flow_step import NETWORK, FlowMatchingStep, PriorPreservation
from toolkit.train.loop import train, try_largest_batch
from toolkit.train.run import Run

logger = logging.getLogger(__name__)

"""Key of the file that is active in training."""


class SdTrainerProcess(ImageTrainer):
    """Trains a network, or the model itself, on folders of images or a stream of
    shards; README.md lists its output files.

    Example::

        class HeldPromptProcess(SdTrainerProcess):
            def extra_prompts(self, sample: Sample) -> Mapping[str, str]:
                return {**super().extra_prompts(sample), "held": "a portrait"}

            def make_step(self) -> FlowMatchingStep:
                step = super().make_step()
                loss = PriorPreservation(self.model, self.network, "held")
                step.extra_losses["held"] = loss
                return step
    """

    section: SdTrainerConfig
    planner_class = SdPlanner

    model: DiffusionModel
    """Its parts are loaded on first use."""

    pretrained: dict[str, LayerDelta] | None
    """The weights that the network begins with."""

    files: dict[str, tuple[Changes, float]]
    """The LoRA files beside the network (`load_files_beside`), until `attach`."""

    network: Network

    beside: NamedAdapters

    block_runner: BlockRunner

    @property
    def programs(self) -> Programs:
        return self.block_runner.programs

    @property
    def saves_folders(self) -> bool:
        return self.section.saves_folders

    def memory_advice(self) -> str:
        return memory_advice(self.section)

    def scan(self) -> ImageData:
        # The sizes of images depend on the model's family.
        if any(self.planner.without_model()):
            self.process_group.run_on_rank0_then_barrier(
                lambda: checked_family(self.section.model)
            )
        data = super().scan()
        if self.section.files_beside():
            self.process_group.run_on_rank0_then_barrier(
                lambda: bring_files_beside(self.section)
            )
            bring_files_beside(self.section)  # another machine has its own hub cache
        return data

    def refuse(self) -> None:
        # First, because the checks after it use the memory of the device.
        check_device(self.section.device, model_bytes(self.section.model))
        checked_family(self.section.model)
        super().refuse()

    def trained_shapes(self) -> Iterable[tuple[int, ...]]:
        return count_trainable_params(self.section).shapes

    def refuse_parts(self) -> None:
        load_files_beside(self.section)

    def check_base(self) -> None:
        hashes = base_hashes(self.section.model)
        # Each machine may have its own copy.
        self.process_group.assert_equal_across_ranks(
            {f"the model's {part}": hashes[part][:12] for part in hashes}
        )
        self.resumption.check_base(hashes)

    # ------------------------------------------------------------ model and data

    def open_model(self) -> None:
        section = self.section
        train = section.train
        device = self.device
        group = self.process_group
        self.check_base()
        self.pretrained = (
            None if self.resumption.state else load_pretrained_lora(section)
        )
        check_backend(
            train.compile, device, section.model.qtype if section.model.quantize else ""
        )
        self.files = load_files_beside(section)
        configure_cuda(device, train.cuda_allow_tf32, train.cuda_cudnn_benchmark)
        dtype = DTYPES[train.dtype]
        sharing = None
        if self._is_sharded:
            sharing = shard_block_fn(
                device, dtype, group.world_size, group.run_collective
            )
        settings = self._as_planned().model
        weights = DTYPES[section.weights_dtype()]
        self.model = load_base_model(
            settings,
            device,
            dtype,
            weights,
            sharing,
            str(self.training_folder),
            decoder=section.decoder(),
            keep=True,
            maps=section.maps_kept()
            and (self.plan.memory is None or self.plan.memory.mapped > 0),
        )

    def _as_planned(self) -> SdTrainerConfig:
        """The section with the modulation table that `auto` became in the plan."""
        if self.plan.memory is None:
            return self.section
        model = self.section.model.model_copy(
            update={"modulation_table": self.plan.memory.modulation_table}
        )
        return self.section.model_copy(update={"model": model})

    @property
    def _is_sharded(self) -> bool:
        """Whether the model is sharded over the ranks."""
        return (
            self.section.train.parallel == "fsdp"
            and not self.process_group.is_single_process
        )

    def encode(self) -> None:
        if self._is_sharded:
            self.predict = leading(self.model, self.process_group)
        self.encode_images()

    # ------------------------------------------------------------ what is trained, and
    # the callbacks

    def attach(self) -> None:
        self.network = attach_network(
            self.section, self.model, self.seed, self.pretrained
        )
        dtype = DTYPES[self.section.train.dtype]
        self.beside = NamedAdapters(
            self.model.network_module, self.files, self.device, dtype
        )
        self.files.clear()  # the layers have what they need of them
        self.beside.activate(ASSISTANT if self.section.train.assistant else "")
        if self._is_sharded:
            enable_forward_prefetch(self.model.blocks())
        # A run that began compiled goes on so, whatever compiling takes now: its
        # results stay the same.
        against_compiling = (
            "" if self.resumption.ran_compiled else self.plan.against_compiling
        )
        self.block_runner = build_block_runner(
            self.section,
            self.model,
            self.device,
            against_compiling,
            self.data.has_several,
            self.plan.memory.pinned_blocks if self.plan.memory else 0,
        )
        sharded = self.network.sharded_params()
        self.process_group.broadcast(
            [
                p
                for name, p in (
                    self.network.parameters() | self.network.buffers()
                ).items()
                if name not in sharded
            ]
        )
        steps = self.plan.optimizer_steps
        self.roles = build_roles(
            self.section, self.network, steps, self.seed, self.process_group
        )

    @contextmanager
    def deployed(self, file: str = "") -> Iterator[None]:
        """Inside the block the model is as it will be used: no dropout, no assistant,
        with this file beside it."""
        with self.network.inference(), self.beside.using(file):
            yield

    def weights_writer(self) -> PrepareNetwork:
        in_one = SingleFileWriter if self.section.network.trains_model else LoraWriter
        kind = ModelFolderWriter if self.saves_folders else in_one
        optimizer = self.roles[NETWORK].optimizer
        newest = family_for(self.section.model).lora_spelling
        spelling = SPELLINGS[self.resumption.record_spelling(newest, STORED.name)]
        metadata = job_metadata(
            self.section,
            self.meta,
            self.name,
            self.plan.optimizer_steps,
            self.seed,
            optimizer,
            self.plan,
            spelling,
            self.data.scan.folders,
        )
        writer = kind(self.network, self.section, metadata, spelling)
        controlled = {bool(item.sample.control_images) for item in self.data.items} or {
            False
        }
        edits = True in controlled
        plain = False in controlled
        writer.at_end = partial(
            write_workflows, section=self.section, edits=edits, plain=plain
        )
        return writer.snapshot

    def validation(self) -> Validation | None:
        validator = self.validator
        if validator is None:
            return None

        def measure(should_stop: Callable[[], bool]) -> dict[str, float] | None:
            with self.deployed():
                return self.measure_validation(should_stop)

        return Validation(measure, validator.identity, lambda: validator.by_image)

    def samples(self) -> Samples | None:
        sampler = self.sampler
        if sampler is None:
            return None

        def generate(index: int) -> Image.Image:
            with self.deployed(OF_SAMPLES):
                return sampler.generate(index)

        prompts = sampler.prompts
        texts = [prompt.prompt for prompt in prompts]
        layers = {
            index: prompt.layers
            for index, prompt in enumerate(prompts)
            if prompt.layers
        }
        return Samples(generate, texts, layers=layers)

    def build_run(self) -> Run:
        run = super().build_run()
        run.sharded = self._is_sharded
        if run.sharded:
            install_command_handler(WorkerContext(self.model, self.network, run))
        return run

    # ------------------------------------------------------------ the loop, and what an
    # extension adds to it

    def extra_prompts(self, sample: Sample) -> Mapping[str, str]:
        """Further prompts of a sample by name, the same names for all. Their
        embeddings, with the control images of the sample, are cached as captions are
        and come with each batch (`LatentBatch.extra_prompts`)."""
        train = self.section.train
        prompts = dict[str, str]()
        if train.preservations():
            prompts = train.preserved_prompts(
                sample.caption, self.section.trigger_words()
            )
        return prompts

    def make_step(self) -> FlowMatchingStep:
        """The step of the loop. An extension adds to its `extra_losses`, or returns a
        step of another class."""
        train = self.section.train
        uses = self.plan.samples_per_epoch
        named = FlowSettings.named_in(train)
        make: Callable[..., FlowMatchingStep] = FlowMatchingStep
        step = make(self.model, self.seed, samples_per_epoch=uses, **named)
        for name, factor in train.preservations().items():
            step.extra_losses[name] = PriorPreservation(
                self.model, self.network, name, factor
            )
        return step

    def fit(self, run: Run) -> None:
        section = self.section
        dataset = self.dataset
        step = self.make_step()
        if not isinstance(step, FlowMatchingStep):
            raise RunError(
                f"{type(self).__name__}.make_step returns {step!r}: return the step of super().make_step()"
            )
        loader = (
            BatchLoader(dataset, self.seed)
            if isinstance(dataset, EncodedDataset)
            else dataset
        )
        source, largest = self.batches(
            run,
            loader,
            partial(_pixels_in_model, self.model),
            section.train.group_by_length,
            # With low_vram each encoder moves to the device and back: not while a step
            # or a sample is computed.
            prefetched=not (self.data.stream and section.model.low_vram),
        )
        if self.process_group.is_single_process:
            self._measure_memory(run)
        if run.state.step < run.steps:
            batch = largest()
            self._choose_checkpointing(run, batch)
            # With a sharded model no rank may repeat a pass alone.
            ways_out = (
                [] if self._is_sharded else [self.block_runner.increase_checkpointing]
            )
            if line := try_largest_batch(run, batch, step, *ways_out):
                logger.info(line)
            self.resumption.record_compiled(self.programs.record)
        train(run, _Announced(source, step, self._latent_size), step)

    def _choose_checkpointing(self, run: Run, largest: LatentBatch) -> None:
        """Makes a level of `train.gradient_checkpointing: auto`, by the largest batch;
        the same on all ranks."""
        # Each start of a run plans its memory.
        assert self.plan.memory and self.plan.memory.step
        planned = self.plan.memory.step
        compile = self.section.train.compile
        targets_BCHW = largest.latents_BCHW
        tokens = self.model.num_tokens(
            targets_BCHW, largest.prompts, largest.control_latents
        )
        by_inductor = self.programs.used and compile.backend == "inductor"
        work = replace(planned.shape, tokens=tokens, compiled=by_inductor)
        self.block_runner.warn_of_slow_attention(work, len(targets_BCHW))
        # In a resumed run the optimizer has its state already.
        remembered = sum(role.state_bytes for role in run.roles.values())
        needed = max(0, planned.optimizer - remembered) + planned.beside
        self.block_runner.choose_checkpointing(
            work, needed, self.process_group.all_gather_object
        )

    def _latent_size(self, spec: BatchSpec) -> Size:
        if isinstance(self.dataset, StreamLatents):
            return self.dataset.latent_size(spec)
        return self.model.family.latent_size(self.data.items[spec.items[0]].crop.bucket)

    def _measure_memory(self, run: Run) -> None:
        """Compares the peak of the first step with the estimate, where memory can be
        measured."""
        section = self.section
        planned = self._as_planned()
        on_gpu = self.device.type == "cuda"
        # On the CPU the peak includes all earlier phases of the process.
        phases = [] if on_gpu else ["encoding", "loading"]
        if (
            section.sample
            and section.draws_first()
            and not section.train.disable_sampling
        ):
            phases.append("sampling")

        def predict(resumed: bool) -> int:
            machine = Machine("cuda" if on_gpu else "cpu")
            groups = groups_of(section, self.data)
            plan = plan_memory(
                planned, groups, machine, self.block_runner.level, self.programs.used
            )
            return plan.allocated("training" if resumed else "first step", *phases)

        run.callbacks = [*run.callbacks, *memory_check(predict, self.device)]


@dataclass(frozen=True)
class _Announced:
    """A `BatchSource` that announces the timesteps of its batches to the model."""

    source: BatchSource
    step: FlowMatchingStep
    latent_size: Callable[[BatchSpec], Size]
    """Size of the latents of a batch."""

    def iterate(self, cursor: Cursor) -> Iterator[MicroBatch]:
        return self.source.iterate(cursor)

    def load(self, specs: Iterable[BatchSpec]) -> Iterator[Batch]:
        return self.source.load(self.step.announce_timesteps(specs, self.latent_size))


def _pixels_in_model(model: DiffusionModel, item: BucketedSample) -> int:
    """Pixels of an item in the transformer, control images taken as square: a measure
    of its memory."""
    bucket = item.crop.bucket
    layers = len(item.sample.layers)
    references = len(item.sample.control_images) or min(layers, 1)
    square = Size(max(bucket), max(bucket))
    return prod(bucket) * (layers + model.predicts_composite if layers else 1) + (
        references and references * prod(model.reference_size(square, bucket))
    )
