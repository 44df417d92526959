"""The bytes of a job's parts, before a checkpointing level is chosen. Imports no torch.

`read_job` asks the model's family, the trainable parameters and the images once, and
returns one frozen `JobBytes`. `memory_phases.py` adds its numbers up for each phase of
a run. `plan_memory` calls both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.config.sections.model import AUTO_RANK
from toolkit.config.sections.model_files import whole_files
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import RunError
from toolkit.files.mapped import unsure_disk
from toolkit.files.writing import CACHE_FOLDER
from toolkit.memory.estimate import StepShape
from toolkit.models.families import (
    LOOKAHEAD_BATCHES,
    TEXTS_IN_MEMORY,
    ModelFamily,
    ModelSizeInfo,
    TextLayers,
    family_for,
)
from toolkit.models.folder_family import with_single_files
from toolkit.models.kept import MODELS
from toolkit.number_types import DTYPE_BYTES
from toolkit.plan.kept_model import kept_outlook
from toolkit.plan.memory_inputs import (
    FLOAT,
    BatchSizes,
    ItemGroup,
    LargestBatch,
    TrainableParams,
    bytes_beside,
    count_trainable_params,
    num_shards,
    share_of_rank,
    step_shape,
    trained_bytes,
)
from toolkit.system.distributed import BUCKET_BYTES
from toolkit.system.distributed_env import read_distributed_env

WHOLE_BLOCKS = 2
"""Blocks that are unsharded at a time with `train.parallel: fsdp`: one runs, the next
one is prefetched."""

OPTIMIZER_TEMPS = 4
"""Float32 copies of the largest parameter that `full_bf16` and Adafactor allocate;
others need one or none."""

STEPS_IN_PLACE = frozenset({"adamw", "adam", "sgd"})
"""Optimizers whose step needs no copies: torch's fused ones, and SGD."""

LAYER_COPIES = 2
"""Layers of the text encoder in main memory while one is copied out of its file."""

QUANTIZING_COPIES = 4
"""Copies of a layer, in the dtype of the weights, while it is quantized."""


@dataclass(frozen=True)
class ModelBytes:
    """The transformer. Sizes are bytes, of the whole model unless stated otherwise.

    Example::

        job = read_job(section, groups, on_gpu=True, compiled=False)
        bytes_of_a_block = job.model.blocks // job.model.block_count
    """

    block_count: int
    blocks: int
    """The linear layers of all blocks, as they are stored: quantized, or in the dtype
    of the weights."""

    others: int
    """All other weights."""

    recovery: int
    """The accuracy-recovery adapter."""

    narrowed: int
    """By how much a trained model is smaller because its frozen weights are in the
    compute dtype."""

    can_tabulate: bool
    """Whether the modulation cache can be used with what is trained."""

    tabulated: int
    """The layers that the modulation cache replaces."""

    table_row: int
    """One row of the modulation cache: the outputs of those layers for one noise
    level."""

    swapped_blocks: int
    """Number of blocks that wait in main memory."""

    is_mapped: bool
    """Whether weights that wait are mapped from the kept model."""

    unsure_disk: str
    """The disk of the kept model, if mapping from it is a risk (`unsure_disk`)."""

    shards: int
    """Number of ranks that the blocks are sharded over."""

    whole_blocks: int
    """Blocks of a sharded model that are whole at a time; 0: it is not sharded."""

    quantizing: int | None
    """One block, with the copies of the layer that is quantized on the device; None:
    nothing is quantized there."""

    largest_layer: int
    """The largest layer of a block in its original precision."""

    block_on_host: int
    """One block in main memory: as it is read, or with the copies of the layer that is
    quantized there."""

    file_of_block: int
    """One block in the model's file, whose pages count as this process's on a CPU; 0 on
    a GPU."""


@dataclass(frozen=True)
class TrainingBytes:
    """What is trained, and what training it takes on one rank. Sizes are bytes.

    Example::

        training = read_job(section, groups, on_gpu=True, compiled=False).training
        print(training.kind, training.adapter + training.optimizer)
    """

    kind: str
    """`network.type`."""

    adapter: int
    """The weights of an adapter; 0: the model itself is trained."""

    files_beside: int
    """LoRA files that are active with the network."""

    average: int
    """The average of the weights (`ema_config`)."""

    swapped_average: int
    """The part of the average that is in main memory, because its blocks are."""

    ema_backup: int
    """The trained weights, which are kept while the average is swapped in for
    samples."""

    optimizer: int
    """The state of the optimizer."""

    temporaries: int
    """Copies that the optimizer makes of a parameter in its step."""

    fused_temporaries: int
    """The same with `fused_backward_pass`, which steps while gradients are computed;
    otherwise 0."""

    exchanged: int
    """Gradients that ranks exchange at a time."""

    block_gradients: int
    """Gradients of one sharded block, before and after the reduction."""

    saved: int
    """Copies in main memory of what is being saved."""

    saves_early: bool
    """Whether something is saved while training continues."""


@dataclass(frozen=True)
class EncoderBytes:
    """The VAE and the text encoder. Sizes are bytes.

    Example::

        encoders = read_job(section, groups, on_gpu=True, compiled=False).encoders
        print(encoders.vae + encoders.image, encoders.text + encoders.prompt)
    """

    vae: int
    text: int
    """The loaded text encoder."""

    text_file: int
    """Its file; parts of it may not be used."""

    text_read: int
    """Main memory while texts are encoded: layers as they are read, and the prompts
    that wait."""

    text_layer: tuple[float, float] | None
    """(one layer, its activations) for the prompt that takes most; None: the text
    encoder is loaded whole."""

    prompt: int
    """Activations of the longest prompt in a text encoder that is loaded whole."""

    image: float
    """Activations of the largest image in the VAE."""

    image_ahead: float
    """The same for the images of a stream that are encoded during a step; 0: there are
    none."""

    prompt_ahead: float
    """The same for their captions."""

    vae_stays: bool
    """Whether the VAE stays loaded: for samples, or for a stream."""

    text_stays: bool
    """Whether the text encoder stays loaded: for captions that are encoded at each
    use."""

    off_device: bool
    """Whether encoders are in main memory while they are not used (`model.low_vram` on
    a GPU)."""


@dataclass(frozen=True)
class JobBytes:
    """The bytes of a section on a machine that do not depend on the checkpointing
    level. On the CPU all are in one memory.

    Example::

        job = read_job(section, groups, on_gpu=True, compiled=False)
        by_phase = phases(job, choose(job, "full", table=True))
    """

    on_gpu: bool
    processes: int
    lookahead_rows: int
    """Rows of the modulation cache that the first step has."""

    model: ModelBytes
    training: TrainingBytes
    encoders: EncoderBytes
    step: StepShape
    """The largest step of one rank."""

    samples: float | None
    """Activations of the largest sample image, in bytes; None: there are no samples."""


def read_job(
    section: DiffusionSection, groups: Sequence[ItemGroup], on_gpu: bool, compiled: bool
) -> JobBytes:
    """The bytes of a job. compiled: whether the blocks are compiled, by inductor.

    Raises UserError or RunError where a file of the model cannot be read.
    """
    family = family_for(section.model)
    folder = section.model.files_folder()
    facts = with_single_files(family.footprint(folder), whole_files(section.model))
    shards = num_shards(section.train)
    trained = count_trainable_params(section, shards)
    all_trained = trained if shards == 1 else count_trainable_params(section)
    sizes = BatchSizes(section, facts, groups)
    images = _Images(
        training=sizes.batch(share_of_rank(section.train)[0]),
        samples=sizes.samples(),
        held_out=[sizes.of_group(group) for group in groups if group.held_out],
        items=[(sizes.of_group(group), group.items) for group in groups],
        is_streamed=any(group.streamed for group in groups),
        is_shuffled=any(group.shuffled for group in groups),
    )
    inputs = _Inputs(
        section, family, folder, facts, shards, trained, all_trained, images, on_gpu
    )
    batch = images.training
    step = step_shape(
        section,
        facts,
        trained,
        batch.tokens,
        compiled,
        batch.images * batch.text_tokens,
    )
    return JobBytes(
        on_gpu=on_gpu,
        processes=read_distributed_env().world_size,
        lookahead_rows=LOOKAHEAD_BATCHES * section.train.batch_size,
        model=_model_bytes(inputs),
        training=_training_bytes(inputs),
        encoders=_encoder_bytes(inputs),
        step=step,
        samples=_drawing(inputs, step, images.samples),
    )


@dataclass(frozen=True)
class _Images:
    """The largest batches and images of a job."""

    training: LargestBatch
    samples: Sequence[LargestBatch]
    held_out: Sequence[LargestBatch]
    items: Sequence[tuple[LargestBatch, int]]
    """One image of each group, and the number of images in the group."""

    is_streamed: bool
    is_shuffled: bool

    @property
    def encoded(self) -> Sequence[LargestBatch]:
        """All that are encoded before the training."""
        return [self.training, *self.samples, *self.held_out]


@dataclass(frozen=True)
class _Inputs:
    """All that the records are made from."""

    section: DiffusionSection
    family: ModelFamily
    folder: Path
    facts: ModelSizeInfo
    shards: int
    trained: TrainableParams
    """The trainable parameters of rank 0."""

    all_trained: TrainableParams
    """The trainable parameters of all ranks together."""

    images: _Images
    on_gpu: bool

    @property
    def number_bytes(self) -> int:
        """Bytes of a number in the compute dtype."""
        return DTYPE_BYTES[self.section.train.dtype]

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight of the model that is not quantized."""
        return DTYPE_BYTES[self.section.weights_dtype()]

    @property
    def qtype(self) -> str | None:
        """The quantized type of the model; None: it is not quantized."""
        return self.section.model.qtype if self.section.model.quantize else None

    @property
    def off_device(self) -> bool:
        """Whether encoders, and blocks while they are quantized, are in main memory
        beside a GPU."""
        return self.on_gpu and self.section.model.low_vram


# ------------------------------------------------------------ the model


def _model_bytes(inputs: _Inputs) -> ModelBytes:
    facts = inputs.facts
    blocks = facts.stored(facts.linear_params, inputs.qtype, inputs.weight_bytes)
    others = facts.other_params * inputs.weight_bytes
    block_weights = facts.linear_params // facts.blocks
    weights_while_quantized = block_weights + QUANTIZING_COPIES * facts.largest_layer
    quantizing = None
    block_on_host = block_weights * inputs.weight_bytes
    if inputs.qtype and not inputs.off_device:
        quantizing = weights_while_quantized * inputs.weight_bytes
    elif inputs.qtype:
        block_on_host = weights_while_quantized * inputs.weight_bytes
    whole_blocks = (
        WHOLE_BLOCKS * block_weights * inputs.number_bytes if inputs.shards > 1 else 0
    )
    is_mapped = _is_mapped(inputs)
    cache = Path(inputs.section.training_folder).expanduser() / CACHE_FOLDER
    return ModelBytes(
        block_count=facts.blocks,
        blocks=blocks,
        others=others,
        recovery=_recovery_bytes(inputs),
        narrowed=_narrowed_bytes(inputs),
        can_tabulate=_can_tabulate(inputs),
        tabulated=facts.stored(
            facts.tabulated_weights, inputs.qtype, inputs.weight_bytes
        ),
        table_row=facts.row_numbers * inputs.number_bytes,
        swapped_blocks=min(inputs.section.model.blocks_to_swap, facts.blocks),
        is_mapped=is_mapped,
        unsure_disk=unsure_disk(cache / MODELS) if is_mapped else "",
        shards=inputs.shards,
        whole_blocks=whole_blocks,
        quantizing=quantizing,
        largest_layer=facts.largest_layer * inputs.weight_bytes,
        block_on_host=block_on_host,
        file_of_block=0 if inputs.on_gpu else _file_bytes(inputs) // facts.blocks,
    )


def _recovery_bytes(inputs: _Inputs) -> int:
    """Bytes of the accuracy-recovery adapter of a quantized model."""
    model = inputs.section.model
    if not inputs.qtype:
        return 0
    if model.makes_recovery():
        layers = inputs.family.linear_layers(inputs.folder)
        return AUTO_RANK * sum(map(sum, layers.values())) * inputs.weight_bytes
    file = Path(model.accuracy_recovery_adapter or "-").expanduser()
    return file.stat().st_size if file.is_file() else 0


def _narrowed_bytes(inputs: _Inputs) -> int:
    """Frozen weights of a trained model are in the compute dtype, not in that of its
    trained weights."""
    if not inputs.section.network.trains_model:
        return 0
    frozen = (
        inputs.facts.linear_params
        + inputs.facts.other_params
        - inputs.all_trained.weights
    )
    return frozen * (inputs.weight_bytes - inputs.number_bytes)


def _can_tabulate(inputs: _Inputs) -> bool:
    """Whether the modulation cache can be used: as
    `modulation_cache.check_modulation_frozen` decides."""
    kind = KINDS[inputs.section.network.type]
    unfit: frozenset[str] = frozenset()
    if kind.needs_base or kind.trains_model:
        unfit |= inputs.facts.modulation_layers
    if kind.trains_model:
        unfit |= inputs.facts.table_inputs
    return inputs.shards == 1 and unfit.isdisjoint(inputs.trained.layers)


def _is_mapped(inputs: _Inputs) -> bool:
    """Whether weights that wait in main memory are mapped from the kept model."""
    if inputs.shards > 1 or not inputs.section.maps_kept():
        return False
    kept_model = kept_outlook(inputs.section)
    return kept_model is not None and not kept_model.lack


def _file_bytes(inputs: _Inputs) -> int:
    """Bytes of the files of the trained part."""
    folder = inputs.folder / inputs.family.trained_part
    try:
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be read: {error.strerror or error}"
        ) from error


# ------------------------------------------------------------ the training


def _training_bytes(inputs: _Inputs) -> TrainingBytes:
    section = inputs.section
    train = section.train
    in_float32 = FLOAT * inputs.trained.weights
    average = in_float32 if train.ema_config.use_ema else 0
    ema_backup = (
        inputs.trained.weights * trained_bytes(section)
        if train.ema_config.use_ema
        else 0
    )
    temporaries = _temporaries(inputs)
    return TrainingBytes(
        kind=section.network.type,
        adapter=0 if section.network.trains_model else in_float32,
        files_beside=bytes_beside(section) if section.files_beside() else 0,
        average=average,
        swapped_average=_swapped_average(inputs, average),
        ema_backup=ema_backup,
        optimizer=inputs.trained.optimizer_bytes(train),
        temporaries=temporaries,
        fused_temporaries=temporaries if train.fused_backward_pass else 0,
        exchanged=_exchanged_bytes(inputs),
        block_gradients=_block_gradients(inputs),
        saved=_saved_bytes(inputs),
        saves_early=_saves_early(inputs),
    )


def _temporaries(inputs: _Inputs) -> int:
    """Bytes that an optimizer which steps one parameter after the other allocates."""
    train = inputs.section.train
    if train.optimizer in STEPS_IN_PLACE and not train.full_bf16:
        return 0
    return OPTIMIZER_TEMPS * FLOAT * inputs.trained.largest


def _swapped_average(inputs: _Inputs, average: int) -> int:
    """Bytes of the average of swapped blocks, which is made where their weights are."""
    if not (average and inputs.section.network.trains_model and inputs.on_gpu):
        return 0
    of_all_blocks = FLOAT * inputs.facts.linear_params
    return min(
        average,
        of_all_blocks * inputs.section.model.blocks_to_swap // inputs.facts.blocks,
    )


def _exchanged_bytes(inputs: _Inputs) -> int:
    """Bytes of a bucket of gradients during all-reduce."""
    if read_distributed_env().world_size == 1:
        return 0
    bucket = min(
        BUCKET_BYTES + FLOAT * inputs.trained.largest, FLOAT * inputs.trained.weights
    )
    if trained_bytes(inputs.section) == FLOAT:
        return bucket
    return 2 * bucket  # and its copy in float32


def _block_gradients(inputs: _Inputs) -> int:
    """Bytes of one sharded block's gradients: as computed, and input and output of the
    reduction."""
    if inputs.shards == 1 or not inputs.section.network.trains_model:
        return 0
    block_weights = inputs.facts.linear_params // inputs.facts.blocks
    return block_weights * (inputs.number_bytes + 2 * FLOAT)


def _saves_early(inputs: _Inputs) -> bool:
    every, by_epochs = inputs.section.save.interval()
    return bool(by_epochs) or 0 < every < (inputs.section.train.steps or every + 1)


def _saved_bytes(inputs: _Inputs) -> int:
    """Bytes that rank 0 copies from all ranks, to write them while training
    continues."""
    save = inputs.section.save
    train = inputs.section.train
    is_sharded = inputs.shards > 1 and inputs.section.network.trains_model
    saved = 0
    if not save.mem_eff_save and not (is_sharded and inputs.section.saves_folders):
        files = 2 if "raw" in save.also and train.ema_config.use_ema else 1
        saved += files * inputs.all_trained.written * DTYPE_BYTES[save.dtype]
    # A sharded state is written row by row; the weights outside the blocks are few.
    if not is_sharded and save.states != "never":
        saved += inputs.all_trained.state_bytes(train)
    return saved


# ------------------------------------------------------------ the encoders, and what
# they encode


def _encoder_bytes(inputs: _Inputs) -> EncoderBytes:
    model = inputs.section.model
    facts = inputs.facts
    images = inputs.images
    number_bytes = inputs.number_bytes
    weight_bytes = (
        facts.bytes_per_weight[model.qtype_te] if model.quantize_te else number_bytes
    )
    off_device = inputs.off_device
    text_file = (
        facts.text.linear_params + facts.text.other_params + facts.text.unused
    ) * number_bytes
    text_read = text_file
    text_layer = None
    if layers := facts.text_layers:
        text_read = _layers_read(inputs, layers)
        taken = []
        for image in images.encoded:
            tokens = tokens_of(image)
            image_tokens = _image_tokens(facts, image)
            taken.append(layers.taken(tokens, image_tokens, weight_bytes, number_bytes))
        text_layer = max(taken, key=sum)
    pixels = max(max(image.pixels, image.reference_pixels) for image in images.encoded)
    image_ahead = prompt_ahead = 0.0
    threads = max(dataset.num_workers for dataset in inputs.section.datasets)
    if images.is_streamed and threads and not off_device:
        image_ahead = facts.encoding(images.training.pixels) * number_bytes
        prompt_ahead = (
            tokens_of(images.training) * facts.text_token_numbers * number_bytes
        )
    return EncoderBytes(
        vae=facts.vae.stored(number_bytes, number_bytes),
        text=facts.text.stored(weight_bytes, number_bytes),
        text_file=text_file,
        text_read=text_read,
        text_layer=text_layer,
        prompt=max(map(tokens_of, images.encoded))
        * facts.text_token_numbers
        * number_bytes,
        image=facts.encoding(pixels) * number_bytes,
        image_ahead=image_ahead,
        prompt_ahead=prompt_ahead,
        vae_stays=bool(images.samples) or images.is_streamed,
        text_stays=images.is_shuffled,
        off_device=off_device,
    )


def _layers_read(inputs: _Inputs, layers: TextLayers) -> int:
    """Bytes of main memory while texts are encoded layer by layer: layers as they are
    read, and what waits."""
    facts = inputs.facts
    images = inputs.images
    prompts = [(image, 1) for image in images.samples]
    prompts += images.items
    waiting = 0
    for image, count in prompts:
        numbers = layers.waiting(
            tokens_of(image), _image_tokens(facts, image), facts.text_width
        )
        waiting += count * numbers * inputs.number_bytes
    layer = layers.largest.stored(inputs.number_bytes, inputs.number_bytes)
    return LAYER_COPIES * layer + min(waiting, TEXTS_IN_MEMORY)


def tokens_of(image: LargestBatch) -> int:
    """Tokens that the text encoder has for a prompt."""
    return image.text_tokens + image.encoder_tokens


def _image_tokens(facts: ModelSizeInfo, image: LargestBatch) -> int:
    """Tokens that the text encoder has for the control images of a prompt."""
    return image.encoder_tokens or image.references * facts.text_tokens_per_reference


def _drawing(
    inputs: _Inputs, step: StepShape, images: Sequence[LargestBatch]
) -> float | None:
    """Activations of the largest of these images, in a forward pass or in the decoder;
    None: there are no images."""
    if not images:
        return None
    decoding = (
        inputs.facts.decoding(max(image.pixels for image in images))
        * inputs.number_bytes
    )
    passes = [replace(step, tokens=image.tokens).forward() for image in images]
    return max(decoding, *passes)
