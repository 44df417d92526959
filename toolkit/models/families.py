"""`ModelFamily`, the interface to a model family before anything is loaded.

`family_for` finds the family of a `model:` section. `ModelSizeInfo` has a model's
sizes, `ModelLoadOptions` the options that it is loaded with. Functions tell which files
are missing, do not fit, or have to be downloaded. Nothing is downloaded or loaded here:
`hub` and `loading` do that. The rules of jobs, the planner (`toolkit.plan`), the
trainers and most tools call this module. Imports no torch.

    family = family_for(section.model)
    sizes = family.footprint(section.model.files_folder())
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from toolkit.config.reading.process import JobContext
from toolkit.config.sections.model import AUTO_RANK, ModelConfig
from toolkit.config.sections.model_files import (
    INDEX,
    SINGLE_FILE_PARTS,
    ModelFolder,
    cached_snapshot,
    downloaded_bytes,
    families,
    family_named,
    family_of,
    hub_cache,
    listed_bytes,
    local_index,
    looks_like_a_path,
    near_id,
    published,
    published_family,
    single_files,
    vae_file_fault,
    whole_files,
)
from toolkit.contracts.data import Size
from toolkit.contracts.model import DiffusionModel, ModelFacts, ModelSection
from toolkit.contracts.network_kinds import ActivationUnits
from toolkit.errors import UserError
from toolkit.files.writing import free_space
from toolkit.models.imports import without_bitsandbytes
from toolkit.registry import FAMILIES, load_object

if TYPE_CHECKING:
    import torch
    from torch import nn

    from toolkit.models.kept import Kept


LOOKAHEAD_BATCHES = 32
"""Micro-batches whose timesteps are prefetched at once."""

MOST_ROWS = 192
"""Timesteps that a modulation cache keeps. Each takes 4.4 MB for the published model in
bfloat16."""


LARGE_MODEL_BLOCKS = 20
"""A model with this many blocks or more counts as one of full size."""

CONFIG_BYTES = 20_000_000
"""Upper bound of the bytes of configs, tokenizer and processor of a published model.
They are the whole download where files give all weights."""


@dataclass(frozen=True)
class EncoderSize:
    """The size of an encoder, which is needed before training, and during training for
    shuffled captions or samples.

    >>> text = EncoderSize(linear_params=6_000_000, other_params=1_000_000)
    >>> text.stored(bytes_per_linear=1.0, number_bytes=2)
    8000000
    """

    linear_params: int
    """Parameters that can be quantized."""

    other_params: int
    unused: int = 0
    """Parameters that are read with the others, and freed."""

    def stored(self, bytes_per_linear: float, number_bytes: int) -> int:
        """Bytes of the parameters in memory."""
        return (
            int(self.linear_params * bytes_per_linear)
            + self.other_params * number_bytes
        )


BAND_PIXELS = 2**16
"""Pixels of the bands of rows that a VAE encodes and decodes (`vae_bands`): 64 rows of
1024."""


PATCHES_PER_TOKEN = 4
"""Patches of an image in the vision tower for one token of the text encoder."""

DEQUANTIZED = 3.5
"""Copies of a quantized weight, in the compute dtype, while a prompt is multiplied with
it. Measured on a CPU."""


@dataclass(frozen=True)
class TextLayers:
    """Sizes of a text encoder that is read layer by layer (`layerwise`).

    Example::

        layers = family.footprint(folder).text_layers
        weights, activations = layers.taken(tokens, image_tokens, 1.0, number=2)
        waiting = layers.waiting(tokens, image_tokens, width=3584) * number_bytes
    """

    largest: EncoderSize
    """Its largest layer."""

    largest_linear: int
    """Parameters of the largest linear layer."""

    token_numbers: int
    """Largest number of elements per token in a layer."""

    vision: int
    """Parameters of the largest part of its vision tower."""

    patch_numbers: float
    """Largest number of elements per patch of an image in the vision tower."""

    patch_waits: int
    """Elements per patch that wait, as pixels or as hidden states of the vision
    tower."""

    image_token_numbers: int
    """Elements per token of an image that the vision tower gives to later layers."""

    def taken(
        self, tokens: int, image_tokens: int, per_linear: float, number: int
    ) -> tuple[float, float]:
        """Bytes on the device: of a layer, and of its activations for one prompt. The
        numbers are from the part of the encoder that takes most.

        image_tokens: how many of the tokens are of images. per_linear: bytes per weight
        of a linear layer. number: bytes per other weight, and per activation.
        """
        layer = float(self.largest.stored(per_linear, number))
        if per_linear != number:
            layer += DEQUANTIZED * self.largest_linear * number
        in_text = (
            layer,
            (tokens * self.token_numbers + image_tokens * self.image_token_numbers)
            * float(number),
        )
        if not image_tokens:
            return in_text
        in_vision = (
            self.vision * float(number),
            image_tokens * PATCHES_PER_TOKEN * self.patch_numbers * number,
        )
        return max(in_text, in_vision, key=sum)

    def waiting(self, tokens: int, image_tokens: int, width: int) -> int:
        """Elements of one prompt that wait outside of the device. width: of the text
        features."""
        return tokens * width + image_tokens * (
            PATCHES_PER_TOKEN * self.patch_waits + self.image_token_numbers
        )


TEXTS_IN_MEMORY = 2 * 10**9
"""Bytes of pixels and hidden states that wait in main memory while prompts are encoded
(`layerwise`). The others wait on the disk."""


@dataclass(frozen=True)
class ModelSizeInfo:
    """The sizes of one model folder, by which memory and time are planned.

    Example::

        sizes = family_for(section.model).footprint(section.model.files_folder())
        weights = sizes.stored(sizes.linear_params, "int8", number_bytes=2)
        vae_elements = sizes.encoding(1024 * 1024)
    """

    width: int
    """Hidden size of the transformer: channels per token."""

    blocks: int
    linear_params: int
    """Parameters of the blocks' linear layers, which can be quantized."""

    other_params: int
    """All other parameters of the trained part."""

    largest_layer: int
    """Parameters of the largest linear layer."""

    largest_of_tokens: int
    """Parameters of the largest linear layer that processes every token."""

    modulation_layers: frozenset[str]
    """Full names of the linear layers whose outputs the modulation cache can hold."""

    tabulated_weights: int
    table_inputs: frozenset[str]
    """Layers that must not be trained with the modulation cache."""

    text: EncoderSize
    vae: EncoderSize
    encode_numbers: float
    """Largest number of elements per pixel while the VAE encodes."""

    decode_numbers: float
    text_token_numbers: int
    """Largest number of elements per text token in the text encoder."""

    text_width: int
    pixels_per_token: int
    scales_references: bool
    """Whether control images are scaled to `model_kwargs.reference_area`; otherwise
    they have the target's size."""

    text_tokens: int
    """Text tokens of the template around a prompt."""

    text_tokens_per_reference: int
    """Text tokens of the transformer that a control image adds."""

    bytes_per_weight: Mapping[str | None, float]
    """Bytes per quantized weight with its scales, by `model.qtype`."""

    encode_band_numbers: float = 0.0
    """Elements per pixel of a band, in addition to the elements of the image. 0 for a
    VAE that does not work in bands."""

    decode_band_numbers: float = 0.0

    outside_numbers: int = 0
    """Elements per text token that layers outside of the blocks keep for the backward
    pass where they are trained or adapted."""

    stacks_layers: bool = False
    """See `ModelFacts.stacks_layers`."""

    text_layers: TextLayers | None = None
    """None where the text encoder is always loaded whole."""

    def stored(self, weights: int, qtype: str | None, number_bytes: int) -> int:
        """Bytes of `weights` linear weights of the blocks in memory. qtype: None where
        they are not quantized."""
        return int(weights * (self.bytes_per_weight[qtype] if qtype else number_bytes))

    encoder_token_pixels: int = 0
    """Pixels of a control image per token that only the text encoder has for it. 0: it
    has the same tokens as the transformer."""

    activation_units: Mapping[str, ActivationUnits] = field(default_factory=dict)
    """By `network.type`, where they differ from the units in
    `toolkit.contracts.network_kinds`."""

    @property
    def row_numbers(self) -> int:
        """Elements of the modulation cache per timestep: one for each output of its
        layers."""
        return self.tabulated_weights // self.width

    def encoding(self, pixels: int) -> float:
        """Elements in memory while an image of this many pixels is encoded."""
        return (
            pixels * self.encode_numbers
            + min(pixels, BAND_PIXELS) * self.encode_band_numbers
        )

    def decoding(self, pixels: int) -> float:
        """Elements in memory while an image of this many pixels is decoded."""
        return (
            pixels * self.decode_numbers
            + min(pixels, BAND_PIXELS) * self.decode_band_numbers
        )


BlockTransform = Callable[["nn.Module", str], None]
"""Changes a loaded block in place, for example by quantizing it. The text is the
block's dotted name."""


@dataclass(frozen=True)
class ModelLoadOptions:
    """How a `DiffusionModel` loads its parts.

    Example::

        options = ModelLoadOptions(folder, torch.device("cuda"), torch.bfloat16)
        model = family.open(options)
    """

    folder: Path
    """A local folder in diffusers layout."""

    device: torch.device
    dtype: torch.dtype
    """Compute dtype of every part."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """Part -> the file with its weights, which replace the weights in `folder`."""

    decoder: Path | None = None
    """A VAE's file whose decoder replaces the decoder from `files` or `folder`. Its
    encoder does not count."""

    weights_dtype: torch.dtype | None = None
    """Dtype that the trained module's weights are loaded in, where it is not `dtype`:
    float32 where they are trained."""

    reference_area: int = 1024 * 1024
    """Pixels of a control image; 0: the number of pixels of the target."""

    composite_target: bool = True
    """See `DiffusionModel.predicts_composite`."""

    merge_fn: Callable[[], BlockTransform] | None = None
    """Called when the trained module is loaded. It returns a function that changes the
    weights in place after they are filled: of each block before `transform_block`, and
    at last of the module itself (name "")."""

    transform_block: BlockTransform | None = None
    """Quantizes a block of the trained module in place."""

    transform_text_block: BlockTransform | None = None
    """The same for the text encoder's layers."""

    quantizes: bool = False
    """Whether `transform_block` quantizes; otherwise it does something else, such as
    sharding."""

    keeps_codes: str = ""
    """A number type of `FILE_CODES`. `transform_block` gets weights of blocks that
    `files` has in it as they are stored (`STORED_CODES`). Empty: none."""

    keeps_text_codes: str = ""
    """The same for `transform_text_block`."""

    text_encoder_cache_tag: str = ""
    """Names the effect of `transform_text_block` on the text embeddings, for their
    cache key."""

    modulation_table: bool = False
    """Keep the modulation layers, whose output depends on the timestep alone, in CPU
    memory. `DiffusionModel.enable_modulation_cache` uses it.
    """

    cpu_blocks: frozenset[int] = frozenset()
    """Indices of the trained module's blocks that stay in CPU memory."""

    low_vram: bool = False
    """Quantize on the CPU and move only the finished blocks to the device."""

    kept: Kept | None = None
    """The copy of the quantized trained module on the disk. None: it is neither read
    nor written."""


class ModelFamily(ModelFacts, ABC):
    """A family's facts, with one object per family. `toolkit.registry.FAMILIES` lists
    them.

    The argument `folder` is always a model folder in diffusers layout. Where it does
    not exist yet, the sizes of the published model are returned. A file that cannot be
    read raises UserError with its name.

    Example::

        family = FAMILIES.load("qwen_image_2")
        layers = family.linear_layers(folder)  # name -> (inputs, outputs)
        model = family.open(options)
    """

    model_class: str
    """Its `DiffusionModel`, as "module:Class", called with (options, family). It is
    imported when a model is loaded."""

    def open(self, options: ModelLoadOptions) -> DiffusionModel:
        """The model in a folder. Its parts are loaded on first use."""
        with without_bitsandbytes():
            kind = load_object(self.model_class)
        model: DiffusionModel = kind(options, self.of_folder(options.folder))
        return model

    def of_folder(self, folder: Path) -> ModelFamily:
        """The family with the facts of one model, where they differ from folder to
        folder. Where the folder does not exist yet, it has the facts of the published
        model."""
        return self

    def of_title(self, title: str) -> ModelFamily:
        """The family with the facts of a published model that is not on this disk yet,
        by its name."""
        return self

    size: str = ""
    """Which of its published models it is, where they differ in size."""

    tiny_parts: str = ""
    """A function (folder, family, `toolkit.models.tiny.TinySpec`) that writes the parts
    of a tiny model and returns its transformer, as "module:function". Empty: the family
    has no tiny model."""

    network_maker: str = ""
    """A function (folder, arguments) -> module that makes the trained part with random
    weights, as "module:function". Empty: it cannot be made."""

    def new_network(self, folder: Path, arguments: Mapping[str, Any]) -> nn.Module:
        """The trained part with random weights, fitting the other parts in `folder`. It
        draws from torch's global generator. Raises UserError for arguments that its
        class does not take."""
        if not self.network_maker:
            raise UserError(f"a {self.title} cannot be made with random weights yet.")
        with without_bitsandbytes():
            make = load_object(self.network_maker)
        network: nn.Module = make(folder, arguments)
        return network

    def size_fault(self) -> str:
        """Why the sizes of its published models are not known; empty: they are."""
        return ""

    @abstractmethod
    def linear_layers(self, folder: Path) -> dict[str, tuple[int, int]]:
        """The linear layers of the blocks, which are quantized, full name -> (inputs,
        outputs), from the model's config files alone."""

    @abstractmethod
    def every_linear_layer(self, folder: Path) -> dict[str, tuple[int, int]]:
        """`linear_layers` and the other linear layers of the trained part, which a LoRA
        file may contain."""

    def adapter_layers(self, folder: Path) -> dict[str, tuple[int, int]]:
        """The linear layers that a `network:` section chooses from: `linear_layers`, and
        those outside of the blocks that `lora_outside` names."""
        layers = self.every_linear_layer(folder).items()
        return self.linear_layers(folder) | {
            name: shape
            for name, shape in layers
            if re.fullmatch(self.lora_outside, name)
        }

    @abstractmethod
    def modules(self, folder: Path) -> dict[str, int]:
        """Every module of the trained part with its own parameters, full name -> their
        number."""

    def weight_shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        """Name and shape of each weight of the trained part. Empty: it cannot be given
        as a single file."""
        return {}

    def encoder_weights(self, part: str, folder: Path) -> dict[str, tuple[int, ...]]:
        """Name and shape of each weight of an encoder, as in
        `toolkit.models.encoder_weights`. Empty: not known."""
        return {}

    def block_names(self, folder: Path) -> list[str]:
        """The dotted names of the repeated blocks, in the order in which they run."""
        places = sorted(
            {self.place_of(name)[:2] for name in self.linear_layers(folder)}
        )
        return [f"{self.block_lists[at]}.{index}" for at, index in places if at >= 0]

    @abstractmethod
    def block_count(self, folder: Path) -> int:
        """The number of repeated blocks of the trained part."""

    @abstractmethod
    def footprint(self, folder: Path) -> ModelSizeInfo:
        """Sizes of the whole model, from its config files and the headers of its
        weights alone."""


def arch_of(model: ModelSection) -> str | None:
    """The arch that the model's own files name. For a hub id these are the files in the
    hub cache. None when they are not on this disk."""
    index = local_index(model.name_or_path, model.revision)
    if index is None:
        return None
    fault = ModelFolder(index.parent, model.name_or_path).index_fault()
    if fault:
        raise UserError(f"model.name_or_path: {fault}")
    family = family_of(ModelFolder(index.parent).pipeline())
    return family.arch if family else None


class UnknownFamilyError(UserError):
    """Nothing on this disk says which family a hub model belongs to."""


class AnotherFamilyError(UserError):
    """`model.arch` names another family than the model's own files."""


def family_for(model: ModelSection) -> ModelFamily:
    """The family of a `model:` section. It is found by the model's own files, by
    `arch`, or by the id of a published model.

    Raises UserError when they contradict each other or the family is not supported,
    UnknownFamilyError when none of them tells. A folder that does not exist is taken
    for the first family: an earlier process of the job may write it.

    >>> family_for(ModelConfig(name_or_path="Qwen/Qwen-Image-Edit-2509")).arch
    'qwen_image_edit_plus'
    """
    name = model.name_or_path
    wanted = model.arch
    known = published_family(name)
    detected = arch_of(model) or (known.arch if known else None)
    if detected and wanted and detected != wanted:
        raise AnotherFamilyError(
            f"model.arch: {wanted!r}, but {name} is {detected!r}. Leave it out, or give such a model."
        )
    arch = detected or wanted
    if arch is None and looks_like_a_path(name):
        arch = next(iter(FAMILIES))
    if arch is None:
        raise UnknownFamilyError(
            f"model.name_or_path: {name} is not on this disk, so its family is not known. {near_id(name)}Give "
            f"model.arch, or run 'hf download {name} {INDEX}'."
        )
    family = cast("ModelFamily", family_named(arch))
    index = local_index(name, model.revision)
    if index:
        return family.of_folder(index.parent)
    return family.of_title(title_of(model, family))


def unknown_family(model: ModelSection) -> Iterator[str]:
    """Lines for a plan that cannot be made because the model's family is not known.
    Yields nothing where it is known."""
    try:
        family_for(model)
    except UnknownFamilyError as unknown:
        yield str(unknown).removeprefix("model.name_or_path: ")
        yield f"sizes, buckets and memory are planned at the start, once its {INDEX} is here"


def unlike_distilled(
    family: ModelFacts, steps: int | None, guidance: float | None
) -> Iterator[tuple[str, str]]:
    """`steps` and `guidance` of samples that a distilled model was not made for, each
    with a message. None: not given."""
    count = len(family.sample_sigmas)
    if count and steps and steps != count:
        what = f"{steps}: {family.title} is distilled for its {count} noise levels, which are resampled for other steps"
        yield "steps", f"{what}. Use {count}, or leave it out."
    if count and guidance and guidance > 1:
        what = f"{guidance:g}: {family.title} is distilled for 1; with more, images wash out and take twice as long"
        yield "guidance", f"{what}. Use 1, or leave it out."


def rounded_side(family: ModelFacts, pixels: int | None) -> str:
    """A warning where the model cannot generate images with a side of this many pixels.
    Empty where it can, or for None: not given.

    >>> rounded_side(FAMILIES.load("qwen_image_2"), 1000)
    'the model cannot generate 1000 pixels; images will be generated at 992.'
    """
    drawn = family.drawable(Size(pixels, pixels)).width if pixels else pixels
    if drawn == pixels:
        return ""
    return f"the model cannot generate {pixels} pixels; images will be generated at {drawn}."


def single_file_faults(model: ModelConfig, folder: Path) -> Iterator[tuple[str, str]]:
    """Keys of `model` whose file cannot be used, by its header, each with the reason.
    Yields nothing where the model's family is not known.

    folder: of the model. Where it does not exist, the published sizes count.
    """
    files = single_files(model)
    if not files:
        return
    from toolkit.models.single_file import encoder_file_fault, single_file_fault
    from toolkit.models.vae_files import vae_config_fault

    try:
        family = family_for(model)
    except UserError:  # other rules say so
        return
    expected = family.weight_shapes(folder)
    names = {
        one.title: one.weight_shapes(Path(next(iter(one.published)))).keys()
        for one in published_families()
    }
    for part, file in files.items():
        try:
            is_trained = part == family.trained_part
            of_part = expected if is_trained else family.encoder_weights(part, folder)
            if not of_part:
                fault = f"a {family.title} takes no single file as its {part}. Leave it out."
            elif is_trained:
                fault = single_file_fault(file, family.title, expected, names)
            else:
                fault = encoder_file_fault(file, part, of_part)
            if part == "vae" and not fault:
                fault = vae_config_fault(file, folder / part)
        except UserError as error:
            fault = str(error)
        # the section says so
        if fault and not (part == "vae" and vae_file_fault(str(file))):
            yield f"{part}_path", fault


def title_of(model: ModelSection, family: ModelFamily) -> str:
    """The name of the published model of a section, or of the one it was made from.

    >>> hub_model = ModelConfig(name_or_path="Qwen/Qwen-Image-2512")
    >>> title_of(hub_model, family_for(hub_model))
    'Qwen-Image-2512'
    """
    titles = {name.lower(): title for name, title in family.published.items()}
    return titles.get(model.name_or_path.lower(), family.title)


def published_families() -> list[ModelFamily]:
    """The families that have published models, and whose sizes are written: an
    extension may be at work on its `shapes_file`."""
    return [
        one
        for one in cast("Iterator[ModelFamily]", families())
        if one.published and not one.size_fault()
    ]


def published_members() -> list[ModelFamily]:
    """`published_families`, with one for each size of their published models.

    >>> [one.size for one in published_members() if one.arch == "flux2_klein"]
    ['4B', '9B']
    """
    members: dict[tuple[str, str], ModelFamily] = {}
    for family in published_families():
        for one in (family, *map(family.of_title, family.published.values())):
            members.setdefault((one.arch, one.size), one)
    return list(members.values())


def published_names() -> set[str]:
    """The hub ids of the models that the families were published with."""
    return set(published())


def kept_label(model: ModelConfig) -> str:
    """The label of a section's quantized transformer in the folder where it is kept."""
    return f"{model.public_name()} in {model.qtype}"


def kept_bytes(model: ModelConfig, number_bytes: int) -> int:
    """The approximate bytes on the disk of a section's quantized transformer
    (`model.keep_quantized`). number_bytes: of a weight that is not quantized."""
    facts = family_for(model).footprint(model.files_folder())
    recovery = 0
    if model.makes_recovery():
        layers = family_for(model).linear_layers(model.files_folder())
        recovery = AUTO_RANK * sum(map(sum, layers.values())) * number_bytes
    elif model.accuracy_recovery_adapter and model.recovery_is_path():
        with suppress(OSError):
            recovery = Path(model.accuracy_recovery_adapter).expanduser().stat().st_size
    return (
        facts.stored(facts.linear_params, model.qtype, number_bytes)
        + facts.other_params * number_bytes
        + recovery
    )


def model_bytes(model: ModelConfig) -> int:
    """Bytes of all weights of a model: of its files where they exist, else of the
    published model in bfloat16."""
    from toolkit.models.single_file import shards_of

    family = family_for(model)
    folder = model.files_folder()
    given = single_files(model)
    whole = whole_files(model)
    parts = [part for part in family.weight_parts if part not in whole]
    files = [path for part in parts for path in (folder / part).glob("*.safetensors")]
    shards = (shard for file in given.values() for shard in shards_of(file))
    files += filter(Path.is_file, shards)
    return sum(path.stat().st_size for path in files) or published_bytes(family, folder)


def published_bytes(
    family: ModelFamily, folder: Path, given: Collection[str] = ()
) -> int:
    """Bytes in bfloat16 of a model whose weights are not on this disk, without the
    parts `given`."""
    sizes = family.footprint(folder)
    weights = {
        "transformer": sizes.linear_params + sizes.other_params,
        "text_encoder": sizes.text.linear_params
        + sizes.text.other_params
        + sizes.text.unused,
        "vae": sizes.vae.other_params,
    }
    return 2 * sum(count for part, count in weights.items() if part not in given)


@dataclass(frozen=True)
class Download:
    """The part of a model that a run has to download.

    >>> download = Download(bytes=10**9, folder=Path("hub"), free=2 * 10**9)
    >>> download.why_no_room("Qwen/Qwen-Image")
    ''
    """

    bytes: int | None
    """Bytes that are missing; None: not known before the hub is asked."""

    folder: Path
    free: int
    """Bytes."""

    def why_no_room(self, name: str) -> str:
        """The reason why the model `name` does not fit on the disk. Empty where it
        does, or where its size is not known."""
        reason = why_no_room(name, self.bytes or 0, self.free, self.folder)
        return reason and f"model.name_or_path: {reason}"


def why_no_room(name: str, needed: int, free: int, folder: Path) -> str:
    """The reason why a download of `needed` bytes does not fit into the hub cache
    `folder`. Empty where it does, with 2 % to spare."""
    if free >= needed * 1.02:
        return ""
    return (
        f"{name} needs {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free. "
        "Free some space, or set HF_HOME to a folder on a larger disk."
    )


def download_of(model: ModelConfig, job: JobContext) -> Download | None:
    """The download that a run needs for a model, by the files on this disk; None:
    nothing.

    The size is from the hub's own list, where an earlier download has left one, or from
    the published model.
    """
    name = model.name_or_path
    given = whole_files(model)
    if not next(yet_to_come(model, job), None):
        return None
    total = listed_bytes(name, model.revision, given)
    if total is None and published_family(name):
        total = (
            published_bytes(family_for(model), model.folder(), given) or CONFIG_BYTES
        )
    left = None if total is None else max(0, total - downloaded_bytes(name))
    return Download(left, hub_cache(), free_space(hub_cache()))


def yet_to_come(model: ModelSection, job: JobContext) -> Iterator[str]:
    """A line for the plan where the model's files are not on this disk, so that a dry
    run cannot look at them."""
    name = model.name_or_path
    revision = model.revision
    given = whole_files(model)
    if looks_like_a_path(name) or Path(name).is_dir() or job.will_write(name):
        return
    if cached_snapshot(name, revision, given):
        return
    if given.keys() >= {*SINGLE_FILE_PARTS}:
        yield f"{name}: the run downloads its configs and tokenizer, and no weights"
    elif local_index(name, revision):
        yield f"{name} is not complete in the hub cache: the run downloads the rest"
    else:
        yield f"{name} is not in the hub cache: the run downloads it once its {INDEX} says that it can be trained"
