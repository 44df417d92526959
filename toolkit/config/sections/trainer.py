"""The parts that the section of a process is composed of, and `DiffusionSection`, all
of them together.

Training and caching share `DiffusionSection`, so that a user can copy a job and change
only its `type`. A trainer of something else takes `TrainerConfig` and what it needs of
the others. Their tables (`foreign`, `on_resume`) add up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, SerializeAsAny

from toolkit.config.reading.field_types import (
    WritePathStr,
    path_hint,
    seed_reader,
    value_error,
)
from toolkit.config.reading.findings import Findings, check_path, error, warning
from toolkit.config.reading.process import CallbackConfig, JobContext, ProcessConfig
from toolkit.config.sections.dataset import LOSS, DatasetConfig, ValidationConfig
from toolkit.config.sections.lora_beside import ASSISTANT, OF_SAMPLES, LoraBeside
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.network import NetworkConfig
from toolkit.config.sections.output import (
    LoggingConfig,
    SampleConfig,
    SampleIntervalConfig,
    SamplePicture,
    SaveConfig,
    SaveIntervalConfig,
)
from toolkit.config.sections.train import (
    OptimizationConfig,
    OptimizerConfig,
    StopWhenConfig,
    TrainConfig,
)
from toolkit.errors import did_you_mean
from toolkit.files.run_files import GRAPH
from toolkit.files.writing import file_in_the_way, sha256_of

_DEVICE = r"(?:cuda(?::\d+)?|cpu|mps|auto)"


def _device_number(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        raise value_error(f"{value} is not a valid device. Write 'cuda:{value}'.")
    return value


def _device(value: str) -> str:
    device = value.strip().lower()
    if not re.fullmatch(_DEVICE, device):
        number = re.fullmatch(r"(?:cuda|gpu|nvidia)[ _:-]?(\d{0,2})", device)
        meant = (
            f"'cuda:{number[1]}'".replace(":'", "'")
            if number
            else "'auto', 'cuda', 'cuda:0' or 'cpu'"
        )
        raise value_error(f"{value!r} is not a valid device. Write {meant}.")
    return device


Device = Annotated[
    str,
    BeforeValidator(_device_number, json_schema_input_type=str),
    AfterValidator(_device),
]
"""auto, cuda, cuda:N, mps or cpu."""


def _resume(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, int) and value < 0):
        raise value_error(
            f"{value!r} is not a step. Write 'auto', 'never', a step number or the path of a state folder."
        )
    if isinstance(value, str) and value.isdigit():
        return int(value)
    if (
        isinstance(value, str)
        and value not in ("auto", "never")
        and "/" not in value
        and "\\" not in value
    ):
        raise value_error(
            f"{value!r} is none of these. Write 'auto', 'never', a step number or the path of a state folder."
        )
    return value


NO_TRIGGER = frozenset(
    ("no", "none", "off", "false", "yes", "on", "true", "null", "-", "trigger", "name")
)
"""Words by which people say that there is a trigger word, or none; and what stands for
it in captions."""


class DatasetsSection(ProcessConfig):
    """Images with captions.

    Example::

        for dataset in section.datasets:
            print(dataset.folder_path, dataset.trigger_word or section.trigger_word)
    """

    trigger_word: str = ""
    """Replaces `[trigger]` in captions and prompts; prepended to captions that do not
    contain it."""

    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    """Folders of images, at least one; or one stream of shards."""

    common_words: ClassVar = {
        **dict.fromkeys(
            (
                "activation_text",
                "trigger",
                "token",
                "instance_token",
                "activation_word",
            ),
            "trigger_word",
        ),
    }

    reads_streams: ClassVar[bool] = False
    """Whether the process can be given a stream of shards instead of folders."""

    reads_captions: ClassVar[bool] = True
    """Whether captions are part of what is learned."""

    def trigger_words(self) -> tuple[str, ...]:
        """The distinct trigger words: the word of the process, then the words of its
        datasets."""
        words = (
            self.trigger_word,
            *(dataset.trigger_word for dataset in self.datasets),
        )
        return tuple(dict.fromkeys(word for word in words if word))

    @property
    def streamed(self) -> DatasetConfig | None:
        """The dataset that is a stream of shards (it has a `url`); None for folders."""
        return next((dataset for dataset in self.datasets if dataset.url), None)

    def datasets_to_come(self, job: JobContext) -> tuple[str, ...]:
        """Folders of images that are not there yet and that earlier processes of the
        job write."""
        folders = [
            path
            for dataset in self.datasets
            for path in (dataset.folder_path, *dataset.control_path)
        ]
        return tuple(filter(job.yet_to_come, folders))

    def check(self, job: JobContext) -> Findings:
        """Streams that this process cannot read, trigger words that are meant as
        none."""
        yield from super().check(job)
        words = {"trigger_word": self.trigger_word}
        entries = [
            dataset.model_dump(exclude={"num_repeats"})
            | {"folder_path": os.path.realpath(dataset.folder_path)}
            for dataset in self.datasets
        ]
        for index, dataset in enumerate(self.datasets):
            words[f"datasets.{index}.trigger_word"] = dataset.trigger_word or ""
            if dataset.folder_path and entries[index] in entries[:index]:
                yield warning(
                    f"datasets.{index}.folder_path",
                    "is given twice, so each of its images counts double. Remove one, or give 'num_repeats: 2'.",
                )
        for key, word in words.items():
            if word.lower().strip(" []{}<>()") in NO_TRIGGER:
                message = f"is read as the word {word!r}, which is put in front of each caption."
                yield warning(key, f'{message} For no trigger word write "".')
            elif word != (bare := word.strip()):
                message = f"{word!r} begins or ends with a space, so that captions with {bare!r} get it twice."
                yield warning(key, f"{message} Write {bare!r}.")
        for index, dataset in enumerate(self.datasets):
            if dataset.url and not self.reads_streams:
                yield error(
                    f"datasets.{index}.url",
                    f"'type: {self.type}' reads folders only. Give 'folder_path'.",
                )
            elif dataset.url and len(self.datasets) > 1:
                yield error(
                    f"datasets.{index}.url",
                    "a stream has to be the only entry of 'datasets'. "
                    "Write all shards as a list of 'url', or give folders only.",
                )


class ModelSection(ProcessConfig):
    """A model from a folder or the hub, and the network that is trained on it.

    Example::

        family = family_for(section.model)  # toolkit.models.families
        kind = KINDS[section.network.type]  # toolkit.contracts.network_kinds
    """

    network: NetworkConfig = Field(default_factory=NetworkConfig)
    """The adapter that is trained."""

    model: ModelConfig
    """The model that is trained."""

    def recorded_settings(self) -> dict[str, Any]:
        """Files are recorded by their contents, not by their paths."""
        settings = super().recorded_settings()
        self._name_files_by_content(settings["model"])
        return settings

    def _name_files_by_content(self, model: dict[str, Any]) -> None:
        """Adds the hashes of what is merged into the model to its settings."""
        for lora in model["base_loras"]:
            lora["sha256"] = sha256_of(Path(lora["path"]).expanduser())
        recovery = Path(self.model.accuracy_recovery_adapter or "-").expanduser()
        # one of the hub goes by its name
        if recovery.is_file():
            model["accuracy_recovery_adapter"] = f"sha256 {sha256_of(recovery)}"

    def check(self, job: JobContext) -> Findings:
        """A recovery adapter that is missing."""
        yield from super().check(job)
        path = self.model.accuracy_recovery_adapter
        if path and self.model.recovery_is_path():
            key = "model.accuracy_recovery_adapter"
            remedy = "Give a file, or owner/repo/file.safetensors of the hub."
            yield from check_path(key, path, remedy, job, file=True)


class AnyCallback(CallbackConfig):
    """A callback of an extension (docs/extensions.md). The keys of its own stand beside
    `type`; a callback without keys is its name alone.

    Example:
        callbacks: [{type: copy_saves, to: /mnt/share}]
    """

    # the keys are checked by the section of the callback itself (`loader`)

    model_config = ConfigDict(extra="allow")


class TrainingSection(ProcessConfig):
    """A run in its own folder: optimizer steps, samples, validation, saves, and what
    ends it.

    Example::

        folder = section.job_folder(JobContext(job.name))
        starts_with_samples = section.draws_first()
    """

    training_folder: WritePathStr = Field(default="output", validate_default=True)
    """The run's files go to `<training_folder>/<name>/`."""

    device: Device = "auto"
    """Device to train on: auto, cuda, cuda:N, mps or cpu. auto: the best there is. One
    that is not available is an error. Without a GPU models of up to 2 GB run on the CPU
    with auto, and with cuda:0, which every job of ai-toolkit has."""

    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    """Console output, curves and trackers."""

    training_seed: Annotated[int, Field(ge=0, lt=2**32), seed_reader(0)] = 0
    """Seed of data order, noise, dropout and initial weights. 0, -1 or random: a random
    seed. It is drawn once, printed and recorded, and a resume keeps it."""

    resume: Annotated[int | str, BeforeValidator(_resume)] = "auto"
    """auto: resume from the newest valid state in the run's folder, if any. never: move
    an existing run aside and start over. A step number (0 is valid) or the path of a
    state folder: resume from there; later files are moved aside."""

    train: OptimizationConfig = Field(default_factory=OptimizationConfig)
    """Length, optimizer and precision."""

    memory_check: bool = True
    """Refuse to start if the planned peak exceeds the memory of the device (on the CPU:
    the free memory) by more than 5 %. false: only warn."""

    sample: SampleIntervalConfig | None = None
    """Images generated during training; none without this section."""

    validation: ValidationConfig | None = None
    """Loss on held-out images; none without this section."""

    stop_when: StopWhenConfig | None = None
    """Ends the training early; never without this section."""

    save: SaveIntervalConfig = Field(default_factory=SaveIntervalConfig)
    """When the weights are written, and how."""

    callbacks: tuple[SerializeAsAny[AnyCallback], ...] = ()
    """What extensions do at a save, a step and other events, in this order: a list of
    names, or of mappings with `type` and the keys of that callback."""

    def diagrams_place(self, folder: Path) -> tuple[Path, str]:
        """The folder of the diagrams of a run, and what is added to their names.
        folder: of the run's files."""
        return folder / GRAPH, ""

    on_resume: ClassVar = {
        **dict.fromkeys(
            ("device", "logging", "resume", "memory_check", "save", "callbacks"),
            "harmless",
        ),
        # The images that `validation` holds out are missing in the dataset, which is
        # compared by its content.
        **dict.fromkeys(("sample", "validation", "stop_when"), "harmless"),
    }

    def check(self, job: JobContext) -> Findings:
        """A file where the run's folder belongs, a training without an end."""
        yield from super().check(job)
        if file := file_in_the_way(self.job_folder(job)):
            yield error(
                "training_folder",
                f"'{file}' is not a folder. Move it, or give another folder.",
            )
        for key, path in (
            ("training_folder", self.training_folder),
            ("logging.logging_dir", self.logging.logging_dir),
        ):
            if os.sep == "/" and re.match(r"[A-Za-z]:[/\\]", path):
                yield error(
                    key, f"{path!r} is a folder of another machine. {path_hint(path)}"
                )
        if self.train.steps == 0 and self.train.epochs == 0:
            yield error(
                "train.steps",
                "0 optimizer steps. Set steps or epochs to a value above 0.",
            )

    def job_folder(self, job: JobContext) -> Path:
        """`<training_folder>/<job>`, with the process's name below it where it has
        one."""
        folder = Path(self.training_folder).expanduser() / job.name
        return folder / self.name if self.name else folder

    def with_seed(self, drawn: int) -> Self:
        """The section with the seed of a run in the place of the random ones of its
        samples."""
        if not isinstance(self.sample, SampleConfig):
            return self
        return self.model_copy(update={"sample": self.sample.with_seed(drawn)})

    def draws_first(self) -> bool:
        """Whether samples are generated before step 1. Both `train.skip_first_sample`
        and `sample.sample_at_first: false` turn it off."""
        return not (
            self.train.skip_first_sample
            or (self.sample and self.sample.sample_at_first is False)
        )

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of an optimizer step, all ranks together."""
        return self.train.gradient_accumulation

    def recorded_settings(self) -> dict[str, Any]:
        """The settings that are saved with a state, without `training_folder` and
        `resume`: states of moved runs are equal byte for byte."""
        settings = super().recorded_settings()
        settings.pop("training_folder", None)
        settings.pop("resume", None)
        return settings

    def optimizers_used(self) -> Iterable[tuple[str, OptimizerConfig]]:
        """The optimizers of the run, each as the key of its settings and the section
        with them."""
        return [("train", self.train)]


class TrainerConfig(TrainingSection):
    """What every trainer has, whatever it trains.

    Example::

        class SdTrainerConfig(DiffusionSection, TrainerConfig):
            process_types = ("sd_trainer",)
    """

    def check(self, job: JobContext) -> Findings:
        """Metrics that are never measured."""
        yield from super().check(job)
        is_plateau = self.train.lr_scheduler == "plateau"
        validation = self.validation
        logged = self.logged_numbers() if self.stop_when or is_plateau else ()
        asked: list[tuple[str, str, Sequence[str]]] = []
        stop = self.stop_when
        if stop and (stop.below is not None or not validation):
            asked.append(("stop_when.metric", stop.metric, logged))
        if stop and stop.below is None and validation and not validation.every:
            yield error(
                "stop_when.metric",
                "needs validations during the run. "
                "Set 'validation.every', such as a twentieth of the steps.",
            )
        if is_plateau:
            losses = [
                name for name in logged if name == "loss" or name.startswith(LOSS)
            ]
            asked.append(
                (
                    "train.lr_scheduler_params",
                    str(self.train.lr_scheduler_params.get("metric", "loss")),
                    losses,
                )
            )
        for key, metric, known in asked:
            if metric in known or not known:
                continue
            if metric.startswith(LOSS) and validation is None:
                yield error(
                    key,
                    f"{metric!r} needs the section 'validation'. Add it, or use 'loss'.",
                )
            else:
                yield error(
                    key,
                    f"{metric!r} is not a metric of this run. {did_you_mean(metric, known)}",
                )

    def run_folder(self, job: JobContext) -> Path:
        """The folder of the run's files, `job_folder`. It need not exist."""
        return self.job_folder(job)

    def outputs_exist(self, job: JobContext) -> bool:
        """The final file, or folder of a model. Only with `resume: auto`: the run looks
        where it begins otherwise."""
        final = self.job_folder(job) / self.display_name(job)
        return self.resume == "auto" and (
            final.is_dir() or final.with_name(f"{final.name}.safetensors").is_file()
        )

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The folder of the run, with links followed: a later process may start from
        its files."""
        # unlike `resolve`, it takes links in a circle
        return frozenset({Path(os.path.realpath(self.job_folder(job)))})


class ImageTrainingSection(DatasetsSection, TrainingSection):
    """A training on folders of images, or on a stream of shards.

    Example::

        class RolesSection(ImageTrainingSection, TrainerConfig):
            reads_streams = True
    """

    def unknown_steps(self) -> bool:
        """Whether a stream of unknown length decides how many optimizer steps the run
        has."""
        return bool(
            self.streamed and self.train.epochs and not self.streamed.webdataset.samples
        )

    def datasets_to_come(self, job: JobContext) -> tuple[str, ...]:
        """As the base class, with the folder of `validation`."""
        folder = self.validation.folder_path if self.validation else None
        return super().datasets_to_come(job) + (
            (folder,) if folder and job.yet_to_come(folder) else ()
        )

    def check(self, job: JobContext) -> Findings:
        """Reports keys that need the number or the list of images, which a stream does
        not have."""
        yield from super().check(job)
        if all(dataset.is_reg for dataset in self.datasets):
            message = "true for every dataset: all images hold the model back, and none is learned. "
            remedy = "Leave it out for the images that are to be learned."
            yield warning("datasets.0.is_reg", message + remedy)
        stream = self.streamed
        if stream is None:
            return
        if self.train.epochs and not stream.webdataset.samples:
            remedy = "Set 'datasets[0].webdataset.samples', or 'train.steps' instead of epochs."
            for key, optimizer in self.optimizers_used():
                if optimizer.needs_length():
                    message = f"{optimizer.lr_scheduler!r} needs the number of steps, which is unknown: "
                    message += f"{self.train.epochs} epochs of a stream of unknown length. {remedy}"
                    yield error(f"{key}.lr_scheduler", message)
        if self.validation and self.validation.fraction is not None:
            message = "no fraction of a stream can be held out. Set 'folder_path' to images that are not part of it."
            yield error("validation.fraction", message)


class DiffusionSection(ModelSection, ImageTrainingSection):
    """The keys of a process that works on the datasets of a training job.

    Example::

        class CacheConfig(CacheOptions, DiffusionSection):
            process_types = ("cache",)
    """

    card: str = ""
    """The GPU that the job is for, such as RTX 4090, or its memory, such as 24 GB. On a
    machine without a GPU the plan is for that one, as with `--card`. It has no effect
    on a run."""

    train: TrainConfig = Field(default_factory=TrainConfig)
    """Length, optimizer, loss and precision."""

    save: SaveConfig = Field(default_factory=SaveConfig)
    """When the LoRA is written, and how."""

    sample: SampleConfig | None = None
    """Images generated during training; none without this section."""

    on_resume: ClassVar = {"card": "harmless"}

    def recorded_settings(self) -> dict[str, Any]:
        """As the base class, with the SHA-256 of each file that is active with the
        network. Raises OSError where such a file cannot be read."""
        settings = super().recorded_settings()
        if assistant := self.train.assistant:
            digest = sha256_of(Path(assistant.file()).expanduser())
            settings["train"]["assistant"]["sha256"] = digest
        return settings

    def files_beside(self) -> dict[str, LoraBeside]:
        """Key -> LoRA file that is active with the network at times."""
        files = {
            ASSISTANT: self.train.assistant,
            OF_SAMPLES: self.sample and self.sample.lora,
        }
        return {key: lora for key, lora in files.items() if lora}

    def maps_kept(self) -> bool:
        """Whether weights that wait may stay in the file of the kept model: nothing
        writes to them."""
        return self.model.keeps_quantized() and not self.network.trains_model

    def decoder(self) -> Path | None:
        """The file of `vae_path` of the samples; None: the model's own."""
        path = self.sample.vae_path if self.sample else None
        return Path(path).expanduser() if path else None

    def sample_pictures(self) -> Sequence[SamplePicture]:
        """The images to generate: the items of `sample`. Empty without it."""
        pictures = self.sample.sample_items() if self.sample else ()
        if OF_SAMPLES not in self.files_beside():
            return pictures
        return [
            picture.model_copy(update={"stretched": picture.flow_shift is None})
            for picture in pictures
        ]

    def pictures_alone(self) -> Sequence[SamplePicture]:
        """The same images as they are generated without `sample.lora`: steps, guidance
        and noise levels that go with that file are left to the model."""
        pictures = self.sample_pictures()
        if OF_SAMPLES not in self.files_beside():
            return pictures
        of_model = dict.fromkeys(("sample_steps", "guidance_scale", "flow_shift"))
        return [picture.model_copy(update=of_model) for picture in pictures]

    @property
    def saves_folders(self) -> bool:
        """Whether a save is a model folder, not a file."""
        return self.network.trains_model and self.save.layout == "diffusers"

    def weights_dtype(self) -> str:
        """Number type of the model's weights in memory: float32 masters where they are
        trained, else `train.dtype`."""
        masters = self.network.trains_model and not self.train.full_bf16
        return "float32" if masters else self.train.dtype
