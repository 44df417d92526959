"""`datasets[]`: one folder of images with captions and references."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from toolkit.config.base import StrictModel
from toolkit.config.compat.data import DATASET
from toolkit.config.control_slots import Slots
from toolkit.config.field_types import PathStr, as_list, schema_of_list, value_error

_COLOURS = (
    "white black gray grey silver red green blue yellow cyan aqua magenta fuchsia maroon navy olive purple teal "
    "lime orange pink brown"
)


def _with_dots(extensions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys("." + extension.strip().lstrip(".") for extension in extensions))


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(values))


def _colour(value: str) -> str:
    folded = value.strip().lower()
    if folded not in _COLOURS.split() and not re.fullmatch(r"#[0-9a-f]{6}", folded):
        raise value_error(f"{value!r} is not a valid colour. Write a name such as 'white' or '#rrggbb'.")
    return folded


Resolution = Annotated[
    tuple[Annotated[int, Field(ge=32)], ...],
    BeforeValidator(as_list),
    AfterValidator(_distinct),
    Field(min_length=1),
    schema_of_list({"type": "integer", "minimum": 32}),
]

Extensions = Annotated[
    tuple[str, ...],
    BeforeValidator(as_list),
    AfterValidator(_with_dots),
    Field(min_length=1),
    schema_of_list({"type": "string"}),
]


class DatasetConfig(StrictModel):
    """`datasets[]`: one folder of images, or a folder whose subfolders are named `<repeats>_<name>`."""

    folder_path: PathStr
    """Folder of the images, relative to the working directory."""

    num_repeats: int | None = Field(default=None, ge=1)
    """How often each image is used per epoch and size. Not given: the leading `<int>_` of the folder's
    name, else 1."""

    resolution: Resolution = (1024,)
    """Training size in pixels, one or a list: an image has at most this number squared, its aspect ratio
    kept. Each distinct size is one more sample per image. At least 32."""

    caption_ext: Extensions = (".txt",)
    """Extension of the caption files, with or without the dot; of a list the first that exists is read."""

    default_caption: str = ""
    """Caption of images that have no caption file or an empty one."""

    trigger_word: str | None = None
    """Trigger word of this dataset instead of the process's."""

    caption_dropout_rate: float = Field(default=0.0, ge=0, le=1)
    """Probability, drawn per use, that the caption is empty; 0: off."""

    shuffle_tokens: bool = False
    """Shuffle the comma-separated parts of the caption per use. The text encoder then stays loaded."""

    keep_tokens: int = Field(default=0, ge=0)
    """Leading parts that `shuffle_tokens` leaves in place. 0: none."""

    control_path: Slots = ()
    """Folder, or list of up to 3 folders in slot order, of reference images matched by file stem. None is
    fine."""

    control_optional: bool = False
    """Images without a partner in a control folder train without that reference instead of being errors."""

    mask_path: PathStr | None = None
    """Folder of masks, matched by file stem: the loss counts an image where its mask is white, and by the brightness
    in between. Transparent is black. A mask is stretched to its image, then resized, cut and mirrored with it. The
    loss stays a mean over the whole image."""

    mask_optional: bool = False
    """Images without a partner in `mask_path` count whole instead of being errors."""

    alpha_mask: bool = False
    """The opacity of each image is its mask; an image without transparency counts whole (one note names them)."""

    mask_min_value: float = Field(default=0.0, ge=0, le=1)
    """Weight of what a mask leaves out. 0: nothing of it is learned; 1: the mask has no effect."""

    invert_mask: bool = False
    """Black, or transparent, is where the image counts."""

    flip_x: bool = False
    """Use each image mirrored as well, left to right, with its references and mask: two samples per image. With
    `flip_y` as well there are four."""

    flip_y: bool = False
    """Use each image upside down as well, with its references and mask."""

    loss_multiplier: float = Field(default=1.0, ge=0)
    """Factor on the loss of these images. 0: nothing is learned from them (one warning)."""

    is_reg: bool = False
    """Regularisation images, of what the trigger word is not to change: it is not put before their captions, and
    `train.reg_weight` weighs their loss. They are used in turn with the others, as often as their repeats say."""

    cache_latents: bool = True
    """Compute the latents of images and references once, before training."""

    cache_latents_to_disk: bool = True
    """Keep what was cached for later runs."""

    cache_text_embeddings: bool | None = None
    """Compute the text embeddings once, before training. Not given: yes, unless `shuffle_tokens` is on."""

    background: Annotated[str, AfterValidator(_colour)] = "white"
    """Colour under transparent pixels of images and references: a name or "#rrggbb"."""

    num_workers: int = Field(default=0, ge=0)
    """Threads that load batches ahead; 0: the main thread loads each when it is needed."""

    on_resume: ClassVar = dict.fromkeys(
        ("num_workers", "cache_latents", "cache_latents_to_disk", "cache_text_embeddings"), "harmless"
    )
    foreign: ClassVar = DATASET
