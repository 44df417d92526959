"""`model`: the model that is trained, and how it is kept in memory.

`ModelConfig` names the model (hub id, folder or single file), replaces parts of it, and
says what is quantized, swapped or merged. Its `check` reports a model that is missing
or of another family, without reading weights (`model_files.py`).

Trainers, tools and plans read it. `toolkit/models/families.py` finds the family of a
section and loads the model; memory is estimated in `toolkit/plan`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)

from toolkit.config.reading.base import ALL_OTHERS, StrictModel
from toolkit.config.reading.field_types import (
    AutoOrBool,
    OneOf,
    PathStr,
    path_alone,
    value_error,
)
from toolkit.config.reading.findings import (
    Findings,
    JobContext,
    check_path,
    error,
    warning,
)
from toolkit.config.reading.located import ConfigNode, Diagnostics, show
from toolkit.config.reading.normalise import listed, merge_aliases
from toolkit.config.sections.model_files import (
    SINGLE_FILE_PARTS,
    WEIGHT_FILES,
    cached_snapshot,
    looks_like_a_path,
    model_fault,
    vae_file,
    vae_file_fault,
    whole_files,
)
from toolkit.extension import added
from toolkit.number_types import QTYPES, TYPES_OF_PRODUCTS, QuantizedProducts
from toolkit.registry import FAMILIES, PARTS_AROUND, load_object


def _without_adapter(value: Any) -> Any:
    if isinstance(value, str) and "|" in value:
        raise value_error(
            f"{value!r}: only the transformer can have an accuracy-recovery adapter. Remove '|' and the file."
        )
    return value


AUTO_RANK = 32
"""Rank of the recovery adapter that `auto` makes."""

QTYPE_SPELLINGS = {
    "qint8": "int8",
    "qint4": "int4",
    "qint2": "int2",
    "qfloat8": "float8",
    "qfloat8_e4m3fn": "float8",
    "fp8": "float8",
}
"""Other programs' names of number types -> ours."""

_OF_8_BITS = "Use 'int8'."
_OF_4_BITS = "Use 'int4', or 'uint4' with an accuracy_recovery_adapter."
QTYPE_INSTEAD = {
    **dict.fromkeys(("convrotint8", "convrot8", "uint8"), _OF_8_BITS),
    **dict.fromkeys(("convrot", "orbit", "nvfp4", "nf4"), _OF_4_BITS),
}
"""Beginnings of other programs' number types, the longer first -> what to use here."""


def _meant_type(text: str) -> str:
    """The number type that a text in the place of a switch means: `int8`, `8bit`,
    `nf4`; empty for all others."""
    folded = text.strip().lower()
    if folded in {*QTYPES, *QTYPE_SPELLINGS}:
        return folded
    bits = re.fullmatch(r"([248])[ _-]?bits?|(?:nf|fp|nvfp)([48])", folded)
    return f"int{bits[1] or bits[2]}" if bits else ""


Qtype = Annotated[
    str,
    OneOf(*QTYPES, spellings=QTYPE_SPELLINGS, instead=QTYPE_INSTEAD),
    BeforeValidator(_without_adapter),
]

REPACKED = {"comfy-org/qwen-image-2.1": "Qwen/Qwen-Image-2.1"}
"""Hub id, in small letters, of weights as ComfyUI keeps them -> hub id of the model."""

_PARTED = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "enum": [*QTYPES, *QTYPE_SPELLINGS]},
            {"type": "string", "pattern": r"^[A-Za-z0-9_]+ *\|.+"},
        ]
    }
)
"""With a file after the type, as ai-toolkit writes it."""


FEWEST_SWAPPED = 3
"""Two swapped blocks have buffers on the device, so fewer than this save nothing."""

ARCH_SPELLINGS = {
    "original": "qwen_image",
    "edit": "qwen_image_edit",
    "edit-2509": "qwen_image_edit_plus",
    "edit-2511": "qwen_image_edit_plus",
    "layered": "qwen_image_layered",
}
"""musubi-tuner's names of models (`--model_version`) -> ours."""


def _without_tag(value: Any) -> Any:
    return value.split(":")[0] if isinstance(value, str) else value


def _is_qwen(value: bool) -> bool:
    if not value:
        raise value_error(
            "false: the family is detected from the model's files. Leave it out."
        )
    return value


class ModelKwargs(StrictModel):
    """`model.model_kwargs`: settings of the model family.

    Example:
        model_kwargs: {control_resolution: 512}
    """

    match_target_res: bool = False
    """Scale control images to the pixel area of the image they belong to, instead of
    `control_resolution`."""

    control_resolution: int = Field(1024, ge=64, le=4096)
    """Control images are scaled to the area of a square of this side in pixels;
    diffusers uses 1024. Smaller ones save memory: half the side is a quarter of their
    tokens."""

    composite_target: bool = True
    """For Qwen-Image-Layered: the target is the image itself and then its layers, as
    the model was published. false: its layers alone, which takes one image less;
    samples then have no further one either."""

    def reference_area(self) -> int:
        """Pixels that a control image is resized to; 0: the pixels of its target."""
        return 0 if self.match_target_res else self.control_resolution**2


class BaseLora(StrictModel):
    """`model.base_loras[]`: a LoRA file that is merged into the model before training.

    Example:
        base_loras:
          - {path: style.safetensors, multiplier: 0.8}
    """

    path: PathStr
    """A LoRA, DoRA, LoHa, LoKr, OFT, BOFT or GLoRA file (.safetensors), of this or
    another program."""

    multiplier: float = 1.0
    """Strength with which it is merged; negative subtracts it, 0 ignores the file."""

    # the sha256 that a state records says what is in the file
    on_resume: ClassVar = {"path": "harmless"}
    saved_weights: ClassVar[tuple[str, ...]] = ("path",)
    common_words: ClassVar = dict.fromkeys(
        ("weight", "strength", "scale"), "multiplier"
    )

    def file_name(self) -> str:
        """The name of the file without its folder, for files that are given away."""
        return Path(self.path).name

    def check(self, job: JobContext) -> Findings:
        """A file that is missing, or read for nothing."""
        remedy = "Give a LoRA file; its strength is a key, 'multiplier'."
        yield from check_path("path", self.path, remedy, job, file=True)
        if self.multiplier == 0:
            yield warning("multiplier", "0: the file is not used.")


def _part_recovery(entries: dict[str, ConfigNode], diagnostics: Diagnostics) -> None:
    """`qtype: int4|file` as qtype and accuracy_recovery_adapter."""
    node = entries.get("qtype")
    if node is None or not isinstance(node.value, str) or "|" not in node.value:
        return
    qtype, file = (part.strip() for part in node.value.split("|", 1))
    written = node.written and node.written.rpartition("|")[2].strip()
    entries["qtype"] = replace(node, value=qtype)
    if file and qtype.lower() not in {*QTYPES, *QTYPE_SPELLINGS}:
        diagnostics.error(
            node,
            f"{qtype!r} is unknown. Use {' or '.join(map(repr, QTYPES))}, without '|' and the file: "
            f"its adapter makes up for the errors of {qtype} alone.",
        )
    elif file:
        adapter = entries.get("accuracy_recovery_adapter")
        moved = replace(node, value=file, written=written)
        entries["accuracy_recovery_adapter"] = merge_aliases(
            adapter, moved, diagnostics
        )
    else:
        diagnostics.error(node, "needs a file after '|'.")


VaePath = Annotated[
    PathStr | None, AfterValidator(lambda path: path and vae_file(path))
]
"""A file of a VAE, or a folder or model in the hub cache that has one."""


class ModelConfig(StrictModel):
    """`model`: the model that is trained, and how it is kept in memory.

    Example:
        model: {name_or_path: Qwen/Qwen-Image-Edit-2509, quantize: true, qtype: int4}
    """

    name_or_path: PathStr
    """Hub id (`owner/name`) or local folder in diffusers format; its `model_index.json`
    must be that of a Qwen-Image model (2.1, 2512, Edit, Edit-2509, Edit-2511), of a
    finetune of one, or of another family that `arch` lists. Or a transformer in one
    file, as for ComfyUI, whose VAE and text encoder are then found beside it. What
    looks like a path is never taken for a hub id (`docs/models.md`)."""

    transformer_path: PathStr | None = None
    """Single safetensors file with the transformer's weights, used instead of those in
    the model folder: bf16, fp8 with or without scales, or int8_convrot, with the
    parameter names of ComfyUI or diffusers; for a sharded file, the first shard
    (`docs/models.md`)."""

    vae_path: VaePath = None
    """The same for the VAE, also as a folder or a hub id; the parameter names of Wan's
    VAE, as in ComfyUI's file, are accepted as well. A file with a decoder alone is used
    with the encoder of the model folder. The decoder is for samples: another one
    changes neither the cached latents nor what is trained (`sample.vae_path` is for it
    alone)."""

    text_encoder_path: PathStr | None = None
    """The same for the text encoder with its vision tower."""

    revision: str | None = None
    """Branch, tag or commit of the hub repository."""

    arch: Annotated[
        str | None,
        OneOf(*FAMILIES, spellings=ARCH_SPELLINGS, more=partial(added, "family")),
        BeforeValidator(_without_tag),
    ] = None
    """Family and version; a tag after a colon is ignored. Not given: detected from the
    model's files."""

    is_qwen: Annotated[bool, AfterValidator(_is_qwen)] = True
    """Accepted as true; the family is detected from the model's files."""

    quantize: bool = False
    """Quantize the weights of the transformer blocks to `qtype`."""

    qtype: Annotated[Qtype, _PARTED] = "int8"
    """Data type of the quantized transformer weights: 8 bit with a scale per output
    (`int8`, `float8`) or per 64 inputs (`fp8_scaled`, musubi-tuner's), 4 or 2 bit with
    a scale per 128 inputs (`int4`, `int2`), 2 to 7 bit with a scale and a zero point
    per 64 (`uint2` to `uint7`, ai-toolkit's). `uint3|file` also sets
    `accuracy_recovery_adapter`, which must have been trained for this type."""

    accuracy_recovery_adapter: PathStr | None = None
    """A LoRA that compensates for the quantization error: a local file, or
    `owner/repo/file.safetensors` on the hub. It is added to the frozen model, never
    trained and never saved; layers it does not cover are quantized to `int8`. `auto`:
    one is computed from the weights when the model is first loaded, and cached. One
    that is trained is better."""

    quantized_products: Annotated[
        QuantizedProducts | Literal[False],
        OneOf("int8", "fp8", or_bool=(False,)),
    ] = False
    """Quantize activations and gradients too, by rows, and multiply them with the
    weights in 8 bits: `int8` takes `qtype: int8`, `fp8` takes `qtype: float8`. The LoRA
    stays in `train.dtype`. Meant for GeForce cards, whose 8-bit products are nominally
    two to four times as fast (compute capability 7.5 or higher, fp8: 8.9); no card was
    measured but an H100, where int8 is slower than bf16. Each product is off by 1.2 %
    (int8, whose inputs are rotated in groups of 64) or 3.7 % (fp8): see
    `docs/measured.md`."""

    quantize_te: bool = False
    """Quantize the weights of the text encoder to `qtype_te`. Without it the embeddings
    are those of the published encoder, at no cost in memory: captions go through it
    layer by layer, unless they are shuffled or come from a stream."""

    qtype_te: Qtype = "int8"
    """Data type of the quantized text encoder weights."""

    keep_quantized: bool = True
    """Keep the quantized transformer in the cache of the `training_folder`, so that the
    next start reads it instead of quantizing the published weights: the same bits in a
    fraction of the time. Blocks that wait (`blocks_to_swap`, `modulation_table`) are
    mapped from there and take no main memory. At least 10 GB of the disk stay free:
    entries that were not used for longest go first, and where that is not enough none
    is written. `run.py cache JOB --prune` deletes the files of other models."""

    low_vram: bool = False
    """Quantize on the CPU, and move the VAE off the device while it is not used; the
    text encoder too where captions are shuffled or come from a stream."""

    base_loras: tuple[
        Annotated[
            BaseLora,
            BeforeValidator(path_alone, json_schema_input_type=str | BaseLora),
        ],
        ...,
    ] = ()
    """LoRA files that are merged into the model before it is quantized and trained, in
    this order; an entry may be just the path. The new network is trained on top of
    them: load these files with it."""

    modulation_table: AutoOrBool = "auto"
    """Keep the modulation layers, a third of the transformer, which depend on the noise
    level only, in CPU memory, and their outputs for the noise levels of the next steps
    on the device: the same results up to rounding, 1 to 2 % slower. auto: on CUDA, if
    the training does not fit the GPU without it."""

    blocks_to_swap: int = Field(default=0, ge=0)
    """Number of transformer blocks whose frozen weights are kept in CPU memory and
    copied to the device each time they are used; at most all but one. Two buffers stay
    on the device, so fewer than 3 save nothing. 0: none."""

    model_kwargs: ModelKwargs = Field(default_factory=ModelKwargs)
    """Settings of the model family."""

    on_resume: ClassVar = {
        ALL_OTHERS: "impossible",
        **dict.fromkeys(
            ("low_vram", "modulation_table", "blocks_to_swap", "keep_quantized"),
            "harmless",
        ),
        **dict.fromkeys(
            (
                "name_or_path",
                "transformer_path",
                "vae_path",
                "text_encoder_path",
                "revision",
            ),
            "place",
        ),
    }
    common_words: ClassVar = {
        "load_in_8bit": "Write 'quantize: true' and 'qtype: int8'.",
        "load_in_4bit": "Write 'quantize: true' and 'qtype: int4'.",
        "vram": "Write 'low_vram: true'; 'run.py new --gpu GIB' writes a job for a GPU of this size.",
    }
    lone_key: ClassVar = "name_or_path"

    _file_fault: str = PrivateAttr(default="")
    _file_note: str = PrivateAttr(default="")

    @model_validator(mode="wrap")
    @classmethod
    def _around_a_file(
        cls, data: Any, handler: ModelWrapValidatorHandler[ModelConfig]
    ) -> ModelConfig:
        """A file as `name_or_path` is a transformer: the other keys become what is
        found around it."""
        name = data.get("name_or_path") if isinstance(data, dict) else None
        if not isinstance(name, str) or Path(name).suffix.lower() not in WEIGHT_FILES:
            return handler(data)
        texts = {
            key: value
            for key, value in data.items()
            if isinstance(value, str) and value
        }
        given = {
            part: texts[f"{part}_path"]
            for part in SINGLE_FILE_PARTS
            if f"{part}_path" in texts
        }
        around = load_object(PARTS_AROUND)(
            name, texts.get("arch"), texts.get("revision"), given
        )
        if around is None or around.fault:
            model = handler(data)
            model._file_fault = around.fault if around else ""
            return model
        paths = {f"{part}_path": file for part, file in around.files.items()}
        model = handler({**data, **paths, "name_or_path": around.model})
        model._file_note = around.note
        return model

    @property
    def file_fault(self) -> str:
        """Why the file that `name_or_path` names cannot be trained, with the remedy;
        empty: it can, or is none."""
        return self._file_fault

    @property
    def file_note(self) -> str:
        """The kind of the file that `name_or_path` named, and how it was identified;
        empty: it was not a file."""
        return self._file_note

    saved_weights: ClassVar[tuple[str, ...]] = (
        "name_or_path",
        "transformer_path",
        "base_loras",
    )

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """A single base LoRA becomes a list; `qtype: int4|file` is parted; a copy for
        ComfyUI stands for its model. A number type in the place of the switch is an
        error."""
        name = entries.get("name_or_path")
        if name is not None:
            if model := REPACKED.get(str(name.value).lower()):
                entries["name_or_path"] = replace(name, value=model, text=model)
                diagnostics.warn(
                    name,
                    f"{str(name.value)!r} holds the weights for ComfyUI: those of {model} are used.",
                )
        _part_recovery(entries, diagnostics)
        for switch, qtype in (("quantize", "qtype"), ("quantize_te", "qtype_te")):
            node = entries.get(switch)
            if node and isinstance(node.value, str):
                if meant := _meant_type(node.value):
                    diagnostics.error(
                        node,
                        f"{show(node)} is neither true nor false. "
                        f"Write '{switch}: true' and '{qtype}: {meant}'.",
                    )
        if "base_loras" in entries:
            entries["base_loras"] = listed(entries["base_loras"])
        return entries

    def check(self, job: JobContext) -> Findings:
        """Reports a model that is missing on this disk, incomplete, or of another
        family."""
        if self.folder().suffix.lower() in WEIGHT_FILES and job.yet_to_come(
            self.folder()
        ):
            fault = "an earlier process writes this file, and what it holds is looked at before the start. Train it in "
            fault += "a job of its own, started after this one, as transformer_path."
            yield error("name_or_path", fault)
        elif not job.will_write(self.folder()):
            fault = self.file_fault or model_fault(
                self.name_or_path, self.revision, whole_files(self)
            )
            if fault:
                yield error("name_or_path", fault)
        if self.vae_path and not job.will_write(self.vae_path):
            fault = vae_file_fault(self.vae_path)
            if fault:
                yield error("vae_path", fault)
        if self.quantized_products:
            yield from self._check_products(self.quantized_products)

    def _check_products(self, kind: QuantizedProducts) -> Findings:
        """Weights without the codes that products of 8 bits need."""
        qtype = TYPES_OF_PRODUCTS[kind]
        if not self.quantize or self.qtype != qtype:
            has = repr(self.qtype) if self.quantize else "not quantized"
            yield error(
                "quantized_products",
                f"{kind} takes weights with {qtype} codes, and these are {has}. "
                f"Write 'quantize: true' and 'qtype: {qtype}'.",
            )
        if self.accuracy_recovery_adapter:
            yield error(
                "quantized_products",
                "accuracy_recovery_adapter corrects the errors of weights alone. Leave one of the two out.",
            )

    def is_path(self) -> bool:
        """Whether `name_or_path` means a local folder, existing or not, rather than a
        hub id."""
        return looks_like_a_path(self.name_or_path) or self.folder().is_dir()

    def keeps_quantized(self) -> bool:
        """Whether the quantized transformer is kept for the next start."""
        return self.quantize and self.keep_quantized

    def makes_recovery(self) -> bool:
        """Whether the recovery adapter is made from the weights."""
        return self.quantize and self.accuracy_recovery_adapter == "auto"

    def recovery_is_path(self) -> bool:
        """Whether `accuracy_recovery_adapter` means a local file rather than one of a
        hub repository."""
        name = self.accuracy_recovery_adapter or ""
        if name == "auto":
            return False
        local = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") < 2
        return local or Path(name).is_file()

    def recovery_name(self) -> str:
        """The adapter's file without its folder: what may stand in a file that is given
        away."""
        return re.split(r"[/\\]", self.accuracy_recovery_adapter or "")[-1]

    def public_name(self) -> str:
        """A hub id as it is, a folder by its last part alone: what may stand in a file
        that is given away."""
        return self.folder().name if self.is_path() else self.name_or_path

    def folder(self) -> Path:
        """`name_or_path` as an absolute path, with `~` expanded and links followed. It
        need not exist."""
        return Path(self.name_or_path).expanduser().resolve()

    def files_folder(self) -> Path:
        """The folder of the model's files: `folder()`, or for a hub id its complete
        snapshot in the hub cache."""
        return (
            not self.is_path()
            and cached_snapshot(self.name_or_path, self.revision, whole_files(self))
        ) or self.folder()
