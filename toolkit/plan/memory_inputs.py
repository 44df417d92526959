"""The inputs of the memory estimate, before anything is loaded: trainable parameters,
the step of one rank, and the largest batch and image. Imports no torch.

The estimates of memory (`job_bytes.py`) and of time (`run_time.py`) are made from them.
A trainer counts its parameters and its largest batch here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import ceil, prod
from pathlib import Path
from typing import NamedTuple

from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.output import SamplePicture
from toolkit.config.sections.train import OptimizationConfig, TrainConfig
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.data import BucketedSample, Size
from toolkit.contracts.network_kinds import KINDS
from toolkit.data.batches.image_data import ImageData
from toolkit.files.safetensors_io import tensor_sizes
from toolkit.memory.estimate import OF_PRODUCTS, StepShape
from toolkit.memory.flops import KERNELS_PER_BLOCK
from toolkit.models.families import ModelFamily, ModelSizeInfo, family_for
from toolkit.networks.targets import select_target_modules
from toolkit.number_types import DTYPE_BYTES, QTYPE_BYTES
from toolkit.optim.optimizer_args import Shape, optimizer_bytes
from toolkit.rounding import ceil_divide
from toolkit.system.distributed_env import read_distributed_env
from toolkit.system.sharded_param import rows_per_rank
from toolkit.train.accumulation import splits_per_micro_batch

FLOAT = 4
"""Bytes of a number in float32."""


@dataclass(frozen=True)
class TrainableParams:
    """The trainable parameters.

    >>> trained = TrainableParams(("to_q",), shapes=((16, 64), (64, 16)), written=2048)
    >>> trained.weights, trained.largest
    (2048, 1024)
    """

    layers: tuple[str, ...]
    """Full names of their layers."""

    shapes: tuple[Shape, ...]
    """Shape of each matrix; a module's biases and norms are one vector."""

    written: int
    """Number of parameters in a saved file: of the whole model where it is trained
    itself."""

    frozen: int = 0
    """Number of weights that are not trained, but are in files and checkpoints."""

    largest_layer: int = 0
    """Number of frozen weights of the largest layer with an adapter."""

    first_block: int = 0
    """Number of blocks that run before the first trained layer: they keep nothing."""

    outside: bool = False
    """Whether layers outside of the blocks are trained or adapted."""

    @property
    def weights(self) -> int:
        return sum(map(prod, self.shapes))

    @property
    def largest(self) -> int:
        """Number of parameters of the largest matrix."""
        return max(map(prod, self.shapes))

    def optimizer_bytes(self, train: TrainConfig) -> int:
        """Bytes of the optimizer state with a `train:` section, for `shapes`."""
        return optimizer_bytes(train.optimizer, train.optimizer_params, self.shapes)

    def state_bytes(self, train: TrainConfig) -> int:
        """Bytes of a checkpoint: raw weights, EMA, optimizer state.

        The raw weights take 2 bytes per weight with `full_bf16`, otherwise 4. The EMA
        is always float32.
        """
        per_weight = 2 if train.full_bf16 else FLOAT
        if train.ema_config.use_ema:
            per_weight += FLOAT
        frozen = (2 if train.full_bf16 else FLOAT) * self.frozen
        return self.weights * per_weight + frozen + self.optimizer_bytes(train)


def count_trainable_params(
    config: DiffusionSection, processes: int = 1
) -> TrainableParams:
    """The trainable parameters of a section.

    processes: ranks that the blocks are sharded over; where the model itself is
    trained, `shapes` are the shapes of rank 0.

    Raises UserError when the section chooses no layer.
    """
    family = family_for(config.model)
    folder = config.model.files_folder()
    if config.network.trains_model:
        modules = family.modules(folder)
        chosen = select_target_modules(config.network, list(modules))
        shapes = tuple(_module_shapes(family, folder, chosen, processes))
        return TrainableParams(
            tuple(chosen),
            shapes,
            sum(modules.values()),
            first_block=_blocks_before(family, folder, chosen),
            outside=_outside(family, chosen),
        )
    layers = family.adapter_layers(folder)
    chosen = select_target_modules(config.network, list(layers), family.lora_layers)
    # few sizes, many layers
    shapes_of = cache(partial(KINDS[config.network.type].layer_shapes, config.network))
    trained, frozen = (
        [
            shape
            for name in chosen
            for shape in shapes_of(*layers[name], frozen).values()
        ]
        for frozen in (False, True)
    )
    return TrainableParams(
        tuple(chosen),
        tuple(trained),
        sum(map(prod, trained + frozen)),
        sum(map(prod, frozen)),
        max(prod(layers[name]) for name in chosen),
        _blocks_before(family, folder, chosen),
        _outside(family, chosen),
    )


def _outside(family: ModelFamily, chosen: Sequence[str]) -> bool:
    return any(family.place_of(f"{name}.")[0] < 0 for name in chosen)


def _blocks_before(family: ModelFamily, folder: Path, chosen: Sequence[str]) -> int:
    first = min(family.place_of(name)[:2] for name in chosen)
    blocks = (family.place_of(f"{name}.")[:2] for name in family.block_names(folder))
    return sum(block < first for block in blocks)


def _module_shapes(
    family: ModelFamily, folder: Path, chosen: list[str], processes: int
) -> Iterator[Shape]:
    modules = family.modules(folder)
    layers = family.every_linear_layer(folder)
    in_blocks = family.linear_layers(folder)
    for name in chosen:
        sharers = processes if name in in_blocks else 1
        inputs, outputs = layers.get(name, (0, 0))
        if inputs:
            yield (rows_per_rank(outputs, sharers), inputs)
        yield (rows_per_rank(modules[name] - inputs * outputs, sharers),)


def step_shape(
    section: DiffusionSection,
    facts: ModelSizeInfo,
    trained: TrainableParams,
    tokens: int,
    compiled: bool = False,
    text_tokens: int = 0,
) -> StepShape:
    """The step of one rank with `tokens` tokens in its largest batch, `text_tokens` of
    which are of texts. trained: the parameters of that rank. compiled: whether the
    blocks are."""
    model = section.model
    train = section.train
    number = DTYPE_BYTES[train.dtype]
    bytes_each = trained_bytes(section)
    # each of these has a pass of its own
    accumulates = share_of_rank(train)[1] > 1 or bool(train.preservations())
    fused = train.fused_backward_pass and not accumulates
    # bytes per weight of a layer's dequantized copies while it is used: see
    # `quantization.py`
    copies: float = 0
    if model.quantize:
        copies = 2 * number if train.dtype == "float16" else number
        if QTYPE_BYTES[model.qtype] < 1:
            copies = number + 1  # the codes, unpacked
        elif model.qtype == "fp8_scaled":
            copies = number + FLOAT
    # a compiled block keeps what it needs for the gradient of its inputs
    blocks = facts.blocks - (0 if compiled else trained.first_block)
    casts = (
        0
        if bytes_each == number or num_shards(train) > 1
        else trained.weights * number // blocks
    )
    return StepShape(
        tokens=tokens,
        width=facts.width,
        blocks=blocks,
        number_bytes=number,
        kind=section.network.type,
        units=facts.activation_units.get(section.network.type),
        dropout=bool(section.network.dropout),
        largest_layer=facts.largest_of_tokens,
        largest_change=trained.largest_layer,
        dequantized_bytes=copies,
        of_products=OF_PRODUCTS.get(model.quantized_products or "", 0),
        kernels=block_kernels(model),
        casts=casts,
        gradients=bytes_each * (trained.largest if fused else trained.weights),
        gradients_wait=accumulates,
        compiled=compiled,
        outside=trained.outside * facts.outside_numbers * text_tokens * number,
    )


def block_kernels(model: ModelConfig) -> int:
    """Kernels that an uncompiled block of the model launches (`KERNELS_PER_BLOCK`)."""
    if model.quantized_products:
        return KERNELS_PER_BLOCK[f"{model.quantized_products} products"]
    return KERNELS_PER_BLOCK[model.qtype if model.quantize else ""]


def num_shards(train: TrainConfig) -> int:
    """Number of ranks that the blocks of the model are sharded over: all ranks with
    `train.parallel: fsdp`, otherwise 1."""
    return read_distributed_env().world_size if train.parallel == "fsdp" else 1


def bytes_beside(section: DiffusionSection) -> int:
    """Bytes of the LoRA files that are active with the network, in the compute dtype. A
    file that does not exist counts as 0; a file that is named twice counts once."""
    files = (lora.file() for lora in section.files_beside().values())
    paths = {Path(file).expanduser() for file in files}
    weights = sum(sum(tensor_sizes(path).values()) for path in paths if path.is_file())
    return weights * DTYPE_BYTES[section.train.dtype]


def trained_bytes(section: DiffusionSection) -> int:
    """Bytes of one trained number, and of its gradient. Adapters are always float32
    (4); a trained model has the dtype of its weights."""
    return (
        DTYPE_BYTES[section.weights_dtype()] if section.network.trains_model else FLOAT
    )


def share_of_rank(train: OptimizationConfig) -> tuple[int, int]:
    """The images of one rank's largest micro-batch, and its micro-batches per optimizer
    step. Both are rounded up. The number of ranks is read from the environment."""
    processes = read_distributed_env().world_size
    # of one micro-batch
    pieces = splits_per_micro_batch(train.gradient_accumulation, processes)
    micro_batches = train.gradient_accumulation * min(pieces, train.batch_size)
    return ceil_divide(train.batch_size, pieces), ceil_divide(micro_batches, processes)


LETTERS_PER_TOKEN = 3
"""Characters per token of a caption; a cautious average."""

LONG_CAPTION = 500
"""Characters of the longest caption of a stream, where only the first captions are
known."""


@dataclass(frozen=True)
class ItemGroup:
    """A number of items that need the same memory.

    >>> size = Size(1024, 1024)
    >>> group = ItemGroup(size, 1, shuffled=False, held_out=False, uses=20, longest=80)
    >>> group.uses * group.bucket.width
    20480
    """

    bucket: Size
    references: int
    shuffled: bool
    """Whether their captions are encoded at each use."""

    held_out: bool
    """Whether they are in the validation split."""

    uses: int
    """Uses per epoch."""

    longest: int
    """Characters of the longest caption."""

    streamed: bool = False
    """Whether they are encoded as they come from a stream."""

    items: int = 1
    """How many they are."""

    layers: int = 0
    """Layers of each image."""


def group_items(
    items: Iterable[BucketedSample], held_out: Iterable[BucketedSample] = ()
) -> tuple[ItemGroup, ...]:
    """Groups items: there may be very many, and the estimate uses them often. held_out:
    the validation split."""
    uses = Counter[_Kind]()
    count = Counter[_Kind]()
    longest: dict[_Kind, int] = {}
    for split, is_held_out in ((items, False), (held_out, True)):
        for item in split:
            kind = _kind_of(item, is_held_out)
            uses[kind] += item.sample.repeats
            count[kind] += 1
            longest[kind] = max(longest.get(kind, 0), *map(len, item.sample.texts))
    return tuple(
        ItemGroup(
            **kind._asdict(), uses=uses[kind], longest=longest[kind], items=number
        )
        for kind, number in count.items()
    )


class _Kind(NamedTuple):
    """What the items of a group have in common, as in `ItemGroup`."""

    bucket: Size
    references: int
    shuffled: bool
    held_out: bool
    layers: int


def _kind_of(item: BucketedSample, held_out: bool) -> _Kind:
    sample = item.sample
    layers = len(sample.layers)
    return _Kind(
        bucket=item.crop.bucket,
        references=len(sample.control_images)
        or min(layers, 1),  # an image with layers is its own control image
        shuffled=sample.rules.shuffle_tokens,
        held_out=held_out,
        layers=layers,
    )


def groups_of(section: DiffusionSection, data: ImageData) -> tuple[ItemGroup, ...]:
    """What is trained on and held out; of a stream the largest batch stands for what is
    trained on."""
    if data.stream is None:
        return group_items(data.items, data.held_out)
    longest = max(
        LONG_CAPTION, *(len(sample.caption) for sample in data.stream.looked_at)
    )
    largest = ItemGroup(
        data.stream.largest,
        0,
        True,
        False,
        section.train.batch_size,
        longest,
        streamed=True,
    )
    return (largest, *group_items((), data.held_out))


@dataclass(frozen=True)
class LargestBatch:
    """The batch or image with the most tokens.

    >>> area = 1024 * 1024
    >>> LargestBatch(2, area, 1, area, text_tokens=100, pixels_per_token=256).tokens
    16584
    """

    images: int
    pixels: int
    """Pixels of one image of a target."""

    references: int
    reference_pixels: int
    text_tokens: int
    """Tokens of the text of one image."""

    encoder_tokens: int = 0
    """Further tokens that the text encoder has for the references of an image."""

    pixels_per_token: int = 1
    stacked: int = 1
    """Images of a target."""

    @property
    def tokens_of_image(self) -> int:
        """Tokens of an image in the transformer: text, references and the target."""
        references = self.references * self.reference_pixels // self.pixels_per_token
        target = self.stacked * self.pixels // self.pixels_per_token
        return references + self.text_tokens + target

    @property
    def tokens(self) -> int:
        """Tokens of the batch in the transformer."""
        return self.images * self.tokens_of_image


class BatchSizes:
    """Pixels and tokens of training batches and samples.

    Example::

        sizes = BatchSizes(section, facts, group_items(data.items, data.held_out))
        tokens = sizes.batch(most=section.train.batch_size).tokens
    """

    def __init__(
        self,
        section: DiffusionSection,
        facts: ModelSizeInfo,
        groups: Sequence[ItemGroup],
    ) -> None:
        self._section = section
        self._facts = facts
        self._groups = groups
        self._reference_area = 0  # control images have as many pixels as the target
        if facts.scales_references:
            self._reference_area = section.model.model_kwargs.reference_area()

    def batch(self, most: int) -> LargestBatch:
        """The batch of one rank with the most tokens. most: images in a batch of one
        rank."""
        groups = [group for group in self._groups if not group.held_out]
        uses = Counter[tuple[Size, int]]()
        for group in groups:
            uses[group.bucket, group.layers] += group.uses
        batches = [
            self.of_group(group, min(most, uses[group.bucket, group.layers]))
            for group in groups
        ]
        return max(batches, key=lambda batch: batch.tokens)

    def samples(self) -> list[LargestBatch]:
        """The sample images, generated one at a time; guidance is a second pass, not a
        larger one."""
        if self._section.train.disable_sampling:
            return []
        return list(map(self.of_picture, self._section.sample_pictures()))

    def of_picture(self, item: SamplePicture) -> LargestBatch:
        """A sample image, with the layers it is taken apart into."""
        image = self._image(
            1, item.width * item.height, len(item.ctrl_img), len(item.prompt)
        )
        layers = item.layers if self._facts.stacks_layers else 0
        return replace(image, stacked=self._images_of(layers))

    def of_group(self, group: ItemGroup, images: int = 1) -> LargestBatch:
        """A batch of a group. images: number of images in it."""
        batch = self._image(images, prod(group.bucket), group.references, group.longest)
        return replace(batch, stacked=self._images_of(group.layers))

    def _images_of(self, layers: int) -> int:
        """Images of a target. layers: of the image; 0: it is a single image."""
        if not layers:
            return 1
        if self._section.model.model_kwargs.composite_target:
            return layers + 1
        return layers

    def _image(
        self, images: int, pixels: int, references: int, letters: int
    ) -> LargestBatch:
        """letters: characters of the caption, which has the template and the references
        around it."""
        facts = self._facts
        reference_pixels = 0
        encoder_tokens = 0
        if references:
            reference_pixels = self._reference_area or pixels
        if facts.encoder_token_pixels:
            encoder_tokens = references * reference_pixels // facts.encoder_token_pixels
        caption_tokens = ceil(letters / LETTERS_PER_TOKEN)
        return LargestBatch(
            images=images,
            pixels=pixels,
            references=references,
            reference_pixels=reference_pixels,
            text_tokens=facts.text_tokens
            + facts.text_tokens_per_reference * references
            + caption_tokens,
            encoder_tokens=encoder_tokens,
            pixels_per_token=facts.pixels_per_token,
        )
