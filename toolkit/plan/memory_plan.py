"""The memory estimate of a job, phase by phase, from its settings and the sizes of the model. Imports no torch.

It estimates the peak of each phase on the compute device: encoding (with an empty cache), loading, the first step
(before the optimizer has state), training, sampling. Main memory beside a GPU is one figure. With several ranks it is
that of rank 0, which does most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from toolkit.config.reading.field_types import AUTO_LEVELS, OFFLOADING_LEVELS, UNCOMPILED_LEVELS
from toolkit.config.sections.model import AUTO_RANK
from toolkit.config.sections.model_files import whole_files
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import RunError
from toolkit.memory.estimate import StepShape, gaps_on_gpu, gigabytes, step_peak
from toolkit.models.families import (
    LOOKAHEAD_BATCHES,
    MOST_ROWS,
    TEXTS_IN_MEMORY,
    TextLayers,
    family_for,
)
from toolkit.models.folder_family import with_single_files
from toolkit.number_types import DTYPE_BYTES, FP8_QTYPES
from toolkit.plan.kept_model import kept_outlook
from toolkit.plan.memory import (
    CUDA_CONTEXT,
    ENCODING,
    PROCESS_BASELINE,
    PROCESS_BASELINE_WITH_CUDA,
    LargestStep,
    Machine,
    MemoryEstimate,
    Phase,
    gaps_on_host,
    positive,
)
from toolkit.plan.memory_inputs import (
    FLOAT,
    BatchSizes,
    ItemGroup,
    LargestBatch,
    bytes_beside,
    count_trainable_params,
    num_shards,
    share_of_rank,
    step_shape,
    trained_bytes,
)
from toolkit.system.distributed import BUCKET_BYTES
from toolkit.system.distributed_env import read_distributed_env
from toolkit.system.host_memory import pinned_bytes

WITHOUT_TABLE = 0.9
"""Share of the memory that a job without the modulation cache may take, where `auto` decides: the estimate is right to
about 10 %, and the cache costs about 2 % of the time."""

TABULATED_LAYERS = 2
"""Layers of a block that the modulation cache replaces."""

WHOLE_BLOCKS = 2
"""Blocks that are unsharded at a time with `train.parallel: fsdp`: one runs, the next one is prefetched."""

OPTIMIZER_TEMPS = 4
"""Float32 copies of the largest parameter that `full_bf16` and Adafactor allocate; others need one or none."""

STEPS_IN_PLACE = frozenset({"adamw", "adam", "sgd"})
"""Optimizers whose step needs no copies: torch's fused ones, and SGD."""

SWAP_BUFFERS = 2
"""Number of device buffers for swapped blocks."""

WINDOW = 2
"""Blocks in pinned memory on their way from the kept model to the device (`PinnedWindow`)."""

LAYER_COPIES = 2
"""Layers of the text encoder in main memory while one is copied out of its file."""

QUANTIZING_COPIES = 4
"""Copies of a layer, in the dtype of the weights, while it is quantized."""

GENERATING = "images of the base model"
"""The phase in which images of `datasets[].from_base` are made, before the first step."""

Bytes = dict[str, float]
"""Bytes by consumer."""


def plan_memory(
    section: DiffusionSection,
    groups: Sequence[ItemGroup],
    machine: Machine,
    level: str | None = None,
    compiled: bool | None = None,
) -> MemoryEstimate:
    """The estimate at a checkpointing level; by default that of the section.

    compiled: whether the blocks are; None: as the section says, on this machine.
    Of both that are `auto`: the fastest level that fits the machine, and the modulation cache where that level does not
    fit without it. Where the machine's memory is not known: `full` and, on CUDA, the cache.
    """
    levels: Sequence[str] = [level or section.train.checkpointing_level()]
    table, limit, on_gpu = section.model.modulation_table, machine.limit, machine.kind == "cuda"
    by_inductor = section.train.compile.backend == "inductor" and (
        compiles_blocks(section, machine) if compiled is None else compiled
    )
    if levels[0] == "auto":
        fitting = [each for each in AUTO_LEVELS if on_gpu or each not in OFFLOADING_LEVELS]
        levels = ["full"] if limit is None else fitting
    tables = [table] if table != "auto" else [on_gpu] if limit is None or not on_gpu else [False, True]
    estimator = _Estimator(section, groups, on_gpu, by_inductor)
    for chosen, cached in product(levels, tables):
        plan = estimator.plan(chosen, cached)
        room = limit and int(limit * (WITHOUT_TABLE if table == "auto" and not cached else 1))
        if room and plan.peak_bytes <= room:
            break
    return plan


def compiles_blocks(section: DiffusionSection, machine: Machine) -> bool:
    """Whether the blocks are compiled on a machine, as far as that is known without torch."""
    train, model = section.train, section.model
    if train.checkpointing_level() in UNCOMPILED_LEVELS:
        return False
    if train.compile.enabled != "auto" or machine.kind != "cuda":
        return train.compile.enabled is True
    # Of compute capability 8 only 8.9 compiles blocks in fp8; the minor number is not known here.
    is_fp8 = model.quantize and model.qtype in FP8_QTYPES
    return num_shards(train) == 1 and not (is_fp8 and (machine.capability or 9) < 9)


class _Estimator:
    """The numbers of a section on a machine. On the CPU all is in one memory."""

    def __init__(self, section: DiffusionSection, groups: Sequence[ItemGroup], on_gpu: bool, compiled: bool) -> None:
        """compiled: whether the blocks are, by inductor."""
        self.section, self.groups, self.on_gpu, self.compiled = section, groups, on_gpu, compiled
        self.model, self.train, self.network = section.model, section.train, section.network
        self.gaps = gaps_on_gpu if on_gpu else gaps_on_host
        self.folder, self.family = self.model.files_folder(), family_for(self.model)
        self.facts = self.family.footprint(self.folder)
        self.facts = with_single_files(self.facts, whole_files(self.model))
        self.number, self.own = DTYPE_BYTES[self.train.dtype], DTYPE_BYTES[section.weights_dtype()]
        self.qtype = self.model.qtype if self.model.quantize else None
        self.processes, self.shards = read_distributed_env().world_size, num_shards(self.train)
        self.trained_bytes = trained_bytes(section)
        # Unsharded blocks with FSDP: their weights; gradients of one (as computed, input and output of the reduction).
        block = self.facts.linear_params // self.facts.blocks if self.shards > 1 else 0
        of_gradients = block * (self.number + 2 * FLOAT) * self.network.trains_model
        self.whole_blocks = WHOLE_BLOCKS * block * self.number, of_gradients
        self.local = count_trainable_params(section, self.shards)
        # Of an optimizer that steps one parameter after the other; with `fused_backward_pass` in the backward pass.
        in_place = self.train.optimizer in STEPS_IN_PLACE and not self.train.full_bf16
        self.temporaries = 0 if in_place else OPTIMIZER_TEMPS * FLOAT * self.local.largest
        self.within_backward = self.temporaries * self.train.fused_backward_pass
        self.beside = bytes_beside(section) if section.files_beside() else 0
        self.optimizer = self.local.optimizer_bytes(self.train)
        self.sizes = BatchSizes(section, self.facts, groups)
        self.largest, self.samples = self.sizes.batch(share_of_rank(self.train)[0]), self.sizes.samples()
        self.base_images = self.sizes.base_images()
        self.is_streamed = any(group.streamed for group in groups)
        # Whether the modulation cache can be used: as `modulation_cache.check_modulation_frozen` decides.
        kind = KINDS[self.network.type]
        unfit = self.facts.modulation_layers if kind.needs_base or kind.trains_model else frozenset()
        unfit |= self.facts.table_inputs if kind.trains_model else frozenset()
        self.fits_table = self.shards == 1 and not unfit & set(self.local.layers)
        self.blocks = self.facts.stored(self.facts.linear_params, self.qtype, self.own)
        self.low_vram = on_gpu and self.model.low_vram  # of the encoders: off the GPU while they are not used
        self.per_linear = self.facts.bytes_per_weight[self.model.qtype_te] if self.model.quantize_te else self.number
        self.text = self.facts.text.stored(self.per_linear, self.number)
        self.vae = self.facts.vae.stored(self.number, self.number)
        # Those that stay, on the device or beside it: the VAE for samples, the text encoder for shuffled captions,
        # which are encoded at each use; both for a stream.
        self.encoders: Bytes = {}
        self.waiting: Bytes = {}
        # Whether weights that wait in main memory are mapped from the kept model.
        kept = kept_outlook(section) if section.maps_kept() and self.shards == 1 else None
        self.mapped = kept is not None and not kept.lack
        if self.samples or self.is_streamed:
            (self.waiting if self.low_vram else self.encoders)["VAE"] = self.vae
        self.stays_whole = any(group.shuffled for group in groups)
        if self.stays_whole:
            (self.waiting if self.low_vram else self.encoders)["text encoder"] = self.text

    def plan(self, level: str, table: bool) -> MemoryEstimate:
        """The estimate at a checkpointing level. table: whether the modulation cache is wanted."""
        # On a CPU nothing leaves: it is full checkpointing there.
        self.level = level if self.on_gpu or level != "block_offload" else "full"
        self.has_table = table and self.fits_table
        # Of the model: bytes of the modulation layers that the cache replaces, and of a block at rest.
        self.modulation = self.facts.stored(self.facts.tabulated_weights, self.qtype, self.own) * self.has_table
        self.modulation_layer = int(self.modulation // (TABULATED_LAYERS * self.facts.blocks))
        self.block_at_rest = (self.blocks - self.modulation) // self.facts.blocks
        rows = LOOKAHEAD_BATCHES * self.train.batch_size
        phases = {
            ENCODING: self._encoding(),
            "loading": self._loading(),
            "first step": self._step(optimizer=0, rows=rows),
            "training": self._step(self.optimizer, max(rows, MOST_ROWS)) | self._on_cpu(self._saving()),
        }
        if self.samples:
            phases["sampling"] = self._sampling(max(rows, MOST_ROWS))
        if self.base_images:
            at_rest = self._at_rest(0, max(rows, MOST_ROWS))
            phases[GENERATING] = at_rest | {"VAE": self.vae, **self._drawing(self.base_images)}
        notes = []
        if self.processes > 1:
            notes.append(
                f"of each of {self.processes} processes: the main memory of one machine is needed once for each"
            )
        if self.stays_whole:
            notes.append(
                "captions that are encoded at each use, shuffled or of a stream, keep the whole text encoder "
                f"({gigabytes(self.text)}) in memory"
            )
        if mapped := self._mapped():
            notes.append(
                f"{gigabytes(mapped)} of weights that wait are read from the kept model (model.keep_quantized): they "
                "take main memory only as the system's cache of files, which it takes back where it needs it"
            )
        always: Bytes = {"context": CUDA_CONTEXT} if self.on_gpu else {"process baseline": PROCESS_BASELINE}
        found = tuple(Phase(name, positive(always | parts)) for name, parts in phases.items())
        beside = self.within_backward + sum(self.whole_blocks)
        step = LargestStep(self._shape(), self.optimizer, beside)
        host = self._host() if self.on_gpu else {}
        return MemoryEstimate(found, self.on_gpu, host, tuple(notes), table, step, level)

    def _host(self) -> dict[str, int]:
        """Main memory beside a GPU: while steps and a save are made, or more while the text encoder is read."""
        training = self._beside() | self._saving()
        if self.level in OFFLOADING_LEVELS:
            training |= self._offloaded()
        read = self._text_on_host()
        if self.stays_whole:
            read = max(read, self._whole_text_encoder())
        loaded = self._block_on_host() + sum(self._beside().values())
        most = max(read, sum(training.values()))
        more = {"text encoder, read": read - sum(training.values()), "one block, loaded": loaded - most}
        return positive({"process baseline": PROCESS_BASELINE_WITH_CUDA, **training, **more})

    def _block_on_host(self) -> float:
        """Bytes of the block that is read from the published weights, or quantized there with `low_vram`."""
        weights = self.facts.linear_params // self.facts.blocks
        if self.qtype and self.low_vram:
            weights += QUANTIZING_COPIES * self.facts.largest_layer
        return weights * self.own

    def _mapped(self) -> int:
        """Bytes that wait in the kept model, not in main memory."""
        if not self.mapped:
            return 0
        table = self.modulation if self.has_table else 0
        return int(table + min(self.model.blocks_to_swap, self.facts.blocks) * self.block_at_rest)

    def _on_cpu(self, parts: Bytes) -> Bytes:
        """Nothing on a GPU: it is part of `_host` there."""
        return {} if self.on_gpu else parts

    # ------------------------------------------------------------ phases: bytes on the compute device

    def _encoding(self) -> Bytes:
        """Images are encoded first. The VAE leaves the device for a text encoder that is read layer by layer; else with
        low_vram."""
        pixels = max(max(one.pixels, one.reference_pixels) for one in self._encoded())
        images = self.facts.encoding(pixels) * self.number
        of_images = {"VAE": self.vae, **self._with_gaps(images)}
        return max(of_images, self._encoding_texts(), key=lambda parts: sum(parts.values()))

    def _encoding_texts(self) -> Bytes:
        on_cpu = self._on_cpu({"text encoder, read": self._text_on_host()})
        if self.facts.text_layers:
            layer, prompts = self._largest_layer(self.facts.text_layers)
            return {"one layer of the text encoder": layer, **self._with_gaps(prompts), **on_cpu}
        prompts = max(map(tokens_of, self._encoded())) * self.facts.text_token_numbers * self.number
        on_cpu = self._on_cpu({"text encoder, read": self._whole_text_encoder() - self.text - self._held(prompts)})
        return {
            "text encoder": self.text,
            "VAE": 0 if self.low_vram else self.vae,
            **self._with_gaps(prompts),
            **on_cpu,
        }

    def _encoded(self) -> list[LargestBatch]:
        """The largest of what is encoded before the training."""
        held_out = (self.sizes.of_group(group) for group in self.groups if group.held_out)
        return [self.largest, *self.samples, *self.base_images, *held_out]

    def _largest_layer(self, layers: TextLayers) -> tuple[float, float]:
        """`TextLayers.taken` of the prompt that takes most."""
        numbers = self.per_linear, self.number
        found = (layers.taken(tokens_of(one), self._image_tokens(one), *numbers) for one in self._encoded())
        return max(found, key=sum)

    def _image_tokens(self, one: LargestBatch) -> int:
        """Tokens that the text encoder has for the control images of a prompt."""
        return one.encoder_tokens or one.references * self.facts.text_tokens_per_reference

    def _text_on_host(self) -> int:
        """Bytes of main memory while texts are encoded layer by layer: layers as they are read, and what waits."""
        if not (layers := self.facts.text_layers):
            return self._whole_text_encoder()
        prompts = [(one, 1) for one in (*self.samples, *self.base_images)]
        prompts += [(self.sizes.of_group(group), group.items) for group in self.groups]
        waiting = 0
        for one, count in prompts:
            numbers = layers.waiting(tokens_of(one), self._image_tokens(one), self.facts.text_width)
            waiting += count * numbers * self.number
        return LAYER_COPIES * layers.largest.stored(self.number, self.number) + min(waiting, TEXTS_IN_MEMORY)

    def _whole_text_encoder(self) -> int:
        """Bytes of its file, of which parts may not be used."""
        text = self.facts.text
        return (text.linear_params + text.other_params + text.unused) * self.number

    def _loading(self) -> Bytes:
        """At the last block, which is in its original precision until it is quantized or sharded."""
        found = self._model(buffers=0) | self.encoders
        if self.qtype and not self.low_vram:
            weights = self.facts.linear_params // self.facts.blocks + QUANTIZING_COPIES * self.facts.largest_layer
            not_there_yet = self.block_at_rest + self.facts.other_params * self.own
            found["one block, quantized"] = weights * self.own - not_there_yet
        if not self.on_gpu:  # the pages of the file count as this process's while a block is read
            folder = self.folder / self.family.trained_part
            try:
                size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
                found["model file"] = size // self.facts.blocks
            except OSError as error:
                raise RunError(f"{folder}: cannot be read: {error.strerror or error}") from error
        return found

    def _shape(self, tokens: int = 0) -> StepShape:
        """tokens: 0 means those of the largest batch."""
        tokens = tokens or self.largest.tokens
        return step_shape(self.section, self.facts, self.local, tokens, self.on_gpu, self.compiled)

    def _step(self, optimizer: int, rows: int) -> Bytes:
        """The worse of two moments: the backward pass, or all gradients during all-reduce and optimizer step.

        optimizer: bytes of its state before the step, which creates it. rows: of the modulation cache.
        """
        shape = self._shape()
        activations, gradients = step_peak(shape, self.level, partial(self.gaps, level=self.level))
        reduced = 0  # bytes of a gradient bucket during all-reduce
        if self.processes > 1:
            reduced = min(BUCKET_BYTES + FLOAT * self.local.largest, FLOAT * self.local.weights)
            reduced *= 1 if self.trained_bytes == FLOAT else 2
        after = max(reduced, self.temporaries)
        work: Bytes = {
            **self._with_gaps(activations, self.level),
            "gradients": gradients,
            "gradients of a block": self.whole_blocks[1],
            "optimizer temporaries": self.within_backward,
        }
        if sum(work.values()) < shape.gradients + after + self.optimizer - optimizer:
            work = {"gradients": shape.gradients, "optimizer temporaries": after, "optimizer": self.optimizer}
        if self.is_streamed:
            work |= self._encoding_ahead()
        if self.level in OFFLOADING_LEVELS and not self.on_gpu:
            work |= self._offloaded()
        return self._at_rest(optimizer, rows) | work

    def _offloaded(self) -> Bytes:
        return {"activations, offloaded": self._shape().kept_on_host(self.level)}

    def _saving(self) -> Bytes:
        """What rank 0 copies of all ranks to write it while training continues."""
        save, train = self.section.save, self.train
        every, by_epochs = save.interval()
        if not self.on_gpu and not (by_epochs or 0 < every < (train.steps or every + 1)):
            return {}  # at the end alone, when a step's memory is free again
        whole = self.local if self.shards == 1 else count_trainable_params(self.section)
        files = 1 + ("raw" in save.also and train.ema_config.use_ema)
        file, state = files * whole.written * DTYPE_BYTES[save.dtype], whole.state_bytes(train)
        is_sharded = self.shards > 1 and self.section.network.trains_model
        if save.mem_eff_save or (is_sharded and self.section.saves_folders):
            file = 0
        if is_sharded or save.states == "never":
            state = 0  # a sharded one is written row by row; what is around the blocks is little
        return {"copies to be saved": file + state}

    def _encoding_ahead(self) -> Bytes:
        """What encoding the next samples of a stream takes while a step is computed."""
        threads = max(dataset.num_workers for dataset in self.section.datasets)
        if not threads or self.low_vram:
            return {}
        images = self._held(self.facts.encoding(self.largest.pixels) * self.number)
        of_prompts = self.largest.text_tokens + self.largest.encoder_tokens
        prompts = self._held(of_prompts * self.facts.text_token_numbers * self.number)
        return {"encoding ahead": max(images, prompts)}  # one encoder at a time

    def _sampling(self, rows: int) -> Bytes:
        """Forward passes without gradients with the eval weights, then the decoder."""
        raw = self.local.weights * self.trained_bytes * self.train.ema_config.use_ema
        return {
            **self._at_rest(self.optimizer, rows),
            "weights saved while EMA is swapped in": raw,
            "VAE": self.vae,  # on the device while it decodes, whatever low_vram says
            **self._drawing(self.samples),
        }

    def _drawing(self, images: Sequence[LargestBatch]) -> Bytes:
        """Activations of the largest of these images: of a forward pass, or of the decoder."""
        decoding = self.facts.decoding(max(image.pixels for image in images)) * self.number
        return self._with_gaps(max(decoding, *(self._shape(one.tokens).forward() for one in images)))

    def _with_gaps(self, activations: float, level: str = "full") -> Bytes:
        return {"activations": activations, "gaps": self.gaps(activations, level)}

    def _held(self, activations: float) -> float:
        return activations + self.gaps(activations)

    # ------------------------------------------------------------ what stays

    def _at_rest(self, optimizer: int, rows: int) -> Bytes:
        """Usage between two steps. optimizer: bytes of its state. rows: of the modulation cache."""
        buffers = SWAP_BUFFERS * self.modulation_layer if self.on_gpu else 0
        table = rows * self.facts.row_numbers * self.number + buffers
        own = {
            "modulation table": table if self.has_table else 0,
            f"{self.network.type} weights": 0 if self.network.trains_model else FLOAT * self.local.weights,
            "LoRA files beside it": self.beside,
            # The teacher, and the weights while it is swapped in.
            "teacher of the few-step loss": 2 * FLOAT * self.local.weights * bool(self.train.few_step_loss),
            "optimizer": optimizer,
        }
        average = FLOAT * self.local.weights * self.train.ema_config.use_ema
        if self.model.blocks_to_swap:
            average -= self._swapped_average()
        return self._model() | own | self.encoders | {"average": average}

    def _swapped_average(self) -> int:
        """Bytes of the average of swapped blocks, which is made where their weights are."""
        if not (self.network.trains_model and self.on_gpu):
            return 0
        average = FLOAT * self.local.weights * self.train.ema_config.use_ema
        of_blocks = FLOAT * self.facts.linear_params * self.train.ema_config.use_ema
        return min(average, of_blocks * self.model.blocks_to_swap // self.facts.blocks)

    def _model(self, buffers: int = SWAP_BUFFERS) -> Bytes:
        """The weights of the transformer. buffers: device buffers for swapped blocks."""
        facts, blocks, others = self.facts, self.blocks, self.facts.other_params * self.own
        waiting = min(self.model.blocks_to_swap, facts.blocks)
        if self.network.trains_model:  # what is not trained of it is kept in the compute dtype
            trained = self.local.weights if self.shards == 1 else count_trainable_params(self.section).weights
            blocks -= (facts.linear_params + facts.other_params - trained) * (self.own - self.number)
        recovery = Path(self.model.accuracy_recovery_adapter or "-").expanduser()
        if self.qtype and self.model.makes_recovery():
            others += AUTO_RANK * sum(map(sum, self.family.linear_layers(self.folder).values())) * self.own
        elif self.qtype and recovery.is_file():
            others += recovery.stat().st_size
        swapped = max(0, waiting - buffers) * self.block_at_rest
        found: Bytes = {"weights": blocks + others - self.modulation - swapped}
        if self.shards > 1:
            found = {"weights": blocks // self.shards + others, "whole blocks": self.whole_blocks[0]}
        return found | self._on_cpu(self._beside())

    def _beside(self) -> Bytes:
        """What lies in main memory all the time. A block stays there while it is in a buffer on the device."""
        pinned: Callable[[int], int] = pinned_bytes if self.on_gpu else int
        swapped, layers = min(self.model.blocks_to_swap, self.facts.blocks), TABULATED_LAYERS * self.facts.blocks
        average = self._swapped_average() if swapped else 0
        if self.mapped:  # what is in main memory are the windows through which they pass
            swapped, layers = (WINDOW * self.on_gpu * bool(count) for count in (swapped, layers))
        found = self.waiting | {
            "weights of the table": layers * pinned(self.modulation_layer),
            "swapped blocks": swapped * pinned(self.block_at_rest),
            "average": average,
        }
        if self.section.deployments():
            found["transformers of sample.also"] = self._others()
        return found

    def _others(self) -> int:
        """Bytes of the other models' weights that wait for samples."""
        count = sum(bool(way.model) for way in self.section.deployments().values())
        return count * (self.blocks + self.facts.other_params * self.own)


def tokens_of(one: LargestBatch) -> int:
    """Tokens that the text encoder has for a prompt."""
    return one.text_tokens + one.encoder_tokens
