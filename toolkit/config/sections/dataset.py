"""`datasets[]` and `validation`: which images are trained on, and which are held out.

A dataset is a folder of images with captions and control images, or a stream of shards
(`webdataset`). `columns` reads a table.
`validation` takes a folder or a share of the datasets.

`toolkit/data/scan` finds the files that a `DatasetConfig` describes; nothing here opens
an image. `toolkit/config/sections/trainer.py` composes the sections.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.field_types import (
    OneOf,
    PathStr,
    Slots,
    StrOrList,
    as_list,
    schema_of_list,
    value_error,
)
from toolkit.config.reading.findings import (
    Findings,
    JobContext,
    check_path,
    error,
    warning,
)
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.config.reading.normalise import listed
from toolkit.config.sections.hub_dataset import from_cache, hub_fault, hub_remedy
from toolkit.files.redact import register_secret

_COLOURS = (
    "white black gray grey silver red green blue yellow cyan aqua magenta fuchsia maroon navy olive purple teal "
    "lime orange pink brown"
)


def _with_dots(extensions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys("." + extension.strip().lstrip(".") for extension in extensions)
    )


class Rectangle(StrictModel):
    """`datasets[].resolution`: one size for all images, whatever their aspect ratio;
    they are cropped to it.

    Example:
        resolution:
          - {width: 832, height: 1216}
    """

    width: int = Field(ge=32)
    """Pixels, rounded down to a multiple of 32."""

    height: int = Field(ge=32)
    """Pixels, rounded down to a multiple of 32."""

    def __str__(self) -> str:
        return f"{{width: {self.width}, height: {self.height}}}"


def sides_of(resolution: int | Rectangle) -> tuple[int, int]:
    """Width and height of one entry of `resolution`: an image at it has at most their
    product in pixels."""
    return (
        (resolution, resolution)
        if isinstance(resolution, int)
        else (resolution.width, resolution.height)
    )


def area_of(resolution: int | Rectangle) -> int:
    """Width times height of one entry of `resolution`: the most pixels of an image
    there.

    >>> area_of(512), area_of(Rectangle(width=832, height=480))
    (262144, 399360)
    """
    return prod(sides_of(resolution))


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _shape(value: Any) -> str:
    return "rectangle" if isinstance(value, dict | Rectangle) else "square"


def _colour(value: str) -> str:
    folded = value.strip().lower()
    if folded not in _COLOURS.split() and not re.fullmatch(r"#[0-9a-f]{6}", folded):
        raise value_error(
            f"{value!r} is not a valid colour. Write a name such as 'white' or '#rrggbb'."
        )
    return folded


_Side = Annotated[int, Field(ge=32)]
_Size = Annotated[
    Annotated[_Side, Tag("square")] | Annotated[Rectangle, Tag("rectangle")],
    Discriminator(
        _shape
    ),  # so that an error names what is wrong of the one shape that is meant
]
Resolution = Annotated[
    tuple[_Size, ...],
    Field(min_length=1),
    BeforeValidator(
        as_list,
        json_schema_input_type=_Side | Rectangle | tuple[_Side | Rectangle, ...],
    ),
    AfterValidator(_distinct),
]

Extensions = Annotated[
    tuple[str, ...],
    BeforeValidator(as_list),
    AfterValidator(_with_dots),
    Field(min_length=1),
    schema_of_list({"type": "string"}),
]


def _without_dot(extension: str) -> str:
    name = extension.strip().lower().lstrip(".")
    if not name:
        raise value_error(
            f"{extension!r} is not a file extension. Write the part of a name after the first dot, such as jpg."
        )
    return name


def _without_dots(extensions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_without_dot, extensions)))


def _secret(value: str) -> str:
    register_secret([value])
    return value


class WebDatasetConfig(StrictModel):
    """`datasets[].webdataset`: the contents of the shards of `url`. Files whose names
    agree up to the first dot form a sample.

    Example:
        webdataset: {image_key: [jpg, png], caption_key: txt}
    """

    image_key: Annotated[
        tuple[str, ...],
        BeforeValidator(as_list),
        AfterValidator(_without_dots),
        Field(min_length=1),
        schema_of_list({"type": "string"}),
    ] = ("jpg", "jpeg", "png", "webp")
    """Extension of the image; of a list, the first that a sample has."""

    label_key: Annotated[str, AfterValidator(_without_dot)] = "json"
    """Extension of the file with the caption: `txt`, `outputs.txt`, `caption` and the
    like are the text itself, `json` is JSON; of any other what begins with `{` is."""

    caption_key: str = Field(default="prompt", min_length=1)
    """Key of the caption in the JSON."""

    token: Annotated[str, AfterValidator(_secret)] = ""
    """Token for private shards: sent to the hub, or to the host of the first address,
    and never written to a file. Prefer the environment variable HF_TOKEN, or a stored
    login."""

    samples: int = Field(default=0, ge=0, le=10**12)
    """Number of samples in all shards: the length of an epoch, which `epochs` needs. 0:
    unknown."""

    window: int = Field(default=256, ge=1, le=1_000_000)
    """Size of the shuffle buffer: so many samples, read from eight shards in turn, are
    shuffled together; two buffers are in memory. 1: no shuffling."""

    on_resume: ClassVar = dict.fromkeys(("token", "samples"), "harmless")


FolderStr = Annotated[PathStr, AfterValidator(from_cache)]
"""A folder, or a dataset of the hub in the hub cache."""


class ColumnsConfig(StrictModel):
    """`datasets[].columns`: which column of a table of captions is what. Names that are
    known without it stand in docs/datasets.md; what is given here goes before those of
    its role.

    Example:
        columns: {image: after, prompt: instruction, control: before}
    """

    image: StrOrList = ()
    """Column with the name of the image that is trained."""

    prompt: StrOrList = ()
    """Column with the caption; of `.json` caption files the key."""

    control: StrOrList = ()
    """Columns with the control images, in slot order."""

    mask: StrOrList = ()
    """Column with the mask of the loss, as in `mask_path`: white is 1."""

    weight: StrOrList = ()
    """Column with a factor on the loss of the image."""

    ignore: StrOrList = ()
    """Columns that are not meant for the training; of others that are not used, the
    plan and `lint` give the names."""

    lone_key: ClassVar = "control"

    def check(self, job: JobContext) -> Findings:
        """Columns that are two things, and several where one is used."""
        roles: dict[str, str] = {}
        for key in type(self).model_fields:
            for name in getattr(self, key):
                if name in roles:
                    yield error(
                        key,
                        f"{name!r} is given as {roles[name]!r} too. Remove one of them.",
                    )
                roles[name] = key
        for key in ("mask", "weight"):
            if len(getattr(self, key)) > 1:
                yield error(key, "takes one column. Give the one that is meant.")


CAPTION_SUFFIXES = (".txt", ".caption")
"""Suffixes of the caption files that a job reads if it does not say which. What is
known of each: `toolkit.data.scan.captions.FORMATS`."""


class DatasetConfig(StrictModel):
    """`datasets[]`: one folder of images, or a folder whose subfolders are named
    `<repeats>_<name>`; or, with `url` instead of `folder_path`, a stream of shards.

    Example:
        datasets:
          - {folder_path: data/40_char, resolution: [512, 1024]}
          - {folder_path: data/after, control_path: data/before}
    """

    folder_path: FolderStr = ""
    """Folder of the images, relative to the working directory, or a zip file of one:
    `pairs.zip`, or of a folder in it `pairs.zip/after`; a Parquet file with pictures,
    or a folder of such files; or the id of a hub dataset that is downloaded
    (`owner/name`). Either this, `url`, or `captions_file` alone."""

    url: StrOrList = ()
    """Tar files in WebDataset format, which are streamed during training:
    `hf://datasets/owner/name/*.tar`, `https://host/x-{000..099}.tar`, a path with `*`,
    or a list of these. It must be the only entry of `datasets`."""

    webdataset: WebDatasetConfig = Field(default_factory=WebDatasetConfig)
    """The contents of the shards of `url`."""

    num_repeats: int | None = Field(default=None, ge=1)
    """How often each image is used per epoch and size. Not given: the leading `<int>_`
    of the folder's name, else 1; the plan asks where the numbers of folders beside each
    other count up, look like dates or sizes, or are larger than repeats are."""

    resolution: Resolution = (1024,)
    """Training size in pixels, one or a list: images are resized to at most this area
    (the number squared) and keep their aspect ratio. Every size in a list is used:
    `[960, 544]` gives two samples per image. At least 32. A single rectangle for all
    images: `{width: 960, height: 544}`."""

    caption_ext: Extensions = CAPTION_SUFFIXES
    """Extension of the caption files, with or without the dot; of a list, the first
    that exists is read. A `.json` file has its caption under the key `caption`."""

    captions: Annotated[Literal["one", "lines", "names"], OneOf()] = "one"
    """one: the text of an image is one caption, line breaks included. lines: each of
    its lines is a caption, in `.json` and `.jsonl` also each text of a list; one of
    them is drawn each time the image is used, by `training_seed`. Prefix, trigger word,
    dropout and shuffling apply to the one that is drawn; the validation uses the first.
    names: the caption is the file name with spaces for `_`, without `image_suffix` and
    without a number in brackets at its end; no caption file and no table is read."""

    default_caption: str = ""
    """Caption of images that have none, or an empty one."""

    captions_file: PathStr | None = None
    """A table with the captions of all images, instead of files next to them: lines of
    file name, tab, caption; `.csv` with a header (`file_name`, `caption` or `text`);
    `.jsonl` or `.json` with these keys; or `.json` that maps names to captions. The
    columns `control_path`, `control_path_0`, ... name control images, instead of
    `control_path`. Images in a subfolder are named with it: `40_my_char/a.jpg`. Without
    `folder_path` the images are those that the table names, relative to its folder. Not
    given: if no image of a folder has a caption file, and exactly one table in the
    folder names its images, that table is read, and the plan says so."""

    columns: ColumnsConfig = Field(default_factory=ColumnsConfig)
    """What the columns of a table of captions are, where their names do not say it:
    `{control: photo, mask: m}`."""

    caption_prefix: Annotated[str, AfterValidator(str.strip)] = ""
    """Text before each caption that is not dropped: `<prefix>. <caption>`, after a
    prepended trigger word. Not applied to the prompts of samples."""

    trigger_word: str | None = None
    """Trigger word of this dataset instead of the process's."""

    caption_dropout_rate: float = Field(default=0.0, ge=0, le=1)
    """Probability that the caption is replaced by an empty one, each time the image is
    used. 0: off."""

    shuffle_tokens: bool = False
    """Shuffle the comma-separated parts of the caption each time it is used. The text
    encoder then stays loaded."""

    keep_tokens: int = Field(default=0, ge=0)
    """Number of leading parts that `shuffle_tokens` leaves in place. 0: none."""

    control_path: Slots = ()
    """Folder of control images, or a list of folders in slot order, matched by file
    stem: `a.png`, then `a_0.png`, `a_1.png` and so on for `a.jpg`. Empty: no control
    images."""

    control_suffix: StrOrList = ()
    """Instead of `control_path`, for control images in the same folder: the suffix of
    their names, in slot order. With `_ref` the control image of `a.jpg` is `a_ref.png`,
    which is then not a training image itself. In `ref_*` the `*` is the name of the
    image: `ref_a.png`."""

    image_suffix: str = ""
    """Suffix of the images themselves, where pairs lie in one folder as fal and Pruna
    name them: with `_end` and `control_suffix: [_start, _start2]`, `a_end.png` is
    trained with `a_start.png`, `a_start2.png` and the caption `a.txt`. Where the word
    stands in front, `*` is what both names share: `after_*` with `control_suffix:
    [before_*]` trains `after_1.png` with `before_1.png`. Other images of the folder are
    not used. Empty: none."""

    layers_suffix: str = ""
    """For Qwen-Image-Layered: what stands between the name of an image and the number
    of each of its layers, which lie beside it, from back to front, as large as the
    image. `_layer` for `a_layer0.png`, `a_layer1.png` and so on of `a.png`, `_` for
    `a_0.png`. Images may have unlike numbers of layers. Empty: none."""

    control_optional: bool = False
    """Train images without a match in a control folder without that control image,
    instead of raising an error."""

    mask_path: PathStr | None = None
    """Folder of masks, matched by file stem: the loss is weighted by the brightness of
    the mask, white is 1. Transparent is black. A mask is stretched to its image, then
    resized, cropped and flipped with it. The loss remains a mean over the whole
    image."""

    mask_suffix: str = ""
    """Instead of `mask_path`, for masks in the same folder, as `control_suffix`:
    `-masklabel` for OneTrainer's masks. Empty: none."""

    mask_optional: bool = False
    """Train images without a match in `mask_path` without a mask, instead of raising an
    error."""

    alpha_mask: bool = False
    """Use the alpha channel of each image as its mask; images without one have no mask
    (one note names them)."""

    mask_min_value: float = Field(default=0.0, ge=0, le=1)
    """Weight of the masked-out area. 0: nothing is learned from it; 1: the mask has no
    effect."""

    invert_mask: bool = False
    """Invert the mask: the black or transparent area is trained."""

    flip_x: bool = False
    """Also use each image flipped horizontally, with its control images and mask: two
    samples per image."""

    is_reg: bool = False
    """Regularisation images, which show what the trigger word should not change: it is
    not prepended to their captions. They alternate with the other images, as often as
    their repeats say."""

    cache: (
        Annotated[
            bool | Literal["latents", "text"],
            OneOf("latents", "text", or_bool=(True, False)),
        ]
        | None
    ) = None
    """What is kept on the disk for later runs. true: latents and text embeddings;
    latents, text: only these; false: neither. Images of folders, and captions without
    `shuffle_tokens`, are encoded once before training in any case, and what is not kept
    is in memory; with `url` it is encoded at each use. Not given: true, with `url`
    false."""

    background: Annotated[str, AfterValidator(_colour)] = "white"
    """Colour behind transparent pixels of images and control images: a name or
    "#rrggbb". A model with an alpha channel (Qwen-Image-2.1) is trained on the
    transparency itself unless this is given."""

    num_workers: int = Field(default=0, ge=0, le=1024)
    """Number of threads that prefetch batches. 0: batches are loaded in the main
    thread."""

    common_words: ClassVar = {
        **dict.fromkeys(("res", "size", "image_size", "width", "height"), "resolution"),
        **dict.fromkeys(("dir", "directory", "images"), "folder_path"),
        "shuffle": "Images are always shuffled. Leave this key out.",
        "enable_ar_bucket": "Images are always grouped by size. Leave this key out.",
    }
    lone_key: ClassVar = "folder_path"
    on_resume: ClassVar = {
        **dict.fromkeys(("num_workers", "cache"), "harmless"),
        "columns": "harmless",  # the dataset is compared by its content
        # A stream is compared by the names of its shards, wherever they lie; its place
        # means nothing in a folder.
        "url": lambda dataset: "harmless" if dataset.get("url") else "impossible",
        "folder_path": lambda dataset: (
            "impossible" if dataset.get("url") else "changes the result"
        ),
    }

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """A single resolution becomes a list."""
        return _with_listed_resolution(entries, diagnostics)

    @model_validator(mode="after")
    def _has_images(self) -> DatasetConfig:
        if not (self.folder_path or self.url or self.captions_file):
            raise ValueError(
                "names no images. Give 'folder_path', or 'url' for a stream of shards."
            )
        return self

    @property
    def place(self) -> str:
        """The name of its images in messages: a folder, a file, or an address."""
        return self.folder_path or self.captions_file or self.url[0]

    @property
    def references(self) -> tuple[str, tuple[str, ...]]:
        """The key that says where the control images are, and its values in slot
        order."""
        if self.control_suffix:
            return ("control_suffix", self.control_suffix)
        return ("control_path", self.control_path)

    def keeps(self, what: Literal["latents", "text"]) -> bool:
        """Whether the latents, or the text embeddings, are kept on the disk.

        >>> DatasetConfig(folder_path="photos", cache="latents").keeps("text")
        False
        """
        given = not self.url if self.cache is None else self.cache
        return given is True or given == what

    @property
    def canvas(self) -> str:
        """`background` where it is given, else empty."""
        return self.background if "background" in self.model_fields_set else ""

    def check(self, job: JobContext) -> Findings:
        """Folders that are missing, keys that exclude each other, images that teach
        nothing."""
        if self.shuffle_tokens and self.cache in (True, "text"):
            yield error(
                "cache",
                "keeps text embeddings, and with 'shuffle_tokens: true' a caption changes every time it is used. "
                "Write 'cache: latents', or remove 'shuffle_tokens'.",
            )
        if self.url:
            for key in sorted(self.model_fields_set & NOT_OF_STREAMS.keys()):
                yield error(
                    key,
                    f"cannot be combined with 'url': {NOT_OF_STREAMS[key]}. Remove it.",
                )
            if len(self.resolution) > 1:
                yield error(
                    "resolution",
                    "a stream yields each image once per epoch, at one size. Give a single resolution.",
                )
        else:
            if "webdataset" in self.model_fields_set:
                yield error(
                    "webdataset",
                    "only applies with 'url', which is not set. Remove it.",
                )
            yield from _check_folder(self.folder_path or None, job)
            yield from check_path(
                "captions_file", self.captions_file, CAPTIONS, job, file=True
            )
            if self.captions == "names" and self.captions_file:
                yield error(
                    "captions",
                    "'names' and 'captions_file' cannot be combined. Remove one of them.",
                )
            if self.control_path and self.control_suffix:
                yield error(
                    "control_suffix",
                    "cannot be combined with 'control_path'. Remove one of them.",
                )
            for slot, path in enumerate(self.control_path):
                yield from check_path(f"control_path.{slot}", path, IMAGES, job)
            if self.model_fields_set & MASKS:
                yield from self._check_masks(job)
        for slot, control in enumerate(self.control_path if self.folder_path else ()):
            if _is_same(control, self.folder_path):
                yield warning(
                    f"control_path.{slot}",
                    "is the same folder as folder_path: each image would be its own control image.",
                )
        sizes = self.resolution
        if len(sizes) == 2 and all(isinstance(size, int) for size in sizes):
            yield warning(
                "resolution",
                f"[{sizes[0]}, {sizes[1]}] are two sizes, and each image is trained at both. For one rectangle, "
                f"write '{{width: {sizes[0]}, height: {sizes[1]}}}'.",
            )

    def _check_masks(self, job: JobContext) -> Findings:
        sources = [
            key
            for key in ("mask_path", "mask_suffix", "alpha_mask")
            if getattr(self, key)
        ]
        for key in sources[:1] if len(sources) > 1 else ():
            yield error(
                key,
                f"{key!r} and {sources[1]!r} cannot be combined. Remove one of them.",
            )
        if self.columns.mask:
            if self.alpha_mask:
                yield error(
                    "alpha_mask",
                    "cannot be combined with 'columns.mask'. Remove one of them.",
                )
        elif not sources or sources == ["alpha_mask"]:
            keys = (
                "mask_optional"
                if self.alpha_mask
                else "mask_optional mask_min_value invert_mask"
            )
            yield from self.unused(keys, " without a mask.")
        if self.mask_path is None:
            return
        if _is_same(self.mask_path, self.folder_path):
            yield error(
                "mask_path",
                "is the same folder as folder_path: each image would be its own mask. "
                "Give another folder, or 'alpha_mask: true' to use the transparency of the images.",
            )
        yield from check_path(
            "mask_path", self.mask_path, "Give a folder of masks.", job
        )


def _is_same(folder: str, other: str) -> bool:
    return Path(folder).expanduser().resolve() == Path(other).expanduser().resolve()


def _check_folder(path: str | None, job: JobContext) -> Findings:
    """An error for a folder of images that is not there, also as a dataset of the
    hub."""
    fault = hub_fault(path) if path and not job.will_write(path) else None
    if fault:
        yield error("folder_path", fault)
    else:
        yield from check_path(
            "folder_path", path, IMAGES + (hub_remedy(path) if path else ""), job
        )


def _with_listed_resolution(
    entries: dict[str, ConfigNode], diagnostics: Diagnostics
) -> dict[str, ConfigNode]:
    """A single resolution as a list; the plan says what equal ones are taken for."""
    node = entries.get("resolution")
    if node is None:
        return entries
    sizes = node.data()
    if (
        isinstance(sizes, list)
        and len(sizes) > 1
        and isinstance(sizes[0], int)
        and sizes.count(sizes[0]) == len(sizes)
    ):
        side = sizes[0]
        diagnostics.notes.append(
            f"{diagnostics.place(node)}: {sizes} is taken as one size, {side}: the area of a square of {side} pixels, "
            "aspect ratio kept"
        )
    return {**entries, "resolution": listed(node)}


MASKS = {
    "mask_path",
    "mask_suffix",
    "mask_optional",
    "alpha_mask",
    "mask_min_value",
    "invert_mask",
}
"""Keys that concern masks."""

NOT_OF_STREAMS = {
    "folder_path": "a dataset is either a folder or a stream",
    "num_repeats": "a stream is read once per epoch",
    "caption_ext": "its captions are in the shards (webdataset.label_key)",
    "captions_file": "its captions are in the shards (webdataset.label_key)",
    "columns": "a stream has no table of captions (webdataset.image_key, caption_key)",
    "captions": "a sample of a stream has one caption",
    **dict.fromkeys(
        ("control_path", "control_suffix", "image_suffix", "control_optional"),
        "a stream has no control images",
    ),
    "layers_suffix": "a stream has no layers",
    **dict.fromkeys(sorted(MASKS), "a stream has no masks"),
    "flip_x": "a stream yields each image once per epoch, unflipped",
    "is_reg": "regularisation images are a second dataset, and a stream must be the only one",
}
"""Keys of a folder -> why they cannot be combined with `url`."""


IMAGES = "Give a folder of images, or a zip file of one."
CAPTIONS = "Give a text file whose lines are file name, tab, caption."

AS_TRAINED = (
    "caption_ext", "caption_prefix", "captions", "columns", "control_optional", "default_caption", "layers_suffix",
    "trigger_word",
)  # fmt: skip
"""Keys of the first dataset that count for `validation.folder_path` too."""


LOSS = "validation/loss"
"""The mean over all images and noise levels; `validation/loss_t0.125` and so on are
those of one level."""


TEXTURE = "validation/texture"
"""Energy of high frequencies in the x0 that is predicted at the highest noise level,
over that in the image; 1: as much."""


def noise_levels(count: int) -> tuple[float, ...]:
    """The noise levels of a validation: the middles of `count` equal parts of (0, 1),
    in rising order. 0 is the image, 1 is pure noise.

    >>> noise_levels(4)
    (0.125, 0.375, 0.625, 0.875)
    """
    return tuple((index + 0.5) / count for index in range(count))


def loss_at(level: float) -> str:
    """The name of the metric of the validation loss at one noise level, from 0 to 1.

    >>> loss_at(0.125)
    'validation/loss_t0.125'
    """
    return f"{LOSS}_t{level:g}"


class ValidationConfig(StrictModel):
    """`validation`: the loss on held-out images, with the weights that would be saved.

    Noise and noise levels are the same each time, with any `training_seed`, and nothing
    is dropped or weighted, so that losses are comparable. The weights with the lowest loss are kept as
    `<name>_best.safetensors`.

    Example:
        validation: {fraction: 0.1, every: 100}
    """

    every: int = Field(default=0, ge=0)
    """Optimizer steps between two validations. There is always one before step 1 and
    one after the last step; 0: no others."""

    folder_path: FolderStr | None = None
    """Folder of the images, as in a dataset. They have all sizes of the datasets, and
    captions and the trigger word as in the first of them. Either this or `fraction`."""

    fraction: float | None = Field(default=None, gt=0, le=0.5)
    """Fraction of the images of all datasets that is held out, at all sizes; at least
    one image, no regularisation images. Chosen by a hash of folder and file name, so
    the same for every start. 0 is an error: omit the section."""

    timesteps: int = Field(default=4, ge=1, le=1000)
    """Number of noise levels per image, evenly spaced: 4 are 0.125, 0.375, 0.625 and
    0.875. Each costs a forward pass."""

    control_path: Slots = ()
    """Control images for `folder_path`, as in a dataset."""

    lone_key: ClassVar = "fraction"

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """The process's own source comes before one of `config.defaults`."""
        sources = [key for key in ("folder_path", "fraction") if key in entries]
        if len(sources) == 2:
            dropped = [key for key in sources if entries[key].from_defaults]
            if len(dropped) == 1:
                del entries[dropped[0]]
        return entries

    def check(self, job: JobContext) -> Findings:
        """Folders that are missing, and control images without a folder."""
        if self.folder_path is None:
            if self.control_path:
                yield error(
                    "control_path",
                    "only applies with 'folder_path', which is not set. Remove it.",
                )
            return
        yield from _check_folder(self.folder_path, job)
        for slot, path in enumerate(self.control_path):
            yield from check_path(f"control_path.{slot}", path, IMAGES, job)

    @model_validator(mode="after")
    def _one_source(self) -> ValidationConfig:
        # Not in the job's checks: after a wrong value is reported it is left out, and
        # would be missed there.
        if self.folder_path is None and self.fraction is None:
            raise ValueError(
                "names no images. Give 'folder_path', or the 'fraction' of the training images to hold out."
            )
        if self.folder_path is not None and self.fraction is not None:
            raise ValueError(
                "'folder_path' and 'fraction' cannot be combined. Remove one of them."
            )
        return self

    def dataset(self, datasets: Sequence[DatasetConfig]) -> DatasetConfig:
        """`folder_path` as a dataset; what it does not say comes from `datasets`, those
        that are trained on."""
        first = next(
            (dataset for dataset in datasets if not dataset.is_reg), datasets[0]
        )
        sizes = dict.fromkeys(
            size
            for dataset in datasets
            if not dataset.is_reg
            for size in dataset.resolution
        )
        settings: dict[str, Any] = {key: getattr(first, key) for key in AS_TRAINED}
        settings |= {"background": first.canvas} if first.canvas else {}
        # pairs as in the first dataset, or plain images
        if first.control_suffix and not self.control_path:
            settings |= {
                "control_suffix": first.control_suffix,
                "image_suffix": first.image_suffix,
                "control_optional": True,
            }
        settings["control_path"] = self.control_path
        settings["resolution"] = tuple(sizes) or first.resolution
        return DatasetConfig(folder_path=self.folder_path, num_repeats=1, **settings)
