"""`model`: the model that is trained, and how it is kept in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from toolkit.config.base import ALL_OTHERS, StrictModel
from toolkit.config.choices import AutoOrBool, PathText, mistake, one_of
from toolkit.config.model_files import looks_like_a_path, model_fault
from toolkit.config.node import Node
from toolkit.config.normalise import prefer
from toolkit.config.process import Finding, JobContext
from toolkit.config.report import Report
from toolkit.registry import FAMILIES

QTYPES = ("int8", "int4", "int2", "float8", "fp8_scaled")
_QTYPE_SPELLINGS = {
    "qint8": "int8",
    "qint4": "int4",
    "qint2": "int2",
    "qfloat8": "float8",
    "qfloat8_e4m3fn": "float8",
    "fp8": "float8",
}
_QTYPES_LATER = "uint2 uint3 uint4 uint5 uint6 uint7 uint8 nvfp4 convrot8 convrot4 orbit8 orbit4"

_OTHER_FAMILIES = "is_flux is_xl is_v2 is_v3 is_v_pred is_pixart is_pixart_sigma is_auraflow is_lumina2 is_ssd is_vega"
"""ai-toolkit's switches that say which family a model is."""

_OF_OTHER_FAMILIES = "use_flux_cfg flux_cfg use_text_encoder_1 use_text_encoder_2 experimental_xl refiner_name_or_path"


def _without_adapter(value: Any) -> Any:
    if isinstance(value, str) and "|" in value:
        raise mistake(f"{value!r}: only the transformer can have an accuracy-recovery adapter. Leave out '|' and file.")
    return value


Qtype = Annotated[
    Literal["int8", "int4", "int2", "float8", "fp8_scaled"],
    *one_of(*QTYPES, spellings=_QTYPE_SPELLINGS, later=_QTYPES_LATER),
    BeforeValidator(_without_adapter),
]

_PARTED = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "enum": [*QTYPES, *_QTYPE_SPELLINGS]},
            {"type": "string", "pattern": r"^[A-Za-z0-9_]+ *\|.+"},
        ]
    }
)
"""As `reshape` takes it, with a file after the type."""


def _without_tag(value: Any) -> Any:
    return value.split(":")[0] if isinstance(value, str) else value


def _is_qwen(value: bool) -> bool:
    if not value:
        raise mistake("false: only Qwen-Image models can be trained. Write true or leave it out.")
    return value


TO_TRAIN = {
    "compile_mode": "compile_mode",
    "compile_dynamic": "compile_dynamic",
    "compile_fullgraph": "compile_fullgraph",
    "cache_size_limit": "compile_cache_size_limit",
}
"""ai-toolkit's keys of `model` -> of `train`, where compiling belongs here."""


class ModelKwargs(StrictModel):
    """`model.model_kwargs`: settings of the model family."""

    match_target_res: bool = False
    """References have the pixel area of the image they belong to instead of 1024 x 1024."""


class BaseLora(StrictModel):
    """`model.base_loras[]`: a LoRA file that becomes part of the model before training."""

    path: PathText
    """A LoRA, DoRA, LoHa or LoKr file (.safetensors), of this or another program."""

    multiplier: float = 1.0
    """What its change of each weight is multiplied by; negative takes it away, 0 leaves the file out."""

    on_resume: ClassVar = {"path": "harmless"}  # the sha256 that a state records says what is in the file

    def file_name(self) -> str:
        """Without the folder: what may stand in a file that is given away."""
        return Path(self.path).name


def _from_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class ModelConfig(StrictModel):
    """`model`: the model that is trained, and how it is kept in memory."""

    name_or_path: PathText
    """Hub id (`owner/name`) or local folder in diffusers layout; its `model_index.json` must be that of a
    Qwen-Image-Edit-2509 or a model made from it. What looks like a path is never a hub id (`docs/models.md`)."""

    revision: str | None = None
    """Branch, tag or commit of the hub repository."""

    arch: Annotated[
        Literal[tuple(FAMILIES)] | None,
        *one_of(*FAMILIES, later="qwen_image qwen_image_edit"),
        BeforeValidator(_without_tag),
    ] = Field(default=None, validate_default=False)
    """Family and version; a tag after a colon is ignored. Not given: read from the model's files."""

    is_qwen: Annotated[bool, AfterValidator(_is_qwen)] = True
    """Accepted as true; the family is read from the model's files."""

    quantize: bool = False
    """Keep the transformer blocks' weights in `qtype`."""

    qtype: Annotated[Qtype, _PARTED] = "int8"
    """Number type of the quantized transformer weights: 8 bit with a scale per output (`int8`, `float8`) or per 64
    inputs (`fp8_scaled`, musubi-tuner's), 4 or 2 bit with a scale per 128 inputs. `int4|file` also names an
    `accuracy_recovery_adapter`."""

    accuracy_recovery_adapter: PathText | None = None
    """A LoRA that makes up for what quantization lost: a local file, or `owner/repo/file.safetensors` on the hub. It is
    added to the frozen model, never trained and never saved; layers it does not cover become `int8`."""

    int8_matmul: Literal["auto"] | bool = "auto"
    """Round inputs and gradients of `int8` layers to 8 bits as well, so that they multiply in int8. It costs about 1 %
    of accuracy; products that would lose more than 3 % of one image are left alone. `auto`: on CPUs with AVX-512 VNNI
    for layers at least 512 wide, 1.5 to 2.5 times faster; on CUDA (8.0 or newer) for layers at least 1024 wide of
    blocks that inductor compiles (`train.compile`), which is not measured yet."""

    quantize_te: bool = False
    """Keep the text encoder's weights in `qtype_te`."""

    qtype_te: Qtype = "int8"
    """Number type of the quantized text encoder weights."""

    low_vram: bool = False
    """Quantize on the CPU and keep the encoders off the device when they are not at work."""

    base_loras: tuple[Annotated[BaseLora, BeforeValidator(_from_path, json_schema_input_type=str | BaseLora)], ...] = ()
    """LoRA files that are merged into the model before it is quantized and trained, in this order; an entry may be
    the path alone. What is trained comes on top: to use it, load these files with it."""

    modulation_table: AutoOrBool = "auto"
    """Keep the third of the transformer that depends on the noise level alone in the main memory, and its results for
    the levels of the next steps on the device: the same numbers to rounding. auto: with CUDA."""

    blocks_to_swap: int = Field(default=0, ge=0)
    """Blocks whose frozen weights wait in the main memory and are copied to the device each time they are used; at
    most all but one. Two of them have room on the device, so fewer than 3 save nothing. 0: none."""

    model_kwargs: ModelKwargs = Field(default_factory=ModelKwargs)
    """Settings of the model family."""

    on_resume: ClassVar = {
        ALL_OTHERS: "impossible",
        **dict.fromkeys(("low_vram", "modulation_table", "blocks_to_swap"), "harmless"),
        "int8_matmul": "changes the result",
    }
    shapes: ClassVar = {
        "fp8_base": "quantize with qtype float8",
        "fp8_scaled": "quantize with qtype fp8_scaled",
        "fp8_vl": "quantize_te with qtype_te float8",
        "base_weights": "base_loras, as a list of paths",
        "base_weights_multiplier": "base_loras, as a list of multipliers",
        **dict.fromkeys(("compile", "block_compile"), "train.compile.enabled"),
        **{old: f"train.compile.{new.removeprefix('compile_')}" for old, new in TO_TRAIN.items()},
    }
    aliases: ClassVar = {"quantize_dtype": "qtype", "quantize_te_dtype": "qtype_te"}
    refused_when_on: ClassVar = dict.fromkeys(
        _OTHER_FAMILIES.split(),
        "only Qwen-Image-Edit-2509 and what is made from it can be trained. Give such a model, and leave this key out.",
    )
    no_effect: ClassVar = dict.fromkeys(
        [*_OTHER_FAMILIES.split(), *_OF_OTHER_FAMILIES.split()], "this trains Qwen-Image"
    ) | {
        "dtype": "train.dtype decides",
        "te_dtype": "train.dtype decides",
        "vae_dtype": "train.dtype decides",
        "latent_space_version": "the cache knows a VAE by its weights",
        "text_encoder_bits": "quantize_te and qtype_te decide",
        "attn_mode": "the attention kernel is chosen by PyTorch",
    }
    unsupported: ClassVar = {
        "layer_offloading": (False,),
        "auto_memory": (False,),
        "layer_offloading_transformer_percent": (1,),
        "layer_offloading_text_encoder_percent": (1,),
        "lora_path": (),
        "assistant_lora_path": (),
        "inference_lora_path": (),
        "unconditional_lora_path": (),
        "extras_name_or_path": (),
        "te_name_or_path": (),
        "vae_path": (),
        "unet_path": (),
        "only_if_contains": (),
        "ignore_if_contains": (),
        "quantize_kwargs": (),
    }

    @classmethod
    def reshape(cls, entries: dict[str, Node], report: Report) -> dict[str, Node]:
        """A single base LoRA becomes a list; `base_weights` and `base_weights_multiplier` become `base_loras`.

        `qtype: type|file` is parted; musubi-tuner's switches become `quantize`, `quantize_te` and their types.
        """
        _switched(entries, report)
        _parted(entries, report)
        weights, multipliers = entries.pop("base_weights", None), entries.pop("base_weights_multiplier", None)
        if "base_loras" in entries:
            entries["base_loras"] = _as_list(entries["base_loras"])
        if weights is None or weights.value == []:
            if multipliers is not None and multipliers.data() not in (1, [1], []):
                report.warn(multipliers, "has no effect without base_weights.")
        elif "base_loras" in entries and entries["base_loras"].value:
            report.mistake(weights, "'base_loras' is given as well. Keep one.", at_key=True)
        else:
            entries["base_loras"] = _paired(_as_list(weights), multipliers and _as_list(multipliers), report)
        return entries

    def check(self, job: JobContext) -> Iterator[Finding]:
        """What the model's files on this disk say against it: it is not there, of another family, not complete."""
        if self.folder() not in job.earlier_outputs and (fault := model_fault(self.name_or_path, self.revision)):
            yield Finding(("name_or_path",), fault)

    def is_path(self) -> bool:
        """Whether `name_or_path` means a local folder, existing or not, rather than a hub id."""
        return looks_like_a_path(self.name_or_path) or self.folder().is_dir()

    def recovery_is_path(self) -> bool:
        """Whether `accuracy_recovery_adapter` means a local file rather than one of a hub repository."""
        name = self.accuracy_recovery_adapter or ""
        local = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") < 2
        return local or Path(name).is_file()

    def recovery_name(self) -> str:
        """The adapter's file without its folder: what may stand in a file that is given away."""
        return re.split(r"[/\\]", self.accuracy_recovery_adapter or "")[-1]

    def public_name(self) -> str:
        """A hub id as it is, a folder by its last part alone: what may stand in a file that is given away."""
        return self.folder().name if self.is_path() else self.name_or_path

    def folder(self) -> Path:
        """`name_or_path` as an absolute path."""
        return Path(self.name_or_path).expanduser().resolve()


def _as_list(node: Node) -> Node:
    return node if isinstance(node.value, list) else replace(node, value=[node])


def _paired(paths: Node, multipliers: Node | None, report: Report) -> Node:
    """musubi-tuner's two lists as one; files beyond the last multiplier have 1, as there."""
    factors = list(multipliers.value) if multipliers else []
    if len(factors) > len(paths.value):
        report.mistake(multipliers, f"{len(factors)} multipliers for {len(paths.value)} files of base_weights.")
    factors += [None] * (len(paths.value) - len(factors))
    entries = [
        replace(path, value={"path": path, **({"multiplier": factor} if factor else {})})
        for path, factor in zip(paths.value, factors, strict=False)
    ]
    return replace(paths, value=entries)


def _switched(entries: dict[str, Node], report: Report) -> None:
    """`fp8_base`, `fp8_scaled` and `fp8_vl` as what they stand for. Alone, `fp8_base` is float8 with scales."""
    given = {key: entries.pop(key, None) for key in ("fp8_base", "fp8_scaled", "fp8_vl")}
    for key, node in list(given.items()):
        if node is not None and not isinstance(node.value, bool):
            report.mistake(node, "write true or false.")
            given[key] = None
    base, scaled, text = (node if node is not None and node.value else None for node in given.values())
    for node, switch, kind, qtype in (
        (scaled or base, "quantize", "qtype", "fp8_scaled" if scaled else "float8"),
        (text, "quantize_te", "qtype_te", "float8"),
    ):
        if node is not None:
            entries[switch] = prefer(entries.get(switch), replace(node, value=True), report)
            entries[kind] = prefer(entries.get(kind), replace(node, value=qtype), report)


def _parted(entries: dict[str, Node], report: Report) -> None:
    """`qtype: int4|file` as qtype and accuracy_recovery_adapter, as in ai-toolkit."""
    for key in ("qtype", "quantize_dtype"):
        node = entries.get(key)
        if node is not None and isinstance(node.value, str) and "|" in node.value:
            qtype, file = (part.strip() for part in node.value.split("|", 1))
            written = node.written and node.written.rpartition("|")[2].strip()
            entries[key] = replace(node, value=qtype)
            if file:
                adapter = entries.get("accuracy_recovery_adapter")
                moved = replace(node, value=file, written=written)
                entries["accuracy_recovery_adapter"] = prefer(adapter, moved, report)
            else:
                report.mistake(node, "needs a file after '|'.")
