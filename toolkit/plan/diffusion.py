"""The plan of an `sd_trainer` process: scans its datasets and counts. Imports no torch,
writes nothing.

`SdPlanner` adds to `Planner` what a diffusion model needs: memory and time estimates,
and lines on model, adapter, optimizer and samples. `SdTrainerConfig` makes one for a
dry run, and `SdTrainerProcess` for a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from textwrap import shorten

from toolkit.config.reading.process import JobContext
from toolkit.config.sections.dataset import DatasetConfig, Rectangle, sides_of
from toolkit.config.sections.lora_beside import ASSISTANT, OF_SAMPLES
from toolkit.config.sections.model_files import local_index
from toolkit.config.sections.output import SampleConfig
from toolkit.config.sections.train import TrainConfig
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.data import Size
from toolkit.contracts.network_kinds import KINDS
from toolkit.data.batches.image_data import ImageData, open_stream
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.fingerprint import digest_of, fingerprint
from toolkit.data.scan.items import sample_inputs, too_large
from toolkit.data.scan.validation_split import scan_and_split
from toolkit.errors import DataErrors, Diagnostic, RunError, UserError
from toolkit.files.writing import readable_size
from toolkit.memory.estimate import GB
from toolkit.models.families import (
    LARGE_MODEL_BLOCKS,
    ModelFamily,
    family_for,
    model_bytes,
    title_of,
    unknown_family,
    yet_to_come,
)
from toolkit.models.recipes import recipe_of
from toolkit.networks.targets import select_target_modules, unused_choices
from toolkit.number_types import DTYPE_BYTES, QTYPE_ERRORS
from toolkit.optim.optimizer_args import state_note
from toolkit.plan.cards import Card, asked_card, assumed_card, card_here
from toolkit.plan.kept_model import kept_outlook
from toolkit.plan.memory import Machine, MemoryEstimate, fit
from toolkit.plan.memory_inputs import (
    TrainableParams,
    count_trainable_params,
    groups_of,
)
from toolkit.plan.memory_plan import plan_memory
from toolkit.plan.oom_hints import MemorySaving, suggestions
from toolkit.plan.planning import Planner, times_in_run
from toolkit.plan.run_plan import SaveSize
from toolkit.plan.run_time import run_work, steps_and_guidance, times_key
from toolkit.plan.step_time import RunTime
from toolkit.registry import hinted_tool
from toolkit.system.distributed_env import read_distributed_env
from toolkit.system.nvidia import ACCIDENTAL_CPU_LIMIT, why_no_device_here
from toolkit.train.accumulation import splits_per_micro_batch
from toolkit.version import COMMAND

_ON_DISK = {
    "always": ", each state {} on disk",
    "at_end": ", and one state of {} at the end, on disk",
    "never": " on disk, no state: a stopped run starts over",
}
"""`save.states` -> what it means, behind the size of a file."""

MOST_PROMPTS = 3
"""Prompts that the line of the samples quotes."""


class SdPlanner(Planner[DiffusionSection]):
    """The plan of a LoRA's training, or of the model itself.

    Example::

        planner = SdPlanner(section, JobContext("my_char"))
        plan = planner.plan(planner.scan())
        print(plan.render())
    """

    def __init__(
        self,
        section: DiffusionSection,
        job: JobContext,
        machine: Machine | None = None,
    ) -> None:
        super().__init__(section, job, machine)
        self._estimates = dict[bool | None, tuple[ImageData, MemoryEstimate]]()
        self.asked_card = self._asked_card()
        """That of `--card`, or of the job where this machine has none for it."""
        if card := self.asked_card:
            self.machine = Machine("cuda", card.memory_gb * GB, asked=card.called)

    def _asked_card(self) -> Card | None:
        section = self.section
        own = asked_card(section.card, "card") if section.card else None
        if self.job.card:
            return asked_card(self.job.card) if self.here.kind == "cuda" else None
        if own is None or self.here.gpu:
            return None
        with suppress(UserError):  # the plan says it of a model without a family
            if why_no_device_here(section.device, model_bytes(section.model)):
                return own
        return None

    @cached_property
    def family(self) -> ModelFamily:
        return family_for(self.section.model)

    @property
    def pixel_channels(self) -> int:
        return self.family.pixel_channels

    def without_model(self) -> Iterator[str]:
        return unknown_family(self.section.model)

    def scan(self) -> ImageData:
        section = self.section
        cache = ScanCache.beside(section.training_folder)
        scan_and_split_result = scan_and_split(
            section, self.family, cache, self.trained_images
        )
        data = ImageData(
            *scan_and_split_result, open_stream(section, self.family.size_multiple)
        )
        mistakes = [*self._sample_mistakes()]
        if mistakes:
            raise DataErrors(mistakes)
        return data

    def _sample_mistakes(self) -> Iterator[Diagnostic]:
        """Samples with unusable or too many control images, too large images, or too
        long prompts, where that can be checked without torch."""
        for index, picture in enumerate(self.section.sample_pictures()):
            place = f"sample.samples[{index}]"
            try:
                references = sample_inputs(place, picture, self.family)
            except DataErrors as error:
                yield from error.errors
                continue
            size = Size(picture.width, picture.height)
            if reason := too_large(self.family.drawable(size), self.family):
                yield Diagnostic((place,), reason)
            for text_key, text in (
                ("prompt", picture.prompt),
                ("neg", picture.neg or ""),
            ):
                if len(text) <= self.family.sure_prompt:
                    continue
                message = self.family.prompt_error(
                    self.section.model, text, size, references
                )
                if message:
                    yield Diagnostic((f"{place}.{text_key}",), f"has {message}")

    # ------------------------------------------------------------ memory and disk

    def memory(self, data: ImageData) -> MemoryEstimate | None:
        if self.job.yet_to_come(self.section.model.folder()):
            return None
        compiled = False if self.against_compiling else None
        # the time asks for it first
        known_data, estimate = self._estimates.get(compiled, (None, None))
        if estimate is None or known_data is not data:
            estimate = plan_memory(
                self.section,
                groups_of(self.section, data),
                self.machine,
                compiled=compiled,
            )
            self._estimates[compiled] = data, estimate
        return estimate

    def savings(self) -> Iterable[MemorySaving]:
        return suggestions(self.section)

    def save_size(self) -> SaveSize:
        section = self.section
        trained = count_trainable_params(section)
        state = (
            trained.state_bytes(section.train) if section.save.states != "never" else 0
        )
        return SaveSize(trained.written * DTYPE_BYTES[section.save.dtype], state)

    def run_time(self, data: ImageData, steps: int) -> RunTime | None:
        section = self.section
        memory = self.memory(data)
        if memory is None:
            return None
        groups = groups_of(section, data)
        card = self._card(memory)
        often = times_in_run(section.train, data, steps)
        work = run_work(section, groups, steps, often, memory, self.save_size())
        if work is None:
            return None
        no_card = self._why_no_card(card, memory)
        return RunTime(
            work,
            None if no_card else card,
            self.here.gpu,
            times_key(section, groups, self.here.gpu),
            bool(self.asked_card),
            no_card,
        )

    def _why_no_card(self, card: Card | None, memory: MemoryEstimate) -> str:
        """Why no time is calculated for a card; empty where there is nothing to say."""
        if self.job.card and self.machine.kind != "cuda":
            return f"this job runs on 'device: {self.section.device}', so --card has no effect"
        if fit(memory.peak_bytes, self.machine.limit) == "does not fit":
            return f"it does not fit {self.machine.asked or 'the GPU'}"
        if card and self.section.train.dtype == "float32":
            return "the table of cards has no rate for float32"
        if self.here.gpu and card is None:
            return f"{self.here.gpu} is not in the table of cards"
        return ""

    def _card(self, memory: MemoryEstimate) -> Card | None:
        """The card that the time is calculated for: the one that `--card` asks for, the
        one here, or, for a model that needs one where there is none, a well-known one
        of the smallest size that the job fits."""
        if self.machine.kind != "cuda":
            return None
        if self.asked_card:
            return self.asked_card
        if self.here.gpu:
            return card_here(self.here.gpu)
        # trained on the CPU
        if model_bytes(self.section.model) <= ACCIDENTAL_CPU_LIMIT:
            return None
        size = memory.card()
        return assumed_card(size) if size else None

    def describe_memory(self, data: ImageData, memory: MemoryEstimate) -> Iterator[str]:
        section = self.section
        yield from super().describe_memory(data, memory)
        trained = count_trainable_params(section)
        note = state_note(
            section.train.optimizer, section.train.optimizer_params, trained.shapes
        )
        if note:
            yield note
        for line in unused_choices(section.network, self._layer_names()):
            yield f"warning: {line}"
        yield self._trained_line(trained)

    def _layer_names(self) -> list[str]:
        """The names that `network` chooses from."""
        folder = self.section.model.files_folder()
        if self.section.network.trains_model:
            return list(self.family.modules(folder))
        return list(self.family.adapter_layers(folder))

    def _trained_line(self, trained: TrainableParams) -> str:
        """The line on the network that is trained, and on the disk space of a save."""
        section, network = self.section, self.section.network
        size = self.save_size()
        saved = "folder" if section.saves_folders else "file"
        state = _ON_DISK[section.save.states].format(readable_size(size.state))
        line = (
            f"{network.type} {network.size()} on {len(trained.layers)} layers: "
            f"{trained.weights:,} trainable parameters; each {saved} {readable_size(size.file)}{state}"
        )
        if section.model.quantize:
            line += f"; the model's own weights in {section.model.qtype}"
        return line

    # ------------------------------------------------------------ notes

    def describe_model(self, data: ImageData) -> Iterator[str]:
        """Lines on what is done with the model and the images, where a user may not
        expect it."""
        yield from yet_to_come(self.section.model, self.job)
        if terms := self.family.terms:
            tool = hinted_tool("publication")
            writer = f", which {COMMAND} {tool} writes" if tool else ""
            yield (
                f"licence: what you publish of this training must {terms.duties}{writer} "
                f"({terms.link})"
            )
        if not read_distributed_env().is_single_process:
            yield from data_parallel_notes(self.section.train)
        yield from self._inputs(data)
        yield from self._passes(data)
        yield from self._weights()
        yield from self._adapter()
        yield from settings_lines(self.section, self.family)

    def _inputs(self, data: ImageData) -> Iterator[str]:
        """Warnings of images and prompts with fewer references than the model was
        published with, and of captions and prompts whose end it does not get."""
        pictures = self.section.sample_pictures()
        least = self.family.min_references
        images = sum(
            len(sample.control_images) < least and not sample.layers
            for sample in data.scan.samples
        )
        samples = sum(len(picture.ctrl_img) < least for picture in pictures)
        title = title_of(self.section.model, self.family)
        for count, noun, key in (
            (images, "image", "control_path"),
            (samples, "sample prompt", "ctrl_img"),
        ):
            if count:
                subject = f"{noun}s have" if count > 1 else f"{noun} has"
                yield f"warning: {count:,} {subject} no control image, but {title} is made to edit one. Give {key}."
        captions = [
            (f"{sample.image}: its caption has", text)
            for sample in data.scan.samples
            for text in sample.texts
        ]
        yield from self._cut_texts("captions", captions)
        prompts = [
            (f"sample: {shorten(picture.prompt, 40)!r} has", picture.prompt)
            for picture in pictures
        ]
        yield from self._cut_texts("prompts", prompts)

    def _cut_texts(self, noun: str, texts: Iterable[tuple[str, str]]) -> Iterator[str]:
        """A warning of texts whose end the model does not get. texts: (begin of the
        warning, text)."""
        model = self.section.model
        index = local_index(model.name_or_path, model.revision)
        if index is None:
            return
        notes = [
            f"{subject} {note}"
            for subject, text in texts
            if (note := self.family.prompt_note(index.parent, text))
        ]
        if not notes:
            return
        others = len(notes) - 1
        if others == 1:
            noun = noun.removesuffix("s")
        rest = f" The same applies to {others:,} more {noun}." if others else ""
        yield f"warning: {notes[0]}{rest}"

    def _passes(self, data: ImageData) -> Iterator[str]:
        """When a stream is encoded, and what is kept of it; what was understood of a `resolution` that is more than one
        number."""
        if self.section.streamed:
            yield self._stream_line(self.section.streamed)
        for dataset in self.section.datasets:
            is_one_number = len(dataset.resolution) == 1 and isinstance(
                dataset.resolution[0], int
            )
            if not is_one_number:
                yield f"resolution of {dataset.place}: {'; '.join(map(self._size_words, dataset.resolution))}"

    def _stream_line(self, stream: DatasetConfig) -> str:
        """When a stream is encoded, and which results are cached."""
        kept = {
            "latents": stream.keeps("latents"),
            "text embeddings": stream.keeps("text"),
        }
        cached = [what for what, is_kept in kept.items() if is_kept]
        caching = (
            f"; {' and '.join(cached)} are kept on the disk"
            if cached
            else ", again at each use"
        )
        return f"images and captions are encoded as they arrive{caching}; VAE and text encoder stay loaded"

    def _size_words(self, size: int | Rectangle) -> str:
        if isinstance(size, int):
            return f"up to {size} x {size} pixels of area, aspect ratio kept"
        multiple = self.family.size_multiple
        sides = [str(side // multiple * multiple) for side in sides_of(size)]
        return f"exactly {' x '.join(sides)} pixels, the rest of each image cut off"

    def _weights(self) -> Iterator[str]:
        """The LoRA files that are active with the network at times, those that are
        merged into the model, and what quantization costs."""
        yield from self._files_beside()
        if decoder := self.section.decoder():
            yield f"sample.vae_path: samples are decoded with {decoder.name}; latents and training stay as they are"
        for lora in self.section.model.base_loras:
            yield f"merged into the model before training: {lora.file_name()} times {lora.multiplier:g}"
        if self.section.model.quantize:
            yield from self._quantization()

    def _files_beside(self) -> Iterator[str]:
        """The LoRA files beside the network, and a training adapter that could be
        one."""
        files = self.section.files_beside()
        for key, lora in files.items():
            if download := lora.to_download():
                yield f"{key}: {download} is not in the hub cache: the run downloads it first"
            name = Path(lora.file()).name
            when = "on in training, off in samples and validation"
            if key == OF_SAMPLES:
                when = "on in samples, off in training and validation"
            yield f"{key}: {name} times {lora.multiplier:g} is {when}"
        published = self._published_assistant()
        if published and ASSISTANT not in files:
            yield (
                "train.assistant: none. LoRAs of this model may collapse into texture while the loss falls; others "
                f"avoid this with {published} (docs/models.md)"
            )

    def _quantization(self) -> Iterator[str]:
        """Lines on the cost of quantization, and on how it is made up for."""
        model = self.section.model
        kept_model = kept_outlook(self.section)
        if kept_model and kept_model.lack:
            yield f"warning: model.keep_quantized: the quantized model will not be kept: {kept_model.lack}"
        if model.makes_recovery():
            yield f"{model.qtype}: an accuracy-recovery adapter is made for it, or taken from the cache"
        elif model.accuracy_recovery_adapter:
            yield f"added to the frozen {model.qtype} model: {model.recovery_name()}; layers it does not cover are int8"
        elif model.qtype in QTYPE_ERRORS:
            yield (
                f"{model.qtype}: each weight is off by {100 * QTYPE_ERRORS[model.qtype]:.2g} %; an accuracy-recovery "
                f"adapter for {model.qtype} ('{model.qtype}|file') corrects it"
            )

    def _published_assistant(self) -> str:
        """The training adapter that is published for the model, where an adapter is
        trained on it at full size; empty: there is none."""
        recipe = recipe_of(title_of(self.section.model, self.family), self.family)
        if self.section.network.trains_model or not recipe or not recipe.adapters:
            return ""
        is_large = (
            self.family.block_count(self.section.model.files_folder())
            >= LARGE_MODEL_BLOCKS
        )
        return recipe.adapters[0].name if is_large else ""

    def _adapter(self) -> Iterator[str]:
        """What is held of the base model, and what that costs; a warning where the rank
        is above that of whole weights."""
        train = self.section.train
        prompts = {
            "diff_output_preservation": (
                f"captions with {train.diff_output_preservation_class!r} in place of the trigger word"
            ),
            "blank_prompt_preservation": "an empty prompt",
        }
        for name, factor in train.preservations().items():
            yield f"{name}: keeps the model's prediction for {prompts[name]} unchanged (weight {factor:g})"
        if count := len(train.preservations()):
            yield f"that takes {2 * count} more predictions per micro-batch, {count} of them with a backward pass"
        network = self.section.network
        # of other kinds the rank is not that of a product of two matrices
        if not KINDS[network.type].up_names:
            return
        layers = self.family.adapter_layers(self.section.model.files_folder())
        chosen = [
            min(layers[name])
            for name in select_target_modules(
                network, list(layers), self.family.lora_layers
            )
        ]
        if narrow := [width for width in chosen if width < network.linear]:
            yield (
                f"warning: network.linear {network.linear} exceeds the width of {len(narrow)} of {len(chosen)} layers "
                f"(smallest: {min(chosen)}); the extra rank has no effect there"
            )


# ------------------------------------------------------------ lines on optimizer, noise
# levels, captions, samples


def settings_lines(section: DiffusionSection, family: ModelFamily) -> Iterator[str]:
    """Optimizer and schedule, noise levels, caption dropout, samples."""
    yield _optimizer(section.train)
    yield f"noise levels: {section.train.timestep_type}"
    yield from _dropout(section)
    yield _samples(section, family)


def _optimizer(train: TrainConfig) -> str:
    optimizer = train.optimizer + _in_brackets(train.optimizer_params)
    rates = f"learning rate {train.lr:g}"
    schedule = train.lr_scheduler + _in_brackets(train.lr_scheduler_params)
    warmup = train.lr_warmup_steps
    if warmup >= 1:
        schedule += f", warm-up {warmup:,.0f} steps"
    elif warmup:
        schedule += f", warm-up {warmup:.0%} of the steps"
    clipping = (
        f"clipping {train.max_grad_norm:g}" if train.max_grad_norm else "no clipping"
    )
    return f"optimizer: {optimizer}, {rates}, {schedule}; {clipping}"


def _in_brackets(params: Mapping[str, object]) -> str:
    """Such as " (weight_decay 0.1, eps 1e-08)"; empty without parameters."""
    return (
        f" ({', '.join(f'{name} {value}' for name, value in params.items())})"
        if params
        else ""
    )


def _dropout(section: DiffusionSection) -> Iterator[str]:
    """One rate for all datasets, or each with its place."""
    rates = {
        dataset.place: dataset.caption_dropout_rate for dataset in section.datasets
    }
    if not any(rates.values()):
        return
    for place, rate in rates.items():
        if rate == 1:
            yield f"warning: {place}: 'caption_dropout_rate: 1' drops every caption. Write 0.1 for 10 %."
    if len(set(rates.values())) == 1:
        yield f"caption dropout: {100 * next(iter(rates.values())):g} % of the uses train without caption"
    else:
        shares = [
            f"{100 * rate:g} % of the uses of {place}" for place, rate in rates.items()
        ]
        yield f"caption dropout: {', '.join(shares)}"


def _samples(section: DiffusionSection, family: ModelFamily) -> str:
    pictures = section.sample_pictures()
    if section.train.disable_sampling or not pictures or section.sample is None:
        return "samples: none"
    steps, guidance = steps_and_guidance(pictures[0], family)
    images = (
        f"1 image in {steps} steps"
        if len(pictures) == 1
        else f"{len(pictures)} images in {steps} steps each"
    )
    quoted = [
        repr(shorten(picture.prompt, 40, placeholder=" ..."))
        for picture in pictures[:MOST_PROMPTS]
    ]
    prompts = ", ".join(quoted)
    if len(pictures) > MOST_PROMPTS:
        prompts += f" and {len(pictures) - MOST_PROMPTS} more"
    return f"samples: {', '.join(_sample_times(section, section.sample))}; {images} at guidance {guidance:g}: {prompts}"


def _sample_times(section: DiffusionSection, sample: SampleConfig) -> Iterator[str]:
    """When sample images are generated."""
    if section.draws_first():
        yield "before step 1"
    steps, epochs = sample.interval()
    if steps:
        yield f"every {steps:,} steps"
    elif epochs:
        yield f"every {epochs:,} epochs"
    yield "at the end"


# ------------------------------------------------------------ several processes, and a
# resume


def data_parallel_notes(train: TrainConfig) -> Iterator[str]:
    """Lines on how the samples of a step are split over the ranks."""
    processes = read_distributed_env().world_size
    if processes == 1:
        return
    size = train.batch_size
    sharing = f"{processes} processes share the {train.gradient_accumulation} x {size} images of each step"
    # of one micro-batch
    pieces = min(splits_per_micro_batch(train.gradient_accumulation, processes), size)
    batches = train.gradient_accumulation * pieces
    per_process, left_over = divmod(batches, processes)
    if not per_process:
        idle = processes - batches
        yield f"{sharing}: {idle} are idle. A gradient_accumulation of {processes} gives each process one batch."
    elif left_over:
        yield f"{sharing}: some compute {per_process + 1} batches, the others {per_process}, and wait."
    else:
        uneven = f" or {size // pieces + 1}" if size % pieces else ""
        yield f"{sharing}: {per_process} x {size // pieces}{uneven} each"


def dataset_digest(section: DiffusionSection) -> str:
    """The hash of the dataset that a checkpoint records; empty where it cannot be read,
    and of a stream, whose settings say which it is."""
    if section.streamed:
        return ""
    try:
        scan, *_ = scan_and_split(
            section,
            family_for(section.model),
            ScanCache.beside(section.training_folder),
        )
        return digest_of(fingerprint(scan.samples))
    except (UserError, RunError):
        return ""
