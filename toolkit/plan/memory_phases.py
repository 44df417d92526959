"""The bytes of each phase of a run, by consumer: sums over a `JobBytes` and a `Choice`.
Imports no torch.

Each function returns what one phase takes on the compute device, without the process
itself; `host` returns what main memory takes beside a GPU. On the CPU there is one
memory, and the parts that would be in main memory are in the phases. `memory_plan.py`
calls `choose` and `phases` for each level that it tries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from toolkit.memory.estimate import gaps_on_gpu, step_peak
from toolkit.models.families import MOST_ROWS
from toolkit.plan.job_bytes import EncoderBytes, JobBytes
from toolkit.plan.memory import (
    ENCODING,
    PROCESS_BASELINE_WITH_CUDA,
    Bytes,
    Part,
    adapter_part,
    gaps_on_host,
    held_of,
    positive,
)
from toolkit.system.host_memory import pinned_bytes

TABULATED_LAYERS = 2
"""Layers of a block that the modulation cache replaces."""

SWAP_BUFFERS = 2
"""Number of device buffers for swapped blocks."""

WINDOW = 2
"""Blocks in pinned memory on their way from the kept model to the device
(`PinnedWindow`)."""


@dataclass(frozen=True)
class Choice:
    """A checkpointing level with or without the modulation cache, and the bytes that
    follow from it.

    Example::

        choice = choose(job, "full", table=True)
        training = phases(job, choice)["training"]
    """

    level: str
    has_table: bool
    tabulated: int
    """The modulation layers that wait in main memory because the cache replaces them; 0
    without it."""

    tabulated_layer: int
    """One of these layers."""

    block: int
    """One block at rest, without them."""


def choose(job: JobBytes, level: str, table: bool) -> Choice:
    """The choice of a level. table: whether the modulation cache is wanted; a job may
    not allow it. On a CPU `block_offload` becomes `full`."""
    if level == "block_offload" and not job.on_gpu:
        level = "full"  # nothing leaves the memory on a CPU
    model = job.model
    has_table = table and model.can_tabulate
    tabulated = model.tabulated if has_table else 0
    return Choice(
        level=level,
        has_table=has_table,
        tabulated=tabulated,
        tabulated_layer=tabulated // (TABULATED_LAYERS * model.block_count),
        block=(model.blocks - tabulated) // model.block_count,
    )


def phases(job: JobBytes, choice: Choice) -> dict[str, Bytes]:
    """Phase -> its bytes on the compute device, in the order of a run. The phase of
    samples is left out where the job makes none. On a GPU saving takes main memory
    alone (`host`)."""
    few_rows = job.lookahead_rows
    all_rows = max(few_rows, MOST_ROWS)
    optimizer = job.training.optimizer
    by_phase = {
        ENCODING: encoding(job),
        "loading": loading(job, choice),
        "first step": step(job, choice, optimizer=0, rows=few_rows),
        "training": step(job, choice, optimizer, all_rows),
    }
    if not job.on_gpu:
        if job.training.saves_early:
            by_phase["training"][Part.SAVED] = job.training.saved
        by_phase["saving"] = saving(job, choice, all_rows)
    if job.samples is not None:
        by_phase["sampling"] = {
            **at_rest(job, choice, optimizer, all_rows),
            Part.EMA_BACKUP: job.training.ema_backup,
            **drawing(job, job.samples),
        }
    return by_phase


# ------------------------------------------------------------ before the first step


def encoding(job: JobBytes) -> Bytes:
    """Bytes while images or texts are encoded, whichever takes more. This comes first,
    without the transformer.

    The VAE leaves the device for a text encoder that is read layer by layer; for one
    that is loaded whole only with `low_vram`.
    """
    encoders = job.encoders
    of_images: Bytes = {Part.VAE: encoders.vae, **_with_gaps(job, encoders.image)}
    of_texts = (
        _layer_by_layer(job, *encoders.text_layer)
        if encoders.text_layer
        else _whole_encoder(job)
    )
    return max(of_images, of_texts, key=lambda parts: sum(parts.values()))


def _layer_by_layer(job: JobBytes, layer: float, prompt: float) -> Bytes:
    parts: Bytes = {Part.TEXT_LAYER: layer, **_with_gaps(job, prompt)}
    if not job.on_gpu:
        parts[Part.TEXT_READ] = job.encoders.text_read
    return parts


def _whole_encoder(job: JobBytes) -> Bytes:
    encoders = job.encoders
    parts: Bytes = {
        Part.TEXT: encoders.text,
        Part.VAE: 0 if encoders.off_device else encoders.vae,
        **_with_gaps(job, encoders.prompt),
    }
    if not job.on_gpu:  # the file is larger than what is loaded of it
        parts[Part.TEXT_READ] = (
            encoders.text_file - encoders.text - _held(job, encoders.prompt)
        )
    return parts


def loading(job: JobBytes, choice: Choice) -> Bytes:
    """Bytes while the last block is loaded, which is in its original precision until it
    is quantized or sharded."""
    parts = weights(job, choice, buffers=0) | _encoders_on_device(job.encoders)
    parts[Part.QUANTIZED_BLOCK] = _being_quantized(job, choice)
    parts[Part.FILE] = job.model.file_of_block
    return parts


def _being_quantized(job: JobBytes, choice: Choice) -> float:
    """Bytes of a block in its original precision, without its quantized weights; 0 where
    none is quantized."""
    if job.model.quantizing is None:
        return 0
    return job.model.quantizing - choice.block - job.model.others


# ------------------------------------------------------------ steps and samples


def step(job: JobBytes, choice: Choice, optimizer: int, rows: int) -> Bytes:
    """The worse of two moments: the backward pass, or all gradients during all-reduce
    and optimizer step.

    optimizer: bytes of its state before the step, which creates it. rows: of the
    modulation cache.
    """
    training = job.training
    gaps = partial(_gaps(job), level=choice.level)
    activations, gradients = step_peak(job.step, choice.level, gaps)
    work: Bytes = {
        **_with_gaps(job, activations, choice.level),
        Part.GRADIENTS: gradients,
        Part.BLOCK_GRADIENTS: training.block_gradients,
        Part.TEMPORARIES: training.fused_temporaries,
    }
    temporaries = max(training.exchanged, training.temporaries)
    new_state = training.optimizer - optimizer
    if sum(work.values()) < job.step.gradients + temporaries + new_state:
        work = {
            Part.GRADIENTS: job.step.gradients,
            Part.TEMPORARIES: temporaries,
            Part.OPTIMIZER: training.optimizer,
        }
    if job.encoders.image_ahead:  # one encoder at a time
        ahead = max(
            _held(job, job.encoders.image_ahead), _held(job, job.encoders.prompt_ahead)
        )
        work[Part.ENCODING_AHEAD] = ahead
    if not job.on_gpu:
        work |= offloaded(job, choice)
        # glibc holds what loading has freed; activations that are kept lie between the
        # copies of dequantized layers, which leave as much again
        freed = _being_quantized(job, choice) * (1 + (choice.level == "none"))
        work[Part.GAPS] = work.get(Part.GAPS, 0) + held_of(
            freed, job.model.largest_layer
        )
    return at_rest(job, choice, optimizer, rows) | work


def saving(job: JobBytes, choice: Choice, rows: int) -> Bytes:
    """Bytes on a CPU while the last file and state are copied. glibc holds what
    activations, gradients and quantizing have freed. rows: of the modulation cache."""
    gaps = _gaps(job)
    held = held_of(_being_quantized(job, choice), job.model.largest_layer)
    activations, _ = step_peak(
        job.step, choice.level, partial(gaps, level=choice.level)
    )
    return {
        **at_rest(job, choice, job.training.optimizer, rows),
        Part.GAPS: gaps(activations, choice.level) + job.step.gradients + held,
        Part.SAVED: job.training.saved,
    }


def offloaded(job: JobBytes, choice: Choice) -> Bytes:
    """Activations that wait in main memory for the backward pass; empty with a level
    that offloads none."""
    waiting = job.step.kept_on_host(choice.level)
    return {Part.OFFLOADED: waiting} if waiting else {}


def drawing(job: JobBytes, activations: float) -> Bytes:
    """Bytes of generating an image, without the weights of the transformer. The VAE is
    on the device while it decodes, with `low_vram` too. activations: in bytes."""
    return {Part.VAE: job.encoders.vae, **_with_gaps(job, activations)}


# ------------------------------------------------------------ what is in memory between
# two steps


def at_rest(job: JobBytes, choice: Choice, optimizer: int, rows: int) -> Bytes:
    """Bytes between two steps. optimizer: bytes of its state. rows: of the modulation
    cache."""
    training = job.training
    table = 0
    if choice.has_table:
        table = rows * job.model.table_row
        if job.on_gpu:
            table += SWAP_BUFFERS * choice.tabulated_layer
    return {
        **weights(job, choice),
        Part.TABLE: table,
        adapter_part(training.kind): training.adapter,
        Part.FILES_BESIDE: training.files_beside,
        Part.OPTIMIZER: optimizer,
        **_encoders_on_device(job.encoders),
        Part.AVERAGE: training.average - training.swapped_average,
    }


def weights(job: JobBytes, choice: Choice, buffers: int = SWAP_BUFFERS) -> Bytes:
    """Bytes of the transformer on the compute device; on the CPU also the bytes of
    `waiting`. buffers: device buffers for swapped blocks."""
    model = job.model
    blocks = model.blocks - model.narrowed
    others = model.others + model.recovery
    parts: Bytes = {}
    if model.shards > 1:
        parts[Part.WEIGHTS] = blocks // model.shards + others
        parts[Part.WHOLE_BLOCKS] = model.whole_blocks
    else:
        swapped = max(0, model.swapped_blocks - buffers) * choice.block
        parts[Part.WEIGHTS] = blocks + others - choice.tabulated - swapped
    if not job.on_gpu:
        parts |= waiting(job, choice)
    return parts


def waiting(job: JobBytes, choice: Choice) -> Bytes:
    """The bytes that are in main memory all the time. A block stays there while it is
    in a buffer on the device."""
    model = job.model
    pinned: Callable[[int], int] = pinned_bytes if job.on_gpu else int
    blocks = model.swapped_blocks
    layers = TABULATED_LAYERS * model.block_count
    if model.is_mapped:
        blocks = _window(job, blocks)
        layers = _window(job, layers)
    parts: Bytes = {
        Part.TABLE_WEIGHTS: layers * pinned(choice.tabulated_layer),
        Part.SWAPPED_BLOCKS: blocks * pinned(choice.block),
        Part.AVERAGE: job.training.swapped_average,
    }
    if job.encoders.off_device:
        parts |= _encoders_that_stay(job.encoders)
    return parts


def mapped(job: JobBytes, choice: Choice) -> int:
    """Bytes that wait in the kept model, not in main memory; 0 where the model is not
    mapped."""
    if not job.model.is_mapped:
        return 0
    return choice.tabulated + job.model.swapped_blocks * choice.block


def _window(job: JobBytes, count: int) -> int:
    """How many of `count` mapped weights are in main memory at a time: those on their
    way to a GPU."""
    return WINDOW if count and job.on_gpu else 0


def _encoders_on_device(encoders: EncoderBytes) -> Bytes:
    """Encoders that stay on the compute device."""
    return {} if encoders.off_device else _encoders_that_stay(encoders)


def _encoders_that_stay(encoders: EncoderBytes) -> Bytes:
    parts: Bytes = {}
    if encoders.vae_stays:
        parts[Part.VAE] = encoders.vae
    if encoders.text_stays:
        parts[Part.TEXT] = encoders.text
    return parts


# ------------------------------------------------------------ main memory beside a GPU


def host(job: JobBytes, choice: Choice) -> dict[str, int]:
    """Main memory of a job on a GPU, by consumer: the most of three moments, which are
    a step during a save, the text encoder being read, and the last block being loaded.

    The process counts with `PROCESS_BASELINE_WITH_CUDA`.
    """
    resident = waiting(job, choice)
    training = resident | {Part.SAVED: job.training.saved} | offloaded(job, choice)
    in_training = sum(training.values())
    read = job.encoders.text_read
    if job.encoders.text_stays:
        read = max(read, job.encoders.text_file)
    loaded = job.model.block_on_host + sum(resident.values())
    return positive(
        {
            Part.PROCESS: PROCESS_BASELINE_WITH_CUDA,
            **training,
            Part.TEXT_READ: read - in_training,
            Part.LOADED_BLOCK: loaded - max(read, in_training),
        }
    )


# ------------------------------------------------------------ gaps between tensors


def _gaps(job: JobBytes) -> Callable[..., float]:
    return gaps_on_gpu if job.on_gpu else gaps_on_host


def _with_gaps(job: JobBytes, activations: float, level: str = "full") -> Bytes:
    return {Part.ACTIVATIONS: activations, Part.GAPS: _gaps(job)(activations, level)}


def _held(job: JobBytes, activations: float) -> float:
    return activations + _gaps(job)(activations)
