"""The plan of an `sd_trainer` process: scans its datasets and counts. Imports no torch, writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from textwrap import shorten

from toolkit.config.sections.dataset import sides_of
from toolkit.config.sections.train import FEW_PAIRS, PreferenceConfig, TrainConfig
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.data import Size
from toolkit.contracts.network_kinds import KINDS
from toolkit.data.batches.image_data import ImageData, open_stream
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.fingerprint import digest_of, fingerprint
from toolkit.data.scan.from_base import not_made_yet
from toolkit.data.scan.items import sample_inputs, too_large
from toolkit.data.scan.validation_split import scan_and_split
from toolkit.errors import DataErrors, Diagnostic, RunError, UserError
from toolkit.files.writing import readable_size
from toolkit.flow.settings import describe_levels
from toolkit.memory.estimate import GB
from toolkit.models.families import (
    LARGE_MODEL_BLOCKS,
    ModelFamily,
    deployed_grid,
    family_for,
    model_bytes,
    title_of,
    unknown_family,
    yet_to_come,
)
from toolkit.models.recipes import RECIPES
from toolkit.networks.targets import select_target_modules, unused_choices
from toolkit.number_types import DTYPE_BYTES, QTYPE_ERRORS
from toolkit.optim.optimizer_args import state_note
from toolkit.plan.cards import Card, asked_card, assumed_card, card_here
from toolkit.plan.kept_model import kept_outlook
from toolkit.plan.memory import GPU_SIZES_GB, MemoryEstimate
from toolkit.plan.memory_inputs import BatchSizes, count_trainable_params, groups_of, num_shards
from toolkit.plan.memory_plan import plan_memory
from toolkit.plan.oom_hints import suggestions
from toolkit.plan.planning import Planner, times_in_run
from toolkit.plan.run_plan import SaveSize
from toolkit.plan.run_time import run_work, times_key
from toolkit.plan.step_time import RunTime
from toolkit.registry import hinted_tool
from toolkit.system.distributed_env import read_distributed_env
from toolkit.system.nvidia import ACCIDENTAL_CPU_LIMIT, gpu_name
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
    """The plan of a LoRA's training, or of the model itself."""

    @cached_property
    def family(self) -> ModelFamily:
        return family_for(self.section.model)

    @property
    def pixel_channels(self) -> int:
        return self.family.pixel_channels

    def without_model(self) -> Iterator[str]:
        return unknown_family(self.section.model)

    def scan(self) -> ImageData:
        cache = ScanCache.beside(self.section.training_folder)
        family, section, mistakes = self.family, self.section, list[Diagnostic]()
        found = scan_and_split(section, family, cache, self.trained_images)
        data = ImageData(*found, open_stream(section, family.size_multiple))
        # Sample prompts with too many control images, or one that cannot be used, or that are too long for the model,
        # where that can be checked already.
        for name, sample in (("sample", section.sample), ("first_sample", section.first_sample)):
            for index, item in enumerate(sample.sample_items() if sample else ()):
                place, size = f"{name}.samples[{index}]", Size(item.width, item.height)
                try:
                    references = sample_inputs(place, item, family)
                except DataErrors as error:
                    mistakes += error.errors
                    continue
                if reason := too_large(family.drawable(size), family):
                    mistakes.append(Diagnostic((place,), reason))
                for key, text in (("prompt", item.prompt), ("neg", item.neg or "")):
                    is_sure = len(text) <= family.sure_prompt
                    if not is_sure and (message := family.prompt_error(section.model, text, size, references)):
                        mistakes.append(Diagnostic((f"{place}.{key}",), f"has {message}"))
        if (preference := section.train.preference) and not data.stream:
            mistakes += self._unpaired(data, preference)
        if mistakes:
            raise DataErrors(mistakes)
        return data

    def _unpaired(self, data: ImageData, preference: PreferenceConfig) -> Iterator[Diagnostic]:
        """No pairs at all; with a sharded model, whose ranks have to make as many passes as each other, images of
        which there is none."""
        alone = [sample.image for sample in data.scan.samples if not sample.worse]
        if not data.scan.pairs:
            message = "no image has a worse one. Give a table with the columns 'better', 'worse' and 'prompt'"
            yield Diagnostic(("train.preference",), f"{message} as captions_file of a dataset")
        elif alone and num_shards(self.section.train) > 1:
            message = (
                f"{len(alone):,} of the images, such as {alone[0]}, have no worse one, which 'train.parallel: fsdp'"
            )
            yield Diagnostic(("train.preference",), f"{message} needs for each. Remove them, or use 'parallel: ddp'")
        elif preference.share < 1 and num_shards(self.section.train) > 1:
            message = "is below 1: processes would make different passes, which 'train.parallel: fsdp' does not allow"
            yield Diagnostic(("train.preference.share",), f"{message}. Leave it out, or use 'parallel: ddp'")

    # ------------------------------------------------------------ memory and disk

    def memory(self, data: ImageData) -> MemoryEstimate | None:
        if self.job.yet_to_come(self.section.model.folder()):
            return None
        compiled = False if self.against_compiling else None
        return plan_memory(self.section, groups_of(self.section, data), self.machine, compiled=compiled)

    def savings(self) -> Iterable[str]:
        return [change.text for change in suggestions(self.section)]

    def save_size(self) -> SaveSize:
        section = self.section
        trained = count_trainable_params(section)
        state = 0 if section.save.states == "never" else trained.state_bytes(section.train)
        return SaveSize(trained.written * DTYPE_BYTES[section.save.dtype], state)

    def run_time(self, data: ImageData, steps: int) -> RunTime | None:
        section, machine = self.section, self.machine
        if self.job.yet_to_come(section.model.folder()):
            return None
        groups = groups_of(section, data)
        gpu = gpu_name(section.device) if machine.kind == "cuda" else ""
        card = self._card(data, gpu)
        if card and (self.job.card or machine.limit is None):
            machine = replace(machine, limit=card.memory_gb * GB)
        often = times_in_run(section.train, data, steps)
        memory = plan_memory(section, groups, machine)
        unmade = [sample.made for sample in not_made_yet(data.items).values() if sample.made]
        work = run_work(section, groups, steps, often, memory, self.save_size(), unmade)
        if work is None:
            return None
        no_card = f"{gpu} is not in the table of cards" if gpu and card is None else ""
        if self.job.card and machine.kind != "cuda":
            no_card = f"this job runs on 'device: {section.device}', so --card has no effect"
        if card and section.train.dtype == "float32":
            card, no_card = None, "the table of cards has no rate of float32"
        return RunTime(work, card, gpu, times_key(section, groups, gpu), bool(self.job.card), no_card)

    def _card(self, data: ImageData, gpu: str) -> Card | None:
        """The card that the time is calculated for: the one that `--card` asks for, the one here, or, for a model that
        needs one where there is none, a well-known one that the job fits. gpu: the driver's name of the one here."""
        if self.machine.kind != "cuda":
            return None
        if self.job.card:
            return asked_card(self.job.card)
        if gpu:
            return card_here(gpu)
        if model_bytes(self.section.model) <= ACCIDENTAL_CPU_LIMIT:  # trained on the CPU
            return None
        memory = self.memory(data)
        return assumed_card((memory and memory.card()) or GPU_SIZES_GB[-1])

    def describe_memory(self, data: ImageData, memory: MemoryEstimate) -> Iterator[str]:
        section, size = self.section, self.save_size()
        trained, network, quantized = count_trainable_params(section), section.network, section.model.quantize
        yield from super().describe_memory(data, memory)
        yield from filter(None, [state_note(section.train.optimizer, section.train.optimizer_params, trained.shapes)])
        folder = section.model.files_folder()
        names = self.family.modules(folder) if network.trains_model else self.family.linear_layers(folder)
        yield from unused_choices(network, list(names))
        yield (
            f"{network.type} {network.size()} on {len(trained.layers)} layers: "
            f"{trained.weights:,} trainable parameters; each {'folder' if section.saves_folders else 'file'} "
            f"{readable_size(size.file)}{_ON_DISK[section.save.states].format(readable_size(size.state))}"
            + (f"; the model's own weights in {section.model.qtype}" if quantized else "")
        )

    # ------------------------------------------------------------ notes

    def describe_model(self, data: ImageData) -> Iterator[str]:
        """What is done with the model and with the images, where a user may not expect it."""
        yield from yet_to_come(self.section.model, self.job)
        if terms := self.family.terms:
            kept = f'what is published of this training has to display "{terms.display}" and come with a notice'
            tool = hinted_tool("publication")
            by_hand = f", which {COMMAND} {tool} writes" if tool else ""
            yield f"licence: {kept}{by_hand} ({terms.link})"
        if not read_distributed_env().is_single_process:
            yield from data_parallel_notes(self.section.train)
        yield from self._made(data)
        yield from self._inputs(data)
        yield from self._passes(data)
        yield from self._weights()
        yield from self._adapter()
        yield from settings_lines(self.section, self.family)
        if data.scan.pairs or self.section.train.preference:
            yield from self._pairs(data)

    def _made(self, data: ImageData) -> Iterator[str]:
        """How many images the base model has still to make, and where all of them are."""
        made = {sample.image: sample.made for sample in data.scan.samples if sample.made}
        if not made:
            return
        missing, first = len(not_made_yet(data.items)), next(iter(made.values()))
        guidance = f" at guidance {first.guidance_scale:g}" if first.guidance_scale > 1 else ""
        how = f"{missing:,} of {len(made):,} are generated before step 1, in {first.steps} steps{guidance} each"
        if not missing:
            how = f"all {len(made):,} are there"
        where = Path(next(iter(made))).parent if first.base else "the cache"
        yield f"images of the base model (from_base): {how}; in {where}"

    def _pairs(self, data: ImageData) -> Iterator[str]:
        """What is done with pairs of a better and a worse image; warnings of few, and of those that nothing uses."""
        preference = self.section.train.preference
        count, images = data.scan.pairs, sum(bool(sample.worse) for sample in data.scan.samples)
        if count and not preference:
            yield f"warning: the worse images of {count:,} pairs are not used. Set train.preference to learn from them"
        if not preference:
            return
        beside = f" with {Path(preference.reference).name}" if preference.reference else ""
        some = f", in {preference.share:.0%} of the micro-batches" if preference.share < 1 else ""
        yield (
            f"train.preference: {count:,} pairs of {images:,} better images; beta {preference.beta:g} against the model"
            f"{beside or ' alone'}{some}. A pair takes two passes of two images, one of them without gradients"
        )
        if count < FEW_PAIRS:
            yield (
                f"warning: {count} pairs: below {FEW_PAIRS} a run learns these images rather than what the better ones "
                "have in common. Vote on more"
            )

    def _inputs(self, data: ImageData) -> Iterator[str]:
        """Warnings of images and prompts with fewer references than the model was published with, and of captions and
        prompts whose end it does not get."""
        least, title = self.family.min_references, title_of(self.section.model, self.family)
        images = sum(len(sample.control_images) < least and not sample.layers for sample in data.scan.samples)
        samples = sum(len(picture.ctrl_img) < least for picture in self.section.sample_pictures())
        for count, what, key in ((images, "image", "control_path"), (samples, "sample prompt", "ctrl_img")):
            if count:
                has = f"{what}s have" if count > 1 else f"{what} has"
                yield f"warning: {count:,} {has} no control image, and {title} is made to edit one. Give {key}."
        captions = [(f"{each.image}: its caption has", text) for each in data.scan.samples for text in each.texts]
        prompts = [(f"sample: {shorten(one.prompt, 40)!r} has", one.prompt) for one in self.section.sample_pictures()]
        for texts in (captions, prompts):
            found = ((where, self.family.prompt_note(self.section.model, text)) for where, text in texts)
            if notes := [f"{where} {note}" for where, note in found if note]:
                yield f"warning: {notes[0]}" + (f" So have {len(notes) - 1} more." if len(notes) > 1 else "")

    def _passes(self, data: ImageData) -> Iterator[str]:
        """What several noise levels in one pass save; when a stream is encoded, and what is kept of it; what was
        understood of a `resolution` that is more than one number."""
        if self.family.shares_prefix and self.section.train.noise_levels_per_sample != 1:
            facts = self.family.footprint(self.section.model.files_folder())
            batches = BatchSizes(self.section, facts, groups_of(self.section, data))
            yield describe_levels(list(batches.noise_levels()))
        if stream := self.section.streamed:
            kept = ["latents"] if stream.cache_latents_to_disk else []
            kept += ["text embeddings"] if self.section.requested_text_cache(stream) else []
            where = f"; {' and '.join(kept)} are kept on the disk" if kept else ", at each use again"
            yield f"images and captions are encoded as they come{where}; VAE and text encoder stay loaded"
        multiple = self.family.size_multiple
        for dataset in self.section.datasets:
            if len(dataset.resolution) == 1 and isinstance(dataset.resolution[0], int):
                continue
            sizes = (
                f"up to {size} x {size} pixels of area, aspect ratio kept"
                if isinstance(size, int)
                else f"exactly {' x '.join(str(side // multiple * multiple) for side in sides_of(size))} pixels, the "
                "rest of each image cut off"
                for size in dataset.resolution
            )
            yield f"resolution of {dataset.place}: {'; '.join(sizes)}"

    def _weights(self) -> Iterator[str]:
        """The LoRA files that are active beside the network at times, those that are merged into the model, and what
        quantization costs."""
        if used := self.section.train.assistant:
            name, to_come = Path(used.file()).name, used.to_download()
            if to_come:
                yield f"train.assistant: {to_come} is not in the hub cache: the run downloads it first"
            yield f"train.assistant: {name} times {used.multiplier:g} is on in training, off in samples and validation"
        elif adapter := self._published_assistant():
            what = "LoRAs of this model may collapse into texture while the loss falls; others avoid it with"
            yield f"train.assistant: none. {what} {adapter} (docs/models.md)"
        if few := self.section.train.few_step_loss:
            since = f"after {few.start:.0%} of the steps, " if few.start else ""
            what = f"{few.share:.0%} of the micro-batches with {Path(few.lora).name}, at its {few.steps} noise levels"
            what += f"; the target is what the LoRA alone changes in {few.teacher_steps} steps for each of them"
            yield f"train.few_step_loss: {since}{what}"
        for way in self.section.deployments().values():
            beside = f" with {Path(way.model or way.lora).name}" if way.model or way.lora else ""
            where = "; its transformer waits in CPU memory" if way.model else ""
            yield (
                f"samples also in {deployed_grid(way)[0]} steps at CFG {way.cfg:g}{beside} ({way.label}){where}; "
                "the survival score needs each image once without the network too"
            )
        if decoder := self.section.decoder():
            yield f"sample.vae_path: samples are decoded with {decoder.name}; latents and training stay as they are"
        model = self.section.model
        for lora in model.base_loras:
            yield f"merged into the model before training: {lora.file_name()} times {lora.multiplier:g}"
        if not model.quantize:
            return
        kept = kept_outlook(self.section)
        if kept and kept.lack:
            yield f"warning: model.keep_quantized: the quantized model will not be kept: {kept.lack}"
        is_hopper = self.machine.kind == "cuda" and self.machine.capability in (None, 9)
        if is_hopper and model.qtype == "int8" and model.int8_matmul == "auto" and self.section.train.compile.enabled:
            yield "model.int8_matmul auto: off on compute capability 9.x (H100, H200) until it is measured there"
        if model.makes_recovery():
            yield f"{model.qtype}: an accuracy-recovery adapter is made for it, or taken from the cache"
        elif model.accuracy_recovery_adapter:
            covered = f"added to the frozen {model.qtype} model: {model.recovery_name()}"
            yield f"{covered}; layers it does not cover are int8"
        elif model.qtype in QTYPE_ERRORS:
            lost = f"{model.qtype}: each weight is off by {100 * QTYPE_ERRORS[model.qtype]:.2g} %"
            yield f"{lost}; an accuracy-recovery adapter for {model.qtype} ('{model.qtype}|file') corrects it"

    def _published_assistant(self) -> str:
        """The training adapter that is published for the model, where an adapter is trained on it at full size; empty:
        there is none."""
        recipe = RECIPES.get(title_of(self.section.model, self.family))
        if self.section.network.trains_model or not recipe or not recipe.adapters:
            return ""
        is_large = self.family.block_count(self.section.model.files_folder()) >= LARGE_MODEL_BLOCKS
        return recipe.adapters[0].name if is_large else ""

    def _adapter(self) -> Iterator[str]:
        """What is held of the base model, and what that costs; a warning where the rank is above that of whole
        weights."""
        train = self.section.train
        texts = {
            "diff_output_preservation": (
                f"captions with {train.diff_output_preservation_class!r} in place of the trigger word"
            ),
            "blank_prompt_preservation": "an empty prompt",
        }
        for name, factor in train.preservations().items():
            yield f"{name}: keeps the model's prediction for {texts[name]} unchanged (weight {factor:g})"
        if count := len(train.preservations()):
            yield f"that takes {2 * count} more predictions per micro-batch, {count} of them with a backward pass"
        network = self.section.network
        if not KINDS[network.type].up_names:  # of other kinds the rank is not that of a product of two matrices
            return
        layers = self.family.linear_layers(self.section.model.files_folder())
        chosen = [min(layers[name]) for name in select_target_modules(network, list(layers))]
        if count := sum(width < network.linear for width in chosen):
            yield (
                f"warning: network.linear {network.linear} exceeds the width of {count} of {len(chosen)} layers "
                f"(smallest: {min(chosen)}); the extra rank has no effect there"
            )


# ------------------------------------------------------------ lines on optimizer, noise levels, captions, samples


def settings_lines(section: DiffusionSection, family: ModelFamily) -> Iterator[str]:
    """Optimizer and schedule, noise levels, caption dropout, samples."""
    yield _optimizer(section.train)
    yield f"noise levels: {section.train.timestep_type}"
    yield from _dropout(section)
    yield _samples(section, family)


def _optimizer(train: TrainConfig) -> str:
    params = ", ".join(f"{name} {value}" for name, value in train.optimizer_params.items())
    schedule = [train.lr_scheduler]
    if train.lr_scheduler_params:
        schedule[0] += f" ({', '.join(f'{name} {value}' for name, value in train.lr_scheduler_params.items())})"
    if warmup := train.lr_warmup_steps:
        schedule.append(f"warm-up {warmup:.0%} of the steps" if warmup < 1 else f"warm-up {warmup:,.0f} steps")
    groups = [f"{group.label()} {group.rate(train.lr):g}" for group in train.lr_groups]
    rates = f"learning rate {train.lr:g}" + (f" ({', '.join(groups)})" if groups else "")
    clipping = f"clipping {train.max_grad_norm:g}" if train.max_grad_norm else "no clipping"
    return f"optimizer: {train.optimizer}{f' ({params})' if params else ''}, {rates}, {', '.join(schedule)}; {clipping}"


def _dropout(section: DiffusionSection) -> Iterator[str]:
    """One rate for all datasets, or each with its place."""
    rates = {dataset.place: dataset.caption_dropout_rate for dataset in section.datasets}
    if not any(rates.values()):
        return
    if len(set(rates.values())) == 1:
        yield f"caption dropout: {100 * next(iter(rates.values())):g} % of the uses train without caption"
    else:
        yield "caption dropout: " + ", ".join(
            f"{100 * rate:g} % of the uses of {place}" for place, rate in rates.items()
        )


def _samples(section: DiffusionSection, family: ModelFamily) -> str:
    pictures = section.sample_pictures()
    if section.train.disable_sampling or not pictures or section.sample is None:
        return "samples: none"
    steps, epochs = section.sample.interval()
    every = [f"every {steps:,} steps"] if steps else [f"every {epochs:,} epochs"] if epochs else []
    when = ["before step 1"] * section.draws_first() + every + ["at the end"]
    first = pictures[0]
    guidance = family.guidance if first.guidance_scale is None else first.guidance_scale
    images, each = ("1 image", "") if len(pictures) == 1 else (f"{len(pictures)} images", " each")
    how = f"{images} in {first.sample_steps or family.sample_steps} steps{each} at guidance {guidance:g}"
    quoted = ", ".join(repr(shorten(picture.prompt, 40, placeholder=" ...")) for picture in pictures[:MOST_PROMPTS])
    more = f" and {len(pictures) - MOST_PROMPTS} more" if len(pictures) > MOST_PROMPTS else ""
    return f"samples: {', '.join(when)}; {how}: {quoted}{more}"


# ------------------------------------------------------------ several processes, and a resume


def data_parallel_notes(train: TrainConfig) -> Iterator[str]:
    """How the samples of a step are split over the ranks."""
    processes, count, size = read_distributed_env().world_size, train.gradient_accumulation, train.batch_size
    if processes == 1:
        return
    what = f"{processes} processes share the {count} x {size} images of each step"
    cut = min(-(-processes // count), size)
    each = count * cut
    if each < processes:
        idle = processes - each
        yield f"{what}: {idle} are idle. A gradient_accumulation of {processes} gives each one batch."
    elif each % processes:
        yield f"{what}: some compute {each // processes + 1} batches, the others {each // processes}, and wait."
    else:
        uneven = f" or {size // cut + 1}" if size % cut else ""
        yield f"{what}: {each // processes} x {size // cut}{uneven} each"


def dataset_digest(section: DiffusionSection) -> str:
    """The hash of the dataset that a checkpoint records; empty where it cannot be read, and of a stream, whose settings
    say which it is."""
    if section.streamed:
        return ""
    try:
        scan, *_ = scan_and_split(section, family_for(section.model), ScanCache.beside(section.training_folder))
        return digest_of(fingerprint(scan.samples))
    except (UserError, RunError):
        return ""
