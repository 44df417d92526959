"""The keys of the tools that generate images: model, LoRA files, prompts, settings.

Prompts are read as those of `sample` in a training job, from flags or from a file. The
checks find what would stop the tool before the model is loaded. Nothing is generated
here. Imports no torch.

`generate` and `grid` derive their sections from `PicturesConfig`, and
`generation` generates the images.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from extensions.tools.shared.keys import (
    check_loras,
    check_origins,
    check_place,
    split_strength,
    strength_of,
)
from extensions.tools.shared.run_job import model_of
from toolkit.config.reading.field_types import (
    AutoOrBool,
    Dtype,
    PathOrList,
    PathStr,
    Slots,
    StrOrList,
    WritePathStr,
    as_list,
    schema_of_list,
    seed_reader,
)
from toolkit.config.reading.located import (
    NOWHERE,
    ConfigNode,
    Diagnostics,
    SourceLocation,
)
from toolkit.config.reading.normalise import Normaliser
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.tool import ToolConfig
from toolkit.config.reading.validate import validate
from toolkit.config.reading.yaml_reader import read_text, read_yaml
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import ModelFolder, local_index
from toolkit.config.sections.output import (
    MAX_SIDE,
    RANDOM_SEED,
    Negative,
    SampleConfig,
    SampleItem,
)
from toolkit.config.sections.train import CompileConfig
from toolkit.config.sections.trainer import Device
from toolkit.contracts.data import Size
from toolkit.contracts.model import ModelFacts
from toolkit.data.pixels.images import ImageError, image_size
from toolkit.data.scan.foreign_syntax import LORA_TAG
from toolkit.errors import ConfigErrors, Severity, UserError
from toolkit.files.run_files import saved_as
from toolkit.models.families import (
    ModelFamily,
    family_for,
    rounded_side,
    single_file_faults,
    unlike_distilled,
)


def _drawn(value: Any) -> Any:
    if value == RANDOM_SEED:
        return secrets.randbelow(2**32)
    return value


SeedOrList = Annotated[
    tuple[
        Annotated[
            int,
            Field(ge=0, lt=2**63),
            BeforeValidator(_drawn),
            seed_reader(RANDOM_SEED),
        ],
        ...,
    ],
    BeforeValidator(as_list),
    schema_of_list({"type": "integer", "minimum": 0}),
]
"""One seed or a list of seeds."""

LIGHTNING_SHIFT = 3.0
"""Shift of the noise levels that the Lightning LoRAs were distilled with; their last
level is not stretched. Source: ModelTC/Qwen-Image-Lightning,
generate_with_diffusers.py, `scheduler_config`."""

MODEL_KEYS = (
    "name_or_path",
    "transformer_path",
    "vae_path",
    "text_encoder_path",
    "revision",
    "quantize",
    "qtype",
    "accuracy_recovery_adapter",
    "quantize_te",
    "qtype_te",
    "blocks_to_swap",
    "modulation_table",
    "low_vram",
    "model_kwargs.match_target_res",
    "model_kwargs.control_resolution",
)


class GenerationCompileConfig(CompileConfig):
    """`compile`: torch.compile of the transformer's blocks. It is worth the compile
    time for many images of few sizes.

    Example:
        compile: {enabled: auto}
    """

    enabled: AutoOrBool = False
    """Compile the blocks at their first use, which takes a minute or more; each step is
    then faster. Images differ by rounding. auto: on CUDA with Triton and a C compiler;
    when a compiled block fails, all run uncompiled."""

    place: ClassVar = "compile"


COMPILE_KEYS = (
    "enabled",
    "backend",
    "mode",
    "dynamic",
    "fullgraph",
    "cache_size_limit",
)


class PicturesConfig(ToolConfig):
    """Keys of the tools that generate images.

    Example::

        class GenerateConfig(PicturesConfig):
            process_types: ClassVar[tuple[str, ...]] = ("generate",)

        for item in section.items():
            print(item.prompt, section.size_of(item, family))
    """

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "model": MODEL_KEYS,
        "compile": COMPILE_KEYS,
    }
    flags: ClassVar[dict[str, str]] = {
        f"compile.{key}": f"--compile-{key.replace('_', '-')}"
        for key in COMPILE_KEYS[1:]
    }
    may_be_empty: ClassVar = frozenset({"prompt", "negative"})
    saved_weights: ClassVar[tuple[str, ...]] = ("lora",)

    model: ModelConfig | None = None
    """The model and its memory settings: the keys of a training job. Not given: the
    model of the first LoRA, from the job of its run or the file's metadata."""

    lora: PathOrList = ()
    """LoRA, DoRA, LoHa, LoKr, OFT, BOFT or GLoRA files of any program, each as FILE or
    FILE:STRENGTH."""

    prompt: StrOrList = ()
    """Prompts, optionally followed by the flags of sample prompts (`a cat --w 768 --h
    512`)."""

    prompts: PathStr = ""
    """File of further prompts: text with one per line, or YAML with the keys of
    `sample` in a training job."""

    trigger_word: str = ""
    """Replaces `[trigger]` in prompts, as in the prompts of a training job."""

    negative: Negative = ""
    """Negative prompt; empty: one space."""

    reference: Slots = ()
    """Up to 10 control images in slot order, as many as the model accepts; none: text
    to image."""

    width: int | None = Field(default=None, ge=64, le=MAX_SIDE)
    """Pixels, 64 to 16384. Without width and height: the model's default size closest
    to the aspect ratio of the first control image, or the square one; a model trained
    from scratch has the sizes it was trained on."""

    height: int | None = Field(default=None, ge=64, le=MAX_SIDE)
    """Pixels, 64 to 16384."""

    steps: int | None = Field(default=None, ge=1, le=10_000)
    """Denoising steps. Not given: the model's default, 20 for most."""

    layers: int = Field(default=4, ge=1, le=64)
    """Layers that Qwen-Image-Layered takes the control image apart into: files
    `<name>_layer0.png` and so on, from back to front, and one image with all of them in
    a row."""

    flow_shift: float | None = Field(default=None, ge=0.001, le=1000)
    """Shift of the noise levels, 1 is none. Not given: by image size, as in the model's
    pipeline."""

    lightning: Literal[0, 4, 8] = 0
    """Sample as Lightning LoRAs for this many steps require: these steps, cfg 1,
    flow_shift 3; explicit values take precedence. Give the file with the other LoRAs.
    0: off."""

    output: WritePathStr
    """Folder of the images."""

    overwrite: bool = False
    """Generate images again that exist already."""

    metadata: bool = True
    """Write prompt, settings and file names into the images."""

    device: Device = "auto"
    """Device: auto, cuda, cuda:N, mps or cpu."""

    dtype: Dtype = "bfloat16"
    """Dtype of the computation."""

    compile: GenerationCompileConfig = GenerationCompileConfig()
    """torch.compile of the transformer's blocks: `true`, or its keys. Off unless
    given."""

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The folder of the images."""
        return frozenset({Path(self.output).expanduser().resolve()})

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports prompts that cannot be read, control images that are not images, and
        a file in the way."""
        output = Path(self.output).expanduser()
        yield from check_place(output, remedy="Give a folder.")
        of_files = [*check_loras("lora", self.lora, job)]
        yield from of_files
        for key in ("prompt", "prompts"):
            with suppress(UserError):  # said below
                told = filter(None, map(self.lora_in, self.read_items(key)))
                yield from (Diagnostic((key,), message) for message in told)
        if self.model is None and of_files:
            return
        if self.model is None and self.lora:
            file = Path(split_strength(self.lora[0])[0]).expanduser()
            if job.will_write(file.parent):
                return  # the run is still to come
        try:
            family = family_for(self.found_model())
        except UserError as error:
            if self.model is None:  # otherwise `ModelConfig.check` reports it
                yield Diagnostic(("model",), str(error))
            return
        yield from check_origins("lora", self.lora, self.found_model)
        if self.model:
            faults = single_file_faults(self.model, self.model.files_folder())
            for key, fault in faults:
                yield Diagnostic(("model", key), fault)
        yield from check_references(("reference",), self.reference, family, job)
        keys = {"steps": "steps", "guidance": "cfg"}
        cfgs = getattr(self, "cfg", None)
        for cfg in cfgs if isinstance(cfgs, tuple) else (cfgs,):
            for key, message in unlike_distilled(family, self.steps, cfg):
                yield Diagnostic((keys[key],), message, "warning")
        for key in ("width", "height"):
            message = rounded_side(family, getattr(self, key))
            if message:
                yield Diagnostic((key,), message, "warning")
        for key in ("prompt", "prompts"):
            warned: list[str] = []
            try:
                items = self.read_items(key, warned)
            except ConfigErrors as refused:
                for mistake in refused.errors:
                    place = mistake.place.removeprefix("prompt: ")
                    yield Diagnostic((key,), f"{place}: {mistake.message}")
            except UserError as error:
                yield Diagnostic((key,), str(error))
            else:
                for line in warned:
                    yield Diagnostic((key,), line.removeprefix("prompt: "), "warning")
                for item in items:
                    yield from self._check_item(key, item, family, job)

    def check_prompt(self) -> Iterator[Diagnostic]:
        """Reports a section without a prompt."""
        if not (self.prompt or self.prompts):
            yield Diagnostic(
                ("prompt",), "is required. Or give 'prompts', a file of prompts."
            )

    def _check_item(
        self, key: str, item: SampleItem, family: ModelFamily, job: JobContext
    ) -> Iterator[Diagnostic]:
        """Reports settings of one prompt that the model does not support."""
        yield from check_references((key,), item.ctrl_img, family, job)
        if len(item.ctrl_img or self.reference) < family.min_references:
            does = "takes one apart" if family.stacks_layers else "edits one"
            severity: Severity = "error" if family.stacks_layers else "warning"
            message = f"no control image, but {family.title} {does}. Give --reference."
            yield Diagnostic((key,), message, severity)
        for side in (item.width, item.height):
            message = rounded_side(family, side)
            if message:
                yield Diagnostic((key,), message, "warning")
        for flag, message in unlike_distilled(
            family, item.sample_steps, item.guidance_scale
        ):
            yield Diagnostic((key,), f"{flag} {message}", "warning")
        model = self.found_model()
        index = local_index(model.name_or_path, model.revision)
        note = family.prompt_note(index.parent, item.prompt) if index else None
        if note:
            yield Diagnostic((key,), note, "warning")

    def lora_in(self, item: SampleItem) -> str:
        """What to write instead of `<lora:name:0.6>` in a prompt; empty where it has
        none."""
        files = {Path(split_strength(one)[0]).stem: one for one in self.lora}
        tags = LORA_TAG.findall(f"{item.prompt}\n{item.neg or ''}")
        for tag in tags:
            parts = re.split("[:=]", tag.strip("<>()[]{}"))
            kind, name, *strengths = map(str.strip, parts)
            name = re.split(r"[/\\]", name)[-1].removesuffix(".safetensors")
            file = str(
                files.get(name) or saved_as(f"output/{name}.safetensors") or "FILE"
            )
            if strength := "".join(map(strength_of, strengths[:1])):
                file = f"{split_strength(file)[0]}:{strength}"
            if kind.lower() != "hypernet":
                files[name] = file
        load = f", and write: --lora {shlex.join(files.values())}" if files else "."
        return (
            f"{tags[0]!r} loads nothing: it would be drawn as text. Leave the tag "
            f"out of the prompt{load}"
            if tags
            else ""
        )

    def found_model(self) -> ModelConfig:
        """`model`, or the model of the first LoRA where it is not given. Raises
        UserError where there is none."""
        if self.model is not None:
            return self.model
        if not self.lora:
            raise UserError(
                "is required: a model folder or hub id; or give --lora FILE, which names its model."
            )
        return model_of(Path(split_strength(self.lora[0])[0]).expanduser())

    def items(self) -> tuple[SampleItem, ...]:
        """All prompts, each with the settings that it gives itself. Raises UserError
        where they cannot be read."""
        return self.read_items("prompt") + self.read_items("prompts")

    def read_items(
        self, key: str, told: list[str] | None = None
    ) -> tuple[SampleItem, ...]:
        """The prompts of one of the two keys. told: gets the warnings about them."""
        if key == "prompt":
            return read_lines(self.prompt, told) if self.prompt else ()
        return read_file(Path(self.prompts), told) if self.prompts else ()

    def size_of(self, item: SampleItem, family: ModelFacts) -> Size:
        """The size of an image in pixels, one that the model can generate. Raises
        UserError where it has none."""
        references = item.ctrl_img or self.reference
        width = item.width or self.width
        height = item.height or self.height
        like = image_size(Path(references[0]).expanduser()) if references else None
        learned = (
            ModelFolder(self.model.files_folder()).default_sizes() if self.model else ()
        )
        usual = family.default_size(like, [Size(*sides) for sides in learned])
        if width and height:
            size = family.sample_size(Size(width, height), like)
        elif width or height:
            shape = like or Size(1, 1)
            size = Size(
                width or round((height or 0) * shape.width / shape.height),
                height or round((width or 0) * shape.height / shape.width),
            )
        else:
            size = usual
        drawn = family.drawable(size)
        if min(drawn) < 1 or (family.longest_side and max(drawn) > family.longest_side):
            limits = f"{family.token_side} to {family.longest_side or MAX_SIDE}"
            raise UserError(
                f"size {size}: this model generates images with sides of {limits} pixels."
            )
        return drawn


def check_references(
    key: tuple[str, ...], paths: Sequence[str], family: ModelFacts, job: JobContext
) -> Iterator[Diagnostic]:
    """Reports more control images than the model takes, and files that are missing or
    are not images."""
    if len(paths) > family.max_references:
        most = family.max_references
        takes = f"at most {most}. Give fewer." if most else "none. Remove them."
        yield Diagnostic(
            key, f"{len(paths)} control images: {family.title} takes {takes}"
        )
    for path in paths:
        file = Path(path).expanduser()
        if job.will_write(file):
            continue
        if not file.is_file():
            yield Diagnostic(
                key,
                f"{path!r} is not a file (working directory: {Path.cwd()}). Give an image file.",
            )
            continue
        try:
            image_size(file)
        except (ImageError, OSError) as error:
            yield Diagnostic(key, f"{error}")


def read_lines(
    lines: Sequence[str], told: list[str] | None = None
) -> tuple[SampleItem, ...]:
    """Prompts with flags. told: gets the warnings. Raises ConfigErrors naming the
    flag."""
    texts = [ConfigNode(line, (), NOWHERE, NOWHERE, text=line) for line in lines]
    return _read(_prompts(texts), Diagnostics("prompt"), told)


def _prompts(texts: Sequence[ConfigNode]) -> ConfigNode:
    """These texts as the prompts of a `sample` section."""
    samples = ConfigNode([*texts], ("prompts",), NOWHERE, NOWHERE)
    return ConfigNode({"prompts": samples}, (), NOWHERE, NOWHERE)


def read_file(path: Path, told: list[str] | None = None) -> tuple[SampleItem, ...]:
    """Prompts of a text file, one on a line, or of a YAML file with the keys of
    `sample`. told: gets the warnings."""
    path = path.expanduser()
    diagnostics = Diagnostics(str(path))
    if not path.exists():
        raise UserError(
            f"'{path}' does not exist (working directory: {Path.cwd()}). If it is a prompt, "
            f"write: --prompt {shlex.quote(str(path))}"
        )
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        root = read_yaml(read_text(path, diagnostics), diagnostics)
        return _read(root.value.get("sample", root), diagnostics, told)
    lines = read_text(path, diagnostics).splitlines()
    texts = [
        ConfigNode(line.strip(), (), at, at, text=line.strip())
        for at, line in (
            (SourceLocation(n, 1), line) for n, line in enumerate(lines, 1)
        )
        if is_prompt(line)
    ]
    if not texts:
        raise UserError(
            f"{path} contains no prompt. Write one per line; lines that begin with '#' are ignored."
        )
    return _read(_prompts(texts), diagnostics, told)


def is_prompt(line: str) -> bool:
    """Whether a line of a file is a prompt: neither empty nor a comment.

    >>> is_prompt("a cat --w 768"), is_prompt("# a comment")
    (True, False)
    """
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _read(
    node: ConfigNode, diagnostics: Diagnostics, told: list[str] | None
) -> tuple[SampleItem, ...]:
    """The items of a `sample` section. Each gets the settings that are given for all of
    them."""
    section = None
    if isinstance(node.value, dict):
        checked = Normaliser(diagnostics).process(SampleConfig, node, frozenset())
        section, _ = validate(SampleConfig, checked, diagnostics)
    else:
        diagnostics.error(
            node, "is not a mapping. Write 'samples:' and a list below it."
        )
    diagnostics.raise_errors()
    if told is not None:
        told += diagnostics.warnings
    assert isinstance(section, SampleConfig)  # otherwise there is an error
    shared = {
        key: getattr(section, key)
        for key in section.model_fields_set & SampleItem.model_fields.keys()
    }
    return tuple(
        item.model_copy(
            update={k: v for k, v in shared.items() if getattr(item, k) is None}
        )
        for item in section.samples
    )
