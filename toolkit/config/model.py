"""`model`: the model that is trained, and how it is kept in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from toolkit.config.base import StrictModel
from toolkit.config.choices import PathText, mistake, one_of

QTYPES = ("int8", "int4", "float8")
_QTYPES_LATER = "int2 qint2 uint2 uint3 uint4 uint5 uint6 uint7 uint8 fp8_scaled nvfp4 convrot8 convrot4 orbit8 orbit4"

_OTHER_FAMILIES = (
    "is_flux is_xl is_v2 is_v3 is_v_pred is_pixart is_pixart_sigma is_auraflow is_lumina2 is_ssd is_vega "
    "use_flux_cfg flux_cfg use_text_encoder_1 use_text_encoder_2 experimental_xl refiner_name_or_path"
)


def _without_adapter(value: Any) -> Any:
    if isinstance(value, str) and "|" in value:
        raise mistake(f"{value!r} is not supported yet. Supported types: {', '.join(QTYPES)}.")
    return value


Qtype = Annotated[
    Literal["int8", "int4", "float8"],
    *one_of(
        *QTYPES,
        spellings={"qint8": "int8", "qint4": "int4", "qfloat8": "float8", "fp8": "float8"},
        later=_QTYPES_LATER,
    ),
    BeforeValidator(_without_adapter),
]


def _without_tag(value: Any) -> Any:
    return value.split(":")[0] if isinstance(value, str) else value


def _is_qwen(value: bool) -> bool:
    if not value:
        raise mistake("false: only Qwen-Image models can be trained. Write true or leave it out.")
    return value


def looks_like_a_path(name: str) -> bool:
    """Whether a name can only be a local folder, never `owner/name` on the hub."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1


class ModelKwargs(StrictModel):
    """`model.model_kwargs`: settings of the model family."""

    match_target_res: bool = False
    """References have the pixel area of the image they belong to instead of 1024 x 1024."""


class ModelConfig(StrictModel):
    """`model`: the model that is trained, and how it is kept in memory."""

    name_or_path: PathText
    """Hub id (`owner/name`) or local folder in diffusers layout."""

    revision: str | None = None
    """Branch, tag or commit of the hub repository."""

    arch: Annotated[
        Literal["qwen_image_edit_plus"] | None,
        *one_of("qwen_image_edit_plus", later="qwen_image qwen_image_edit"),
        BeforeValidator(_without_tag),
    ] = Field(default=None, validate_default=False)
    """Family and version; a tag after a colon is ignored. Not given: read from the model's files."""

    is_qwen: Annotated[bool, AfterValidator(_is_qwen)] = True
    """Accepted as true; the family is read from the model's files."""

    quantize: bool = False
    """Keep the transformer blocks' weights in `qtype`."""

    qtype: Qtype = "int8"
    """Number type of the quantized transformer weights."""

    quantize_te: bool = False
    """Keep the text encoder's weights in `qtype_te`."""

    qtype_te: Qtype = "int8"
    """Number type of the quantized text encoder weights."""

    low_vram: bool = False
    """Quantize on the CPU and keep the encoders off the device when they are not at work."""

    model_kwargs: ModelKwargs = Field(default_factory=ModelKwargs)
    """Settings of the model family."""

    aliases: ClassVar = {"quantize_dtype": "qtype", "quantize_te_dtype": "qtype_te"}
    no_effect: ClassVar = dict.fromkeys(_OTHER_FAMILIES.split(), "this trains Qwen-Image") | {
        "dtype": "train.dtype decides",
        "te_dtype": "train.dtype decides",
        "vae_dtype": "train.dtype decides",
        "latent_space_version": "the cache knows a VAE by its weights",
        "text_encoder_bits": "quantize_te and qtype_te decide",
        "attn_mode": "the attention kernel is chosen by PyTorch",
    }
    unsupported: ClassVar = {
        "blocks_to_swap": (0,),
        "layer_offloading": (False,),
        "auto_memory": (False,),
        "layer_offloading_transformer_percent": (1,),
        "layer_offloading_text_encoder_percent": (1,),
        "accuracy_recovery_adapter": (),
        "base_loras": (),
        "base_weights": (),
        "base_weights_multiplier": (1,),
        "lora_path": (),
        "assistant_lora_path": (),
        "inference_lora_path": (),
        "unconditional_lora_path": (),
        "extras_name_or_path": (),
        "te_name_or_path": (),
        "vae_path": (),
        "unet_path": (),
        "compile": (False,),
        "block_compile": (False,),
        "compile_mode": (),
        "compile_dynamic": (True,),
        "compile_fullgraph": (False,),
        "cache_size_limit": (),
        "only_if_contains": (),
        "ignore_if_contains": (),
        "quantize_kwargs": (),
        "fp8_base": (False,),
        "fp8_scaled": (False,),
        "fp8_vl": (False,),
    }

    def is_path(self) -> bool:
        """Whether `name_or_path` means a local folder, existing or not, rather than a hub id."""
        return looks_like_a_path(self.name_or_path) or self.folder().is_dir()

    def public_name(self) -> str:
        """A hub id as it is, a folder by its last part alone: what may stand in a file that is given away."""
        return self.folder().name if self.is_path() else self.name_or_path

    def folder(self) -> Path:
        """`name_or_path` as an absolute path."""
        return Path(self.name_or_path).expanduser().resolve()
