"""`save`, `sample` and `logging`: what a run writes.

`save` says when weights and states are written and how many are kept. `sample` says
which images are generated during training; `SampleConfig.sample_items` fills in what an
item leaves open. `logging` has the console output and the trackers (`metrics.jsonl`
always has every step).

The callbacks in `toolkit/train` act on these sections. Nothing here writes a file.
"""

from __future__ import annotations

import netrc
import os
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.field_types import (
    Dtype,
    OneOf,
    PathStr,
    Slots,
    WritePathStr,
    as_list,
    gather_slots,
    reader_of,
    schema_of_list,
    seed_reader,
    slot_names,
)
from toolkit.config.reading.findings import (
    Findings,
    JobContext,
    check_path,
    error,
    warning,
)
from toolkit.config.reading.foreign import ForeignName
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.config.sections.lora_beside import PathOrLora
from toolkit.config.sections.model import VaePath
from toolkit.config.sections.model_files import vae_file_fault
from toolkit.config.sections.prompts import prompts_to_samples, read_flags
from toolkit.errors import UserError, install_command
from toolkit.extension import discover
from toolkit.files.redact import REDACTED, contains_secret
from toolkit.registry import HINTED_TOOLS, hinted_tool


class SaveIntervalConfig(StrictModel):
    """`save`: when weights and states are saved, and how many are kept.

    Example:
        save: {save_every: 250, max_states_to_keep: 2}
    """

    dtype: Dtype = "float32"
    """Data type of the saved weights."""

    save_every: int = Field(default=250, ge=0)
    """Optimizer steps between two saves; 0: only the final file. If given and above 0,
    it takes precedence over `save_every_n_epochs`."""

    save_every_n_epochs: int = Field(default=0, ge=0)
    """Epochs between two saves: at the first optimizer step that completes the epoch.
    0: only the final file."""

    max_step_saves_to_keep: int = Field(default=5, ge=0)
    """Number of step files to keep, the newest by step; the final file is not counted.
    0: all."""

    save_last_n_epochs: int | None = Field(default=None, ge=0)
    """With `save_every_n_epochs`, the number of its files to keep. 0: all. Not given:
    `max_step_saves_to_keep`."""

    max_states_to_keep: int = Field(default=2, ge=0)
    """Number of states (everything a resume needs) to keep, the newest by step. 0:
    all."""

    states: Annotated[Literal["always", "at_end", "never"], OneOf()] = "always"
    """always: a state with each save. at_end: only at the end and when the run is
    stopped. never: none; a stopped run keeps its weights, but starts over. With
    network.type full a state is larger than the model."""

    no_metadata: bool = False
    """Save no metadata about the training (and nothing of `meta`), only what loading
    the files needs."""

    def interval(self) -> tuple[int, int]:
        """(optimizer steps, epochs) between two saves; at most one of them is above
        0."""
        if "save_every_n_epochs" not in self.model_fields_set:
            return self.save_every, 0
        if "save_every" in self.model_fields_set and self.save_every:
            return self.save_every, 0
        return 0, self.save_every_n_epochs

    def files_to_keep(self) -> int:
        """Number of files of the interval that stay; 0: all. `save_last_n_epochs`
        counts where the interval is in epochs, else `max_step_saves_to_keep`."""
        if self.interval()[1] and self.save_last_n_epochs is not None:
            return self.save_last_n_epochs
        return self.max_step_saves_to_keep

    def check(self, job: JobContext) -> Findings:
        """Keys that the other values of the section leave unused."""
        steps, epochs = self.interval()
        if steps:
            yield from self.unused(
                "save_every_n_epochs",
                f": 'save_every: {steps}' takes precedence. Remove one of them.",
            )
        if self.states == "never" and "max_states_to_keep" in self.model_fields_set:
            yield warning("max_states_to_keep", "has no effect with 'states: never'.")
        if not epochs:
            reason = ": files are not saved by epoch. Use max_step_saves_to_keep."
            yield from self.unused("save_last_n_epochs", reason)


class SaveConfig(SaveIntervalConfig):
    """`save`: when the LoRA is written, and how.

    Example:
        save: {save_every: 250, max_step_saves_to_keep: 4}
    """

    dtype: Dtype = "float16"
    """Data type of the LoRA file, or of the model folder; with network.type full the
    default is bfloat16."""

    layout: Annotated[Literal["diffusers", "single_file"], OneOf()] = "diffusers"
    """With network.type full: a model folder, or only the transformer in one
    safetensors file for ComfyUI, which `model.transformer_path` reads too."""

    mem_eff_save: bool = False
    """With network.type full: save each tensor directly from the model, without a copy
    of the model in CPU memory; training pauses meanwhile. Always the case if
    `train.parallel: fsdp` shards the model. States are copied anyway."""

    also: tuple[Literal["raw"], ...] = ()
    """`raw`: with EMA, also save the raw weights as `<name>_<step>_raw.safetensors`."""

    push_to_hub: bool = False
    """Upload the LoRA with a model card to the Hugging Face hub when the run is
    finished. If the upload fails, the run does not; the command that repeats it is
    printed."""

    hf_repo_id: str = ""
    """For `push_to_hub`: the repository, `owner/name`, or `name` in your own namespace;
    created if it does not exist."""

    hf_private: bool = True
    """For `push_to_hub`: create a private repository."""

    common_words: ClassVar = {
        **dict.fromkeys(
            ("save_steps", "checkpointing_steps", "interval"), "save_every"
        ),
        "format": "A LoRA is always one safetensors file. Leave this key out.",
    }
    lone_key: ClassVar = "save_every"

    def check(self, job: JobContext) -> Findings:
        """An upload without a place."""
        yield from super().check(job)
        if self.push_to_hub and not self.hf_repo_id:
            yield error(
                "push_to_hub",
                "needs a repository: set hf_repo_id, such as 'owner/name'.",
            )
        elif self.push_to_hub and not hinted_tool("publication"):
            yield error(
                "push_to_hub",
                f"needs the tool {HINTED_TOOLS['publication']!r}, which is absent. Leave it out.",
            )


def _false_is_empty(value: Any) -> Any:
    return "" if value is False else value


MAX_SIDE = 16_384
"""Pixels: sixteen times the side the model was trained at."""

Negative = Annotated[str, BeforeValidator(_false_is_empty)]


RANDOM_SEED = -1
"""`seed: random` in a section of samples."""

SAMPLE_WORDS = {
    **dict.fromkeys(
        ("steps", "num_steps", "num_inference_steps", "inference_steps"), "sample_steps"
    ),
    **dict.fromkeys(
        ("cfg", "cfg_scale", "guidance", "true_cfg_scale"), "guidance_scale"
    ),
    **dict.fromkeys(("negative", "negative_prompt"), "neg"),
    **dict.fromkeys(("size", "resolution"), "Write 'width' and 'height', in pixels."),
}
"""What other programs call the keys of a sample, and people by habit."""

MOST_GUIDANCE, MOST_STEPS = 20.0, 100
"""Above these a scale or a number of steps is probably a typing error: models are
sampled with 1 to 8, in 4 to 50."""


def _unusual(sample: SampleItem | SampleConfig) -> Findings:
    """Warns of a guidance scale that over-saturates, and of step counts that take
    minutes per image."""
    scale = sample.guidance_scale
    steps = sample.sample_steps
    if scale is not None and scale > MOST_GUIDANCE:
        yield warning(
            "guidance_scale",
            f"{scale:g} is far above what the model is made for, and burns images. A typical value is 4.",
        )
    if steps is not None and steps > MOST_STEPS:
        yield warning(
            "sample_steps",
            f"{steps} steps for each image take long, and show no more than 50.",
        )


class SampleItem(StrictModel):
    """`sample.samples[]`: one image. What it does not give comes from the `sample`
    section.

    Example:
        samples:
          - {prompt: '[trigger] in a park', ctrl_img: before.png, seed: 7}
    """

    prompt: str
    """The prompt; `[trigger]` is replaced, nothing is prepended. It may end in flags
    separated by spaces: `--w`, `--h`, `--d` (seed), `--s` (steps), `--l`
    (guidance_scale), `--n` (neg), `--fs` (flow_shift), and up to 10 times `--ci`
    (ctrl_img; put a path that contains a flag in quotes)."""

    width: int | None = Field(default=None, ge=64, le=MAX_SIDE)
    """Pixels, 64 to 16384."""

    height: int | None = Field(default=None, ge=64, le=MAX_SIDE)
    """Pixels, 64 to 16384."""

    neg: Negative | None = None
    """Negative prompt; empty or false: one space."""

    seed: (
        Annotated[int, Field(ge=RANDOM_SEED, lt=2**63), seed_reader(RANDOM_SEED)] | None
    ) = None
    """Seed of the noise; 0 is a valid seed. random or -1: as of `sample.seed`."""

    guidance_scale: float | None = Field(default=None, ge=0, le=1000)
    """Classifier-free guidance scale; 0 to 1: off."""

    sample_steps: int | None = Field(default=None, ge=1, le=10_000)
    """Number of denoising steps."""

    flow_shift: float | None = Field(default=None, ge=0.001, le=1000)
    """Shift of the noise levels, 1: no shift. Not given: by the size of the image, as
    in the model's own pipeline. 0 is an error: there would be no noise."""

    ctrl_img: Slots = ()
    """Control image, or list of up to 10 in slot order, as many as the model takes;
    none: the image is generated from text alone."""

    layers: int | None = Field(default=None, ge=1, le=64)
    """Layers that Qwen-Image-Layered takes the control image apart into."""

    other_shapes: ClassVar = dict.fromkeys(
        slot_names("ctrl_img"),
        ForeignName("converted_to", ("sample.samples[].ctrl_img",)),
    )
    common_words: ClassVar = SAMPLE_WORDS
    lone_key: ClassVar = "prompt"
    may_be_empty: ClassVar = frozenset({"prompt", "neg"})

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """Flags in the prompt become keys, `ctrl_img_1..10` one list."""
        read_flags(entries, diagnostics)
        gather_slots(entries, "ctrl_img", diagnostics)
        return entries

    def check(self, job: JobContext) -> Findings:
        """Control images that are missing; numbers that are probably typing errors."""
        yield from _unusual(self)
        for slot, path in enumerate(self.ctrl_img):
            yield from check_path(
                f"ctrl_img.{slot}", path, "Give an image file.", job, file=True
            )


class SamplePicture(SampleItem):
    """A `SampleItem` with everything filled in.

    Example::

        for picture in section.sample_pictures():
            print(picture.prompt, picture.width, picture.seed)
    """

    width: int
    height: int
    neg: str
    seed: int
    guidance_scale: float | None
    """None: the model's own (`ModelFacts.guidance`)."""

    sample_steps: int | None
    """None: the model's own (`ModelFacts.sample_steps`)."""

    layers: int = 4

    stretched: bool = True
    """Whether the noise levels are stretched to the model's last one, where it has
    one."""


class SampleIntervalConfig(StrictModel):
    """When samples are generated, and their file format.

    >>> SampleIntervalConfig(sample_every=100).interval()
    (100, 0)
    >>> SampleIntervalConfig(sample_every_n_epochs=2).interval()
    (0, 2)
    """

    sample_every: int = Field(default=250, ge=0)
    """Optimizer steps between two sets of samples; 0: none at intervals."""

    sample_every_n_epochs: int = Field(default=0, ge=0)
    """Epochs between two sets of samples; above 0, it takes precedence over
    `sample_every`. 0: none by epoch."""

    sample_start_step: int = Field(default=0, ge=0)
    """First optimizer step at which samples are generated at intervals. 0: no
    minimum."""

    sample_at_first: bool | None = None
    """Generate a set before step 1. Not given: yes, unless
    `train.skip_first_sample`."""

    format: Annotated[
        Literal["jpg", "png", "webp"], OneOf(spellings={"jpeg": "jpg"})
    ] = "jpg"
    """File format."""

    overview: bool = False
    """Also combine all sets in one image, `samples/overview.png`: training images, then
    a row for each sample, with its control images on the left and a column for each
    step. Its path is printed at the end of the run."""

    def interval(self) -> tuple[int, int]:
        """(optimizer steps, epochs) between two sets; at most one of them is above
        0."""
        if "sample_every_n_epochs" not in self.model_fields_set:
            return self.sample_every, 0
        if self.sample_every_n_epochs or "sample_every" not in self.model_fields_set:
            return 0, self.sample_every_n_epochs
        return self.sample_every, 0

    def check(self, job: JobContext) -> Findings:
        """Reports two intervals where only one of them has an effect."""
        epochs = self.interval()[1]
        if epochs and self.sample_every and "sample_every" in self.model_fields_set:
            yield warning(
                "sample_every",
                f"has no effect: 'sample_every_n_epochs: {epochs}' takes precedence. Remove one of them.",
            )


class SampleConfig(SampleIntervalConfig):
    """`sample`: images generated before, during and after training.

    Example:
        sample:
          sample_every: 250
          samples:
            - prompt: '[trigger] in a park'
    """

    sampler: Annotated[Literal["flowmatch"], OneOf()] = "flowmatch"
    """Sampler: flow matching only."""

    samples: tuple[SampleItem, ...] = ()
    """The images of one set."""

    width: int = Field(default=1024, ge=64, le=MAX_SIDE)
    """Pixels, 64 to 16384."""

    height: int = Field(default=1024, ge=64, le=MAX_SIDE)
    """Pixels, 64 to 16384."""

    neg: Negative = ""
    """Negative prompt; empty or false: one space."""

    seed: Annotated[int, Field(ge=RANDOM_SEED, lt=2**63), seed_reader(RANDOM_SEED)] = 42
    """Seed of the noise; 0 is a valid seed. random or -1: the run's training seed, so
    that all sets of a run have the same noise; with `training_seed: random` another one
    in each run."""

    walk_seed: bool = False
    """Image i of a set has the seed `seed` + i."""

    guidance_scale: float | None = Field(default=None, ge=0, le=1000)
    """Classifier-free guidance scale; 0 to 1: off. Not given: the model's, 4 with most,
    1 with Qwen-Image-2.1 and distilled ones."""

    sample_steps: int | None = Field(default=None, ge=1, le=10_000)
    """Number of denoising steps. Not given: the model's, such as 20, 40 with
    Qwen-Image-2.1 or 8 with its Turbo."""

    flow_shift: float | None = Field(default=None, ge=0.001, le=1000)
    """Shift of the noise levels, 1: no shift. Not given: by the size of the image, as
    in the model's own pipeline."""

    layers: int = Field(default=4, ge=1, le=64)
    """Layers that Qwen-Image-Layered takes a control image apart into. The sides of its
    samples follow that image; `width` times `height` is their area."""

    vae_path: VaePath = None
    """The VAE whose decoder makes the images: a file, a folder or a hub id in the
    hub cache, of a decoder alone or a whole VAE, of which the encoder is not used.
    What is trained and cached does not change, so it can be given to a run that has
    begun. Not given: the VAE of the model."""

    lora: PathOrLora | None = None
    """A LoRA file that is active in all samples of the run beside what is trained, such
    as a few-step LoRA with its `sample_steps`, `guidance_scale` and `flow_shift`; not
    in training, validation or saved files. With it, noise levels that `flow_shift`
    shifts are not stretched to the last level of the model. Its path or name on the
    hub, or {path, multiplier}. None without this key."""

    other_shapes: ClassVar = {
        "prompts": ForeignName(
            "converted_to",
            ("sample.samples",),
            "samples, as a list of prompts, or as a text file with one prompt per line",
        )
    }
    common_words: ClassVar = {**SAMPLE_WORDS, "prompt": "prompts"}
    lone_key: ClassVar = "sample_every"

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """`prompts` become `samples`."""
        entries = super().rewrite(entries, diagnostics)
        prompts_to_samples(entries, diagnostics)
        return entries

    def check(self, job: JobContext) -> Findings:
        """A VAE that cannot be used; numbers that are probably typing errors."""
        yield from super().check(job)
        yield from _unusual(self)
        if self.vae_path and not job.will_write(self.vae_path):
            if fault := vae_file_fault(self.vae_path):
                yield error("vae_path", fault)

    def with_seed(self, drawn: int) -> Self:
        """A copy in which `drawn` replaces each random seed, of the section and of its
        prompts. The section itself where none is random."""
        if RANDOM_SEED not in (self.seed, *(item.seed for item in self.samples)):
            return self
        items = (
            item.model_copy(update={"seed": drawn} if item.seed == RANDOM_SEED else {})
            for item in self.samples
        )
        seed = drawn if self.seed == RANDOM_SEED else self.seed
        return self.model_copy(update={"seed": seed, "samples": tuple(items)})

    def sample_items(self) -> tuple[SamplePicture, ...]:
        """The items of one set, in the order of `samples`. Keys that an item leaves out
        have the values of the section."""
        return tuple(
            self._picture(index, item) for index, item in enumerate(self.samples)
        )

    def _picture(self, index: int, item: SampleItem) -> SamplePicture:
        shared = {
            "width": self.width,
            "height": self.height,
            "neg": self.neg,
            "seed": self.seed
            + (index if self.walk_seed and self.seed != RANDOM_SEED else 0),
            "guidance_scale": self.guidance_scale,
            "sample_steps": self.sample_steps,
            "flow_shift": self.flow_shift,
            "layers": self.layers,
        }
        missing = {
            key: value for key, value in shared.items() if getattr(item, key) is None
        }
        return SamplePicture.model_construct(
            item.model_fields_set | missing.keys(), **{**dict(item), **missing}
        )


PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Every tracker -> the Python package it needs."""


def _none_if_zero(value: Any) -> Any:
    """0 and false stand for "no folder" in jobs of other programs."""
    return "" if isinstance(value, bool | int) and not value else value


def _tracker_names(value: Any) -> str | tuple[str, ...]:
    """The names of `log_with`, or the only one; those of extensions are looked for
    where one is unknown."""
    known = ("auto", "all", *PACKAGES)
    names = as_list(value)
    others: set[str] = set()
    if any(str(name).strip().lower() not in known for name in names):
        others = discover().uids("tracker") - {*known}
    read = reader_of((*known, *sorted(others)), {})
    found = tuple(dict.fromkeys(read(name) for name in names))
    for name in others.intersection(found):
        try:
            discover().find(name, "tracker")
        except UserError as refused:
            raise ValueError(str(refused)) from refused
    return found[0] if len(found) == 1 else found


class LoggingConfig(StrictModel):
    """`logging`: console output and trackers. `metrics.jsonl` always has every
    optimizer step.

    Example:
        logging: {log_every: 50, log_with: tensorboard}
    """

    log_every: int = Field(default=0, ge=0, le=999_999_999)
    """Optimizer steps between two progress lines if the output is not a terminal; 0: a
    line every 10 s. Also the number of steps over which trackers average the loss by
    noise level; 0: 50. All other curves have every step."""

    diagrams: bool = False
    """Plot losses, learning rates and step times to `graph/` at each save. Needs
    matplotlib."""

    report: bool = False
    """Write `report.html`, a page with samples, curves, settings and dataset, at each
    save."""

    logging_dir: Annotated[WritePathStr, BeforeValidator(_none_if_zero)] = ""
    """Folder of TensorBoard files; the files of this run go to
    `<logging_dir>/<log_prefix><name>/`. Empty or 0: none."""

    log_with: Annotated[
        str | tuple[str, ...],
        BeforeValidator(_tracker_names),
        schema_of_list({"type": "string"}),
    ] = "auto"
    """Trackers, one or a list: `tensorboard` (needs logging_dir), `wandb` (Weights &
    Biases, `pip install wandb`), `all` for both, or one of an extension, such as
    `trackio`. auto or empty: TensorBoard if logging_dir is given."""

    log_prefix: PathStr = ""
    """Prefix of the name of the run's TensorBoard folder."""

    log_tracker_name: PathStr = ""
    """Subfolder of the run's TensorBoard folder, and the W&B project if wandb_project
    is not given."""

    wandb_project: str = ""
    """W&B project, of the account's default user or team, or of WANDB_ENTITY. Empty:
    log_tracker_name, else `atelier`."""

    wandb_run_name: str = ""
    """Name of the W&B run. Empty: the job's name."""

    wandb_api_key: str = Field(default="", exclude=True, repr=False)
    """Prefer the environment variable WANDB_API_KEY, or the login that `wandb login`
    stored. It is not saved in any file."""

    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers of this run; empty for none. With `log_with: auto` it
        is TensorBoard where `logging_dir` is given."""
        meant = {
            "auto": ("tensorboard",) if self.logging_dir else (),
            "all": tuple(PACKAGES),
        }
        names = (meant.get(name, (name,)) for name in as_list(self.log_with))
        return tuple(dict.fromkeys(chain.from_iterable(names)))

    def check(self, job: JobContext) -> Findings:
        """Reports trackers that cannot work, and keys of trackers that are not used."""
        trackers = self.trackers()
        shown = ", ".join(as_list(self.log_with))
        for package in (PACKAGES[name] for name in trackers if name in PACKAGES):
            if not _is_installed(package):
                key = "logging_dir" if self.log_with == "auto" else "log_with"
                yield error(
                    key,
                    f"needs the package {package!r}, which is not installed. Run: {install_command(package)}",
                )
        if "tensorboard" in trackers:
            if not self.logging_dir:
                yield error(
                    "log_with",
                    f"{shown!r} writes TensorBoard files. Set logging_dir to a folder.",
                )
            else:
                folder = Path(self.logging_dir).expanduser()
                if folder.exists() and not folder.is_dir():
                    yield error(
                        "logging_dir",
                        f"{self.logging_dir!r} is not a folder. Give a folder.",
                    )
            for key in ("logging_dir", "log_prefix", "log_tracker_name"):
                if contains_secret(getattr(self, key)):
                    yield error(
                        key,
                        "is part of a folder name, which is visible on the disk. Remove the secret.",
                    )
        if "wandb" in trackers:
            if self.wandb_api_key == REDACTED:
                yield error(
                    "wandb_api_key",
                    "was redacted when this file was saved. Set WANDB_API_KEY instead.",
                )
            elif not self.wandb_api_key and not _can_do_without_key():
                yield error(
                    "log_with",
                    "Weights & Biases needs an API key, and none was found. "
                    "Set WANDB_API_KEY, or WANDB_MODE=offline to keep everything on this machine.",
                )
        for is_used, keys, reason in (
            (
                "tensorboard" in trackers,
                "logging_dir log_prefix",
                f": log_with is {shown!r}, so no TensorBoard files are written.",
            ),
            (
                trackers,
                "log_tracker_name",
                " without logging_dir or log_with.",
            ),
            (
                "wandb" in trackers,
                "wandb_project wandb_run_name wandb_api_key",
                " without 'log_with: wandb' (or 'all').",
            ),
        ):
            if not is_used:
                yield from self.unused(keys, reason)


def _is_installed(package: str) -> bool:
    """Without importing it. A mere folder of that name, such as W&B's own `wandb/`, is
    not a package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _can_do_without_key() -> bool:
    """Whether the environment or a netrc file has a W&B key, or the mode needs none."""
    if os.environ.get("WANDB_MODE", "").lower() in ("offline", "dryrun", "disabled"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = (
        urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
        or ""
    )
    files = (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")
    return any(_netrc_knows(file, host) for file in files if file)


def _netrc_knows(file: str, host: str) -> bool:
    try:
        return netrc.netrc(Path(file).expanduser()).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False
