"""The plan of every trainer's run, and what every start refuses: too little memory, too
little disk, a folder in which the job cannot continue. Imports no torch.

`Planner` makes the plan of a trainer on images; a dry run and the start of the run ask
the same object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, Generic, TypeVar

from toolkit.config.reading.process import JobContext
from toolkit.config.sections.dataset import LOSS
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.train import (
    LEAST_IMAGES,
    LEAST_LATER,
    MAX_STEPS,
    UNTIL_THE_DATA_ENDS,
    OptimizationConfig,
    TrainConfig,
)
from toolkit.config.sections.trainer import (
    DiffusionSection,
    ImageTrainingSection,
    TrainerConfig,
)
from toolkit.contracts.data import BucketedSample
from toolkit.data.batches.image_data import ImageData
from toolkit.data.scan.captions import prompt_warnings
from toolkit.data.scan.fingerprint import DatasetHashes
from toolkit.data.scan.words import word_findings
from toolkit.data.streams.counts import optimizer_steps
from toolkit.errors import RunError, UserError
from toolkit.files.writing import free_space
from toolkit.memory.kept_times import compile_seconds, run_times
from toolkit.optim.schedules import (
    ScheduleArgs,
    course_note,
    course_of,
    early_end,
)
from toolkit.plan.kept_model import kept_outlook
from toolkit.plan.memory import Machine, MemoryEstimate, machine_from_config
from toolkit.plan.oom_hints import MemorySaving, advice_line, why_too_large
from toolkit.plan.outlook import (
    DAMAGED,
    DiskOutlook,
    ModelOutlook,
    Outlook,
    StartOutlook,
    TimeOutlook,
)
from toolkit.plan.run_plan import RunPlan, SaveSize, batch_note, folder_plans
from toolkit.plan.step_time import COMPILE_S, RunTime
from toolkit.rounding import ceil_divide
from toolkit.system.nvidia import (
    compiling_note,
    cpu_instead_here,
    has_no_gpu,
    why_no_device_here,
)
from toolkit.train.checkpoint_store import check_writable, checkpoint_dir, step_of
from toolkit.train.lock import read_lock, why_locked
from toolkit.train.resumption import Start, begins_again, plan_start, trained_images
from toolkit.train.run_reader import list_checkpoints, list_network_files

SectionT = TypeVar("SectionT", bound=Any)
"""Both an ImageTrainingSection and a TrainerConfig."""


class Planner(ABC, Generic[SectionT]):
    """Plans the run of a trainer on images. A trainer's own planner says what is
    particular to it.

    Example::

        planner = SdPlanner(section, job, machine_of(section.device))
        data = planner.scan()
        plan = planner.plan(data)
    """

    def __init__(
        self, section: SectionT, job: JobContext, machine: Machine | None = None
    ) -> None:
        """machine: where the run computes; by default what `device` says without
        torch."""
        self.section = section
        self.job = job
        self.here = machine or machine_from_config(section.device)
        self.machine = self.here
        """The machine that the plan is about: the one here, or that of `--card`."""
        self.against_compiling = ""
        """As `RunPlan.against_compiling`; known before `memory` is asked."""

    def trained_images(self) -> DatasetHashes:
        """Hashes of the images that the run has trained on; empty for a new one."""
        folder = self.section.run_folder(self.job)
        return (
            {} if self.job.begins_anew else trained_images(folder, self.section.resume)
        )

    # ------------------------------------------------------------ what a trainer says

    @abstractmethod
    def scan(self) -> ImageData:
        """Finds the images. Raises DataErrors naming every offending file."""

    @abstractmethod
    def describe_model(self, data: ImageData) -> Iterator[str]:
        """Lines on what is made, from what, and what is trained with which
        optimizer."""

    @abstractmethod
    def memory(self, data: ImageData) -> MemoryEstimate | None:
        """The memory estimate; None where the model is not there to be measured."""

    def describe_memory(self, data: ImageData, memory: MemoryEstimate) -> Iterator[str]:
        """Lines on the memory: the peak, what the numbers include, what to change where
        it is too little."""
        yield self._memory_line(memory)
        yield from memory.notes
        if line := advice_line(
            memory, self.machine, lambda: [saving.text for saving in self.savings()]
        ):
            yield line

    def _memory_line(self, memory: MemoryEstimate, brief: bool = False) -> str:
        is_elsewhere = memory.on_device and has_no_gpu()
        elsewhere = "a GPU, which is not available here" if is_elsewhere else "the GPU"
        return memory.render(self.machine.asked or elsewhere, self.machine.limit, brief)

    def savings(self) -> Iterable[MemorySaving]:
        """Changes of the job that save memory, in the order in which they are worth
        trying."""
        return ()

    @property
    def pixel_channels(self) -> int:
        """Channels of the model's images, as of `ModelFacts`."""
        return 3

    def save_size(self) -> SaveSize | None:
        """The disk space of one save; None: not known."""
        return None

    def run_time(self, data: ImageData, steps: int) -> RunTime | None:
        """The record from which the time of so many optimizer steps follows; None: not
        known."""
        return None

    def length_notes(self, steps: int) -> Iterator[str]:
        """Warnings of settings that a run of so many optimizer steps is too short for:
        `stop_when` may average over more steps."""
        stop = self.section.stop_when
        if (
            stop
            and stop.below is not None
            and not stop.metric.startswith(LOSS)
            and stop.smooth > steps
        ):
            mean = f"its mean is over {stop.smooth:,} steps (stop_when.smooth)"
            yield f"warning: stop_when has no effect: {mean}, and the run has {steps:,}"

    def without_model(self) -> Iterator[str]:
        """The lines of a plan whose images cannot be counted, because an earlier
        process of the job writes the model; nothing where they can."""
        return iter(())

    # ------------------------------------------------------------ the plan

    def plan(self, data: ImageData) -> RunPlan:
        """The plan once the datasets are scanned."""
        section, train = self.section, self.section.train
        steps = data.optimizer_steps(train)
        time = self.run_time(data, steps)
        self.against_compiling = self._why_not_compiled(time, steps)
        memory = self.memory(data)
        return RunPlan(
            type=section.type,
            name=section.display_name(self.job),
            datasets=folder_plans(data.scan.folders, data.items),
            samples_per_epoch=data.samples,
            micro_batches_per_epoch=data.micro_batches(train.batch_size),
            optimizer_steps=steps,
            accumulation=train.gradient_accumulation,
            requested_epochs=train.epochs,
            first_caption=first_caption(data) if section.reads_captions else "",
            fits=self._memory_line(memory, brief=True) if memory else "",
            notes=tuple(self._notes(data, memory, steps)),
            memory=memory,
            savings=tuple(filter(None, (one.changes for one in self.savings()))),
            save_size=self.save_size() if memory else None,
            time=time if memory else None,
            against_compiling=self.against_compiling,
            stream=data.stream.plan() if data.stream else None,
        )

    def _notes(
        self, data: ImageData, memory: MemoryEstimate | None, steps: int
    ) -> Iterator[str]:
        """The lines of the plan after its arithmetic."""
        section, train = self.section, self.section.train
        yield from self.describe_model(data)
        if self.section.reads_captions:
            if caption := first_caption(data):
                yield f"first caption, as it is trained: {caption}"
        yield from data.scan.notes
        yield from alpha_notes(data, self.pixel_channels)
        yield from colour_notes(data)
        if half_empty := batch_note(data.items, train.batch_size):
            yield half_empty
        pictures = (
            section.sample_pictures() if hasattr(section, "sample_pictures") else ()
        )
        prompts = [picture.prompt for picture in pictures]
        yield from prompt_warnings(prompts, section.trigger_words())
        controls = [sample.control_images for sample in data.scan.samples]
        if (
            prompts
            and controls
            and all(controls)
            and not any(picture.ctrl_img for picture in pictures)
        ):
            yield (
                "warning: sample: all images have control images, and no prompt has one, so that each sample is drawn "
                f"from words alone. Write '{prompts[0]} --ctrl_img {controls[0][0]}'"
            )
        if self.section.reads_captions:
            samples = [
                sample
                for folder in data.scan.folders
                if not folder.is_reg
                for sample in folder.samples
            ]
            for found in word_findings(samples, prompts, section.trigger_word):
                yield f"warning: captions: {found.message}"
        if data.split:
            yield from data.split.notes
        if memory:
            yield from self.describe_memory(data, memory)
        yield from self._compile_notes()
        yield from self._schedule_notes(steps)
        yield from self.length_notes(steps)
        if section.stop_when:
            yield from evidence_notes(section, data.held_out, steps)

    def _compiles_by_choice(self) -> bool:
        """Whether `train.compile: auto` decides."""
        train = self.section.train
        return (
            isinstance(train, TrainConfig)
            and train.compile.enabled == "auto"
            and train.parallel != "fsdp"
        )

    def _why_not_compiled(self, time: RunTime | None, steps: int) -> str:
        """Why `train.compile: auto` does not compile here, as far as that is known
        without torch; empty: it may."""
        if not self._compiles_by_choice():
            return ""
        reason: str = self.section.train.against_compiling()
        if reason or time is None or time.card is None:
            return reason
        if not (time.is_asked or time.gpu):
            return ""
        known = None if time.is_asked else compile_seconds(time.gpu)
        compile_s = known or COMPILE_S[time.work.level]
        return time.work.step.against_compiling(time.card, steps, compile_s)

    def _compile_notes(self) -> Iterator[str]:
        if self.against_compiling:
            yield f"train.compile auto: the blocks are not compiled: {self.against_compiling}"
        elif self._compiles_by_choice() and self.machine.kind == "cuda":
            if note := compiling_note():
                yield note

    def dry_run(self) -> RunPlan:
        """The plan with the outlook of a start, where both are known already."""
        section = self.section
        if lines := tuple(self.without_model()):
            return self._uncounted(lines)
        data = self.scan()
        plan = self.plan(data)
        model = section.model if isinstance(section.model, ModelConfig) else None
        no_device = "" if model else why_no_device_here(section.device, 0)
        lacks = why_not_started(section, section.run_folder(self.job), plan, self.here)
        # the prefix is for the error of a start
        reasons = [no_device, *(lack.removeprefix("memory: ") for lack in lacks)]
        needed_bytes = disk_bytes(section, plan)
        outlook = run_outlook(
            section,
            self.job,
            plan,
            data.hashes,
            needed_bytes,
            model,
            tuple(filter(None, reasons)),
        )
        on_cpu = "" if outlook.will_not_start else cpu_instead_here(section.device)
        said = (f"warning: {on_cpu}",) if on_cpu else ()
        return replace(plan, outlook=outlook, notes=plan.notes + said)

    def _uncounted(self, lines: tuple[str, ...]) -> RunPlan:
        """The plan of a process whose images cannot be counted yet. lines: the
        reasons."""
        section = self.section
        outlook = None
        if isinstance(section.model, ModelConfig):
            model = ModelOutlook.of(section.model, self.job)
            outlook = Outlook(
                model,
                will_not_start=tuple(
                    model.why_not_loaded(section.device, section.model)
                ),
            )
        name = section.display_name(self.job)
        return RunPlan(
            section.type,
            name,
            (),
            0,
            0,
            section.train.steps,
            notes=lines,
            outlook=outlook,
        )

    def _schedule_notes(self, steps: int) -> Iterator[str]:
        """Warnings where warm-up and decay of an optimizer's schedule do not fit into
        the run, and of a rate that rises or comes to nothing early; once where they are
        the same."""
        optimizers = list(self.section.optimizers_used())
        keys_by_line: dict[str, list[str]] = {}
        for key, settings in optimizers:
            scheduler = settings.lr_scheduler
            params = settings.lr_scheduler_params
            if scheduler == "constant" and not (params or settings.lr_warmup_steps):
                continue
            fields = ScheduleArgs.named_in(settings)
            note = course_note(scheduler, course_of(steps, params=params, **fields))
            for line in filter(
                None, (note, early_end(scheduler, steps, params, **fields))
            ):
                keys_by_line.setdefault(line, []).append(key.rpartition(".")[2])
        for line, keys in keys_by_line.items():
            if len(keys) < len(optimizers):
                line += f" ({', '.join(keys)})"
            yield f"warning: {line}"


# ------------------------------------------------------------ what a start would do


def run_outlook(
    section: TrainerConfig,
    job: JobContext,
    plan: RunPlan,
    dataset_hashes: Callable[[], DatasetHashes],
    needed_bytes: int | None = None,
    model: ModelConfig | None = None,
    will_not_start: tuple[str, ...] = (),
) -> Outlook:
    """The outlook of a trainer's run.

    dataset_hashes: as for `plan_start`. needed_bytes: of all states and files that are
    on the disk at once. will_not_start: further reasons not to start.
    """
    folder = section.run_folder(job)
    steps = plan.optimizer_steps
    start = _start(folder, section, job, steps, dataset_hashes)
    models = ModelOutlook.of(model, job) if model else None
    if start.what == "complete":  # a run that has nothing to do needs nothing
        will_not_start = ()
    else:
        of_model = (
            tuple(models.why_not_loaded(section.device, model))
            if models and model
            else ()
        )
        will_not_start = (*filter(None, [start.reason]), *of_model, *will_not_start)
    disk = None
    if needed_bytes is not None:
        there_bytes = sum(state.size for state in list_checkpoints(folder))
        there_bytes += sum(file.size for file in list_network_files(folder))
        kept_model = (
            kept_outlook(section) if isinstance(section, DiffusionSection) else None
        )
        kept_bytes = kept_model.bytes if kept_model and not kept_model.lack else 0
        disk = DiskOutlook(
            needed_bytes, min(needed_bytes, there_bytes), free_space(folder), kept_bytes
        )
    time, no_time = time_left(section, plan, start.step)
    if not plan.time and job.card:
        no_time = (
            "no time on a card is calculated for such a job, so --card has no effect"
        )
    return Outlook(models, steps, disk, time, start, will_not_start, no_time)


def time_left(
    section: TrainerConfig, plan: RunPlan, done: int
) -> tuple[TimeOutlook | None, str]:
    """`time_outlook` of a planned run of which so many optimizer steps are done; (None,
    "") where the plan has no time."""
    if not plan.time:
        return None, ""
    compile = getattr(section.train, "compile", None)
    compiled = (
        compile is not None and bool(compile.enabled) and not plan.against_compiling
    )
    return time_outlook(plan.time, section.training_folder, done, compiled)


GROWS = ("steps", "samples", "validation", "saving")
"""Parts of a run whose time after a resume is in proportion to the steps that are
left."""


def time_outlook(
    time: RunTime, training_folder: str, done: int, compiled: bool
) -> tuple[TimeOutlook | None, str]:
    """How long the rest of a run takes; where that is not known None, and why, if there
    is a reason to say.

    done: optimizer steps that are done. compiled: whether the blocks are.
    """
    work = time.work
    card = time.card
    measured = None if time.is_asked else run_times(training_folder, time.key)
    if measured is None and card is None:
        return None, time.no_card
    step_s = 0.0
    parts: dict[str, float] = {}
    called = time.gpu or "this CPU"
    if card:
        step_s = work.step.seconds(card, compiled)
        parts |= work.parts(
            card, compiled, None if time.is_asked else compile_seconds(time.gpu)
        )
    if measured:
        step_s = measured.step_s
        parts["steps"] = work.steps * measured.step_s
        if measured.picture_s:
            parts["samples"] = work.pictures * measured.picture_s
    elif card:
        called = card.called
    left = max(0, work.steps - done)
    share = left / work.steps if work.steps else 0.0
    for name in GROWS:
        if name in parts:
            parts[name] *= share
    return TimeOutlook(
        left,
        step_s,
        sum(parts.values()),
        called,
        bool(measured),
        parts,
        assumed=not (measured or time.gpu or time.is_asked),
        arrival=work.step.arrival(card) if card else "",
        faster=work.faster_level(card, compiled) if card else "",
    ), ""


def _start(
    folder: Path,
    section: TrainerConfig,
    job: JobContext,
    steps: int,
    dataset_hashes: Callable[[], DatasetHashes],
) -> StartOutlook:
    """The start as the run decides it, except that only the sizes of a state's files
    are compared, not their hashes."""
    lock = read_lock(folder)
    if lock.held:
        return StartOutlook(folder, "refused", reason=why_locked(folder, lock.owner))
    try:
        check_writable(checkpoint_dir(folder))
        start = (
            Start(None, moves_aside=True)
            if job.begins_anew
            else plan_start(
                folder,
                section,
                steps,
                dataset_hashes,
                job.restart,
                job.allow_change,
                by_hash=False,
            )
        )
    except (UserError, RunError) as error:
        return StartOutlook(folder, "refused", reason=str(error))
    except DAMAGED as error:
        return StartOutlook(
            folder, "refused", reason=f"{folder}: a state cannot be read ({error})."
        )
    outlook = partial(
        StartOutlook,
        folder,
        new_place=start.new_place,
        new_dataset_place=start.new_dataset_place,
    )
    if start.complete_at is not None:
        return outlook("complete", start.complete_at)
    if start.checkpoint:
        return outlook("resumes", step_of(start.checkpoint))
    if start.moves_aside:
        there = folder.is_dir() and any(folder.iterdir())
        return StartOutlook(folder, "new", moves_aside=there)
    lora = isinstance(section, DiffusionSection) and not section.network.trains_model
    return StartOutlook(folder, "new", again=begins_again(folder, lora))


# ------------------------------------------------------------ what a start refuses


def why_not_started(
    section: TrainerConfig, folder: Path, plan: RunPlan, machine: Machine
) -> Iterator[str]:
    """Why a run of this plan does not start, most important first: the memory, then the
    disk. Nothing where it may start. folder: of the run."""
    if plan.memory:
        if lack := why_too_large(section, machine, plan.memory):
            yield f"memory: {lack}"
    try:
        if plan.save_size:
            plan.save_size.check(folder)
    except UserError as error:
        yield str(error)


def times_in_run(
    train: OptimizationConfig, data: ImageData, steps: int
) -> Callable[[tuple[int, float]], int]:
    """A function from an interval in (steps, epochs) to how often it comes in a run of
    so many optimizer steps, the end included.

    It returns 1, the end alone, for an interval of 0 steps and 0 epochs.
    """
    micro_batches = data.micro_batches(train.batch_size)

    def often(interval: tuple[int, float]) -> int:
        every = optimizer_steps(
            int(interval[0]), interval[1], micro_batches, train.gradient_accumulation
        )
        return ceil_divide(steps, every) if every else 1

    return often


def disk_bytes(section: TrainerConfig, plan: RunPlan) -> int | None:
    """Bytes of all states and files that are on the disk at once; None: not known.

    It includes the final files, the best file of a validation, the raw files next to
    the EMA's, and the state that is written before an older one is removed.
    """
    if plan.save_size is None or (
        isinstance(section, ImageTrainingSection) and section.unknown_steps()
    ):
        return None
    save = section.save
    steps = plan.optimizer_steps
    train = section.train
    every = optimizer_steps(
        *save.interval(), plan.micro_batches_per_epoch, train.gradient_accumulation
    )
    saves = steps // every if every else 0
    files = min(saves, save.files_to_keep() or saves) + 1
    if section.validation:
        files += 1  # the best one
    if "raw" in getattr(save, "also", ()) and train.ema_config.use_ema:
        files *= 2
    states = {"always": saves, "at_end": 1, "never": 0}[save.states]
    if save.states == "always" and not (every and steps % every == 0):
        states += 1  # at the end
    if save.max_states_to_keep:
        # a state is written before an older one is removed
        states = min(states, save.max_states_to_keep + 1)
    return files * plan.save_size.file + states * plan.save_size.state


# ------------------------------------------------------------ notes of a plan


def first_caption(data: ImageData) -> str:
    """The first caption as it is trained, with prefix, trigger word and default, and
    its image; empty: no image has one."""
    samples = (sample for folder in data.scan.folders for sample in folder.samples)
    first = next((sample for sample in samples if sample.caption), None)
    if first is None:
        return ""
    return f"{shorten(first.caption, 120, placeholder=' ...')!r} ({first.name})"


def alpha_notes(data: ImageData, channels: int) -> Iterator[str]:
    """How many images have an alpha channel, and how it is used. channels: of the
    model's images."""
    count = sum(folder.with_alpha for folder in data.scan.folders)
    if not count:
        return
    if channels != 4:
        outcome = "laid over white, or datasets[].background"
    elif any(
        sample.layers for folder in data.scan.folders for sample in folder.samples[:1]
    ):
        outcome = "trained with it"
    else:
        outcome = "trained with it, unless datasets[].background is given"
    subject = "1 image has" if count == 1 else f"{count:,} images have"
    yield f"{subject} an alpha channel: {outcome}"


_NAMED_COLOURS = 5


def colour_notes(data: ImageData) -> Iterator[str]:
    """How many images are converted to sRGB, and from what, the most frequent first."""
    counts = Counter(image.colours for image in data.scan.converted).most_common()
    if not counts:
        return
    (name, first), *others = counts
    parts = [f"{first:,} {'images' if first > 1 else 'image'} converted from {name}"]
    parts += [f"{count:,} from {name}" for name, count in others[: _NAMED_COLOURS - 1]]
    if rest := sum(count for _, count in others[_NAMED_COLOURS - 1 :]):
        parts.append(f"{rest:,} from others")
    yield f"{', '.join(parts)} to sRGB"


def evidence_notes(
    section: TrainerConfig, held_out: Iterable[BucketedSample], steps: int
) -> Iterator[str]:
    """Warnings where `stop_when` without `below` can never end the run."""
    stop = section.stop_when
    validation = section.validation
    if stop is None or stop.below is not None or validation is None:
        return
    never = "warning: stop_when will never stop this run:"
    images = len({item.sample.image for item in held_out})
    if images < LEAST_IMAGES:
        yield f"{never} it needs {LEAST_IMAGES} validation images or more, and there are {images}"
    every = validation.every or MAX_STEPS
    if steps == UNTIL_THE_DATA_ENDS:
        yield f"{never} its number of steps is not known. Set 'train.steps'"
    elif (steps - 1) // every < LEAST_LATER:
        yield (
            f"{never} it needs {LEAST_LATER} validations after the best one and before the end, and there are "
            f"{(steps - 1) // every} in all. Lower 'validation.every'"
        )
