"""The memory estimate of a job, phase by phase, from its settings and the sizes of the model.

Imports no torch. It estimates the peak of each phase: encoding (with an empty cache), loading, the first step (before
the optimizer has state), training, saving, validation, sampling. With several ranks it is that of rank 0, which does
most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path

from extensions.sd_trainer.memory_inputs import (
    FLOAT,
    BatchSizes,
    ItemGroup,
    LargestBatch,
    TrainableParams,
    copies_within_backward,
    count_trainable_params,
    images_at_once,
    local_trainable_params,
    num_shards,
    optimizer_temp_bytes,
    step_shape,
    trained_bytes,
    unsharded_block_bytes,
)
from toolkit.config.field_types import CHECKPOINTING_LEVELS
from toolkit.config.model import AUTO_RANK
from toolkit.config.sections import DiffusionSection
from toolkit.errors import RunError
from toolkit.memory.estimate import (
    CUDA_CONTEXT,
    ENCODING,
    FRAGMENTATION,
    HOST_FRAGMENTATION,
    PROCESS_BASELINE,
    PROCESS_BASELINE_WITH_CUDA,
    Machine,
    MemoryEstimate,
    Phase,
    StepShape,
    step_peak,
)
from toolkit.models.families import LOOKAHEAD_BATCHES, MOST_ROWS, family_for
from toolkit.networks.kinds import KINDS
from toolkit.number_types import DTYPE_BYTES
from toolkit.system.distributed import BUCKET_BYTES, read_distributed_env
from toolkit.system.host_memory import pinned_bytes

WITHOUT_TABLE = 0.9
"""Share of the memory that a job without the modulation cache may take, where `auto` decides: the estimate is right to
about 10 %, and the cache costs about 2 % of the time."""

TABULATED_LAYERS = 2
"""Layers of a block that the modulation cache replaces."""

SWAP_BUFFERS = 2
"""Number of device buffers for swapped blocks."""

QUANTIZING_COPIES = 4
"""Copies of a layer, in the dtype of the weights, while it is quantized."""


def plan_memory(
    section: DiffusionSection,
    groups: Sequence[ItemGroup],
    machine: Machine,
    level: str | None = None,
    area: float = 1.0,
) -> MemoryEstimate:
    """The estimate at a checkpointing level; by default that of the section.

    Of both that are `auto`: the fastest level that fits the machine, and the modulation cache where that level does not
    fit without it. Where the machine's memory is not known: `full` and, on CUDA, the cache. area: factor on the pixels
    of all targets.
    """
    levels: Sequence[str] = [level or section.train.checkpointing_level()]
    table, limit, on_gpu = section.model.modulation_table, machine.limit, machine.kind == "cuda"
    if levels[0] == "auto":
        levels = ["full"] if limit is None else CHECKPOINTING_LEVELS if on_gpu else CHECKPOINTING_LEVELS[:-1]
    tables = [table] if table != "auto" else [on_gpu] if limit is None or not on_gpu else [False, True]
    for chosen, cached in product(levels, tables):
        plan = _Estimator(section, groups, machine, chosen, area, cached).plan()
        room = limit and int(limit * (WITHOUT_TABLE if table == "auto" and not cached else 1))
        if room and plan.peak_bytes <= room:
            break
    return plan


# ------------------------------------------------------------ the job in numbers


@dataclass(frozen=True)
class _Usage:
    """Bytes by consumer; on the CPU `device` counts as CPU memory too."""

    device: Mapping[str, int]
    host: Mapping[str, int] = field(default_factory=dict)

    def __or__(self, more: _Usage) -> _Usage:
        """The union; where both have an entry, that of `more`."""
        return _Usage({**self.device, **more.device}, {**self.host, **more.host})


class _Estimator:
    """Estimates the memory of a section on a machine, at a checkpointing level."""

    def __init__(
        self,
        section: DiffusionSection,
        groups: Sequence[ItemGroup],
        machine: Machine,
        level: str,
        area: float,
        table: bool,
    ) -> None:
        """area: factor on the pixels of all targets. table: whether the modulation cache is wanted."""
        self.section, self.groups, self.level, self.wants_table = section, groups, level, table
        self.on_gpu = machine.kind == "cuda"
        self.gaps = FRAGMENTATION if self.on_gpu else HOST_FRAGMENTATION
        self.model, self.train, self.network = section.model, section.train, section.network
        self.folder = self.model.files_folder()
        self.family = family_for(self.model)
        self.facts = self.family.footprint(self.folder)
        self.number = DTYPE_BYTES[self.train.dtype]
        self.weight_bytes = DTYPE_BYTES[section.weights_dtype()]
        self.trained_bytes = trained_bytes(section)
        self.qtype = self.model.qtype if self.model.quantize else None
        self.processes = read_distributed_env().world_size
        self.num_shards = num_shards(self.train)
        self.is_sharded = self.num_shards > 1
        self.whole_blocks = unsharded_block_bytes(section, self.facts)
        self.sizes = BatchSizes(section, self.facts, groups, area)
        self.largest = self.sizes.batch(images_at_once(self.train))
        self.held_out, self.samples = self.sizes.held_out(), self.sizes.samples()

    def plan(self) -> MemoryEstimate:
        phases = {
            ENCODING: self._encoding(),
            "loading": self._loading(),
            "first step": self._step(optimizer=0, rows=self._rows_at_once),
            "training": self._step(self.optimizer),
            "saving": self._saving(),
        }
        if self.held_out:
            phases["validation"] = self._inference([self.held_out])
        if self.samples:
            phases["sampling"] = self._inference(self.samples, decodes=True)
        found = tuple(map(self._phase, phases, phases.values()))
        return MemoryEstimate(found, self.on_gpu, tuple(self._notes()), self.wants_table)

    def _notes(self) -> Iterator[str]:
        if self.processes > 1:
            yield f"of each of {self.processes} processes: the main memory of one machine is needed once for each"
        if self.train.compile.enabled is True:
            yield "train.compile: what compiling takes is not known; compiled blocks usually keep less than this"

    def _phase(self, name: str, parts: _Usage) -> Phase:
        if self.on_gpu:
            device = {"context": CUDA_CONTEXT, **parts.device}
            return Phase(
                name, _positive(device), _positive({"process baseline": PROCESS_BASELINE_WITH_CUDA, **parts.host})
            )
        return Phase(
            name,
            {},
            _positive(Counter({"process baseline": PROCESS_BASELINE}) + Counter(parts.device) + Counter(parts.host)),
        )

    # ------------------------------------------------------------ phases

    def _with_gaps(self, activations: float, name: str = "activations") -> dict[str, int]:
        return {name: int(activations), "gaps": int((self.gaps - 1) * activations)}

    def _encoding(self) -> _Usage:
        """Images are encoded first; the VAE stays on the GPU during text encoding unless low_vram."""
        text, vae = self._text_bytes, self._vae_bytes
        seen = [self.largest, *self.samples, *([self.held_out] if self.held_out else [])]
        pixels = max(max(one.pixels, one.reference_pixels) for one in seen)
        images = pixels * self.facts.encode_numbers * self.number
        prompts = max(one.text_tokens for one in seen) * self.facts.text_token_numbers * self.number
        waiting_vae = 0 if self._low_vram else vae
        whole = (self.facts.text.linear_params + self.facts.text.other_params + self.facts.text.unused) * self.number
        runs_on_gpu = self.on_gpu and not self._text_on_host
        host = {"text encoder, read": whole if runs_on_gpu else max(0, int(whole - text - self.gaps * prompts))}
        if self._text_on_host:
            host |= {"text encoder": text, **self._with_gaps(prompts)}
            return _Usage({"VAE": vae, **self._with_gaps(images)}, host) | self._cached()
        if vae + self.gaps * images > waiting_vae + text + self.gaps * prompts:
            return _Usage({"VAE": vae, **self._with_gaps(images)}) | self._cached()
        there = {"text encoder": text, "VAE": waiting_vae, **self._with_gaps(prompts)}
        return _Usage(there, host) | self._cached()

    def _loading(self) -> _Usage:
        """At the last block, which is in its original precision until it is quantized or sharded."""
        transient = {}
        if self.qtype:
            copies = QUANTIZING_COPIES * self.facts.largest_layer
            not_there_yet = self._block_at_rest + self.facts.other_params * self.weight_bytes
            block = (self._block_weights + copies) * self.weight_bytes - not_there_yet
            transient = {"one block, quantized": block}
        # On the CPU the pages of the file count as this process's until it is closed.
        file = 0 if self.on_gpu else _bytes_of_files(self.folder / self.family.trained_part)
        place = _Usage({}, transient) if self._low_vram else _Usage(transient)
        there = self._model(buffers=0) | self._encoders_that_stay() | self._cached()
        return there | place | _Usage({}, {"model file": file})

    def _step(self, optimizer: int, rows: int = MOST_ROWS) -> _Usage:
        """The worse of two moments: the backward pass, or all gradients during all-reduce and optimizer step.

        optimizer: bytes of its state before the step, which creates it. rows: of the modulation cache.
        """
        activations, gradients = step_peak(self.work, self.level, self.gaps)
        after = max(self._all_reduce_bytes, optimizer_temp_bytes(self.train, self._local))
        work = {
            **self._with_gaps(activations),
            "gradients": gradients,
            "gradients of a block": self.whole_blocks[1],
            "optimizer temporaries": copies_within_backward(self.train, self._local),
        }
        if sum(work.values()) < self.work.gradients + after + self.optimizer - optimizer:
            work = {"gradients": self.work.gradients, "optimizer temporaries": after, "optimizer": self.optimizer}
        offloaded = {"activations, offloaded": self.work.kept_on_host(self.level)}
        ahead = self._encoding_ahead()
        return self._at_rest(optimizer, rows) | _Usage({**work, **ahead.device}, {**offloaded, **ahead.host})

    def _encoding_ahead(self) -> _Usage:
        """What encoding the next samples of a stream takes while a step is computed."""
        threads = max(dataset.num_workers for dataset in self.section.datasets)
        if not (self.is_streamed and threads) or self._low_vram:
            return _Usage({})
        images = self.gaps * self.largest.pixels * self.facts.encode_numbers * self.number
        prompts = self.gaps * self.largest.text_tokens * self.facts.text_token_numbers * self.number
        name = "encoding ahead"
        if self._text_on_host:
            return _Usage({name: int(images)}, {name: int(prompts)})
        return _Usage({name: int(max(images, prompts))})  # one encoder at a time

    def _saving(self) -> _Usage:
        """Rank 0 copies the state of all ranks; where training goes on meanwhile, a step's memory is needed as well."""
        averages = FLOAT * self._global.weights * self.train.ema_config.copies
        state = self._global.weights * self.trained_bytes + averages + self._global.optimizer_bytes(self.train)
        state = 0 if self.section.save.states == "never" else state
        raw = bool(averages) and "raw" in self.section.save.also
        files = self._local.written * DTYPE_BYTES[self.section.save.dtype] * (1 + raw)
        files = 0 if self.section.save.mem_eff_save else files
        every, by_epochs = self.section.save.interval()
        goes_on = bool(by_epochs) or 0 < every < (self.train.steps or every + 1)
        now = self._step(self.optimizer) if goes_on else self._at_rest(self.optimizer)
        read_back = 0 if self.on_gpu else files  # its pages count as this process's meanwhile
        return now | _Usage({}, {"copies to be saved": state + files, "file, read back": read_back})

    def _inference(self, batches: Sequence[LargestBatch], decodes: bool = False) -> _Usage:
        """Forward passes without gradients, as for validation and samples, with the eval weights."""
        activations = max(self._step_shape(batch).forward() for batch in batches)
        work = {
            "weights saved while EMA is swapped in": self.trained * self.trained_bytes * self.train.ema_config.use_ema
        }
        if decodes:
            decoding = max(batch.pixels for batch in batches) * self.facts.decode_numbers * self.number
            activations = max(activations, decoding)
            work["VAE"] = self._vae_bytes  # on the device while it decodes, whatever low_vram says
        return self._at_rest(self.optimizer) | _Usage(work | self._with_gaps(activations))

    # ------------------------------------------------------------ what stays

    def _at_rest(self, optimizer: int, rows: int = MOST_ROWS) -> _Usage:
        """Usage between two steps. optimizer: bytes of its state. rows: of the modulation cache."""
        own = {
            f"{self.network.type} weights": 0 if self.network.trains_model else FLOAT * self.trained,
            "optimizer": optimizer,
            "average": FLOAT * self.trained * self.train.ema_config.copies,
        }
        rows = max(rows, self._rows_at_once) * self.facts.row_numbers * self.number
        buffers = SWAP_BUFFERS * self._modulation_layer if self.on_gpu else 0
        table = {"modulation table": rows + buffers if self.caches_modulation else 0}
        return self._model() | _Usage(table | own) | self._encoders_that_stay() | self._cached()

    def _model(self, buffers: int = SWAP_BUFFERS) -> _Usage:
        """The weights of the transformer. buffers: device buffers for swapped blocks."""
        facts = self.facts
        blocks = facts.stored(facts.linear_params, self.qtype, self.weight_bytes)
        waiting = min(self.model.blocks_to_swap, facts.blocks)
        swapped = max(0, waiting - buffers) * self._block_at_rest
        others = facts.other_params * self.weight_bytes
        if self.network.trains_model:  # what is not trained of it is kept in the compute dtype
            blocks -= (facts.linear_params + facts.other_params - self._global.weights) * (
                self.weight_bytes - self.number
            )
        recovery = Path(self.model.accuracy_recovery_adapter or "-").expanduser()
        if self.qtype and self.model.makes_recovery():
            sides = self.family.linear_layers(self.folder).values()
            others += AUTO_RANK * sum(map(sum, sides)) * self.weight_bytes
        elif self.qtype and recovery.is_file():
            others += recovery.stat().st_size
        # A block stays in CPU memory while it is in a buffer on the device.
        pinned: Callable[[int], int] = pinned_bytes if self.on_gpu else int
        host = {
            "weights of the table": TABULATED_LAYERS * facts.blocks * pinned(self._modulation_layer),
            "swapped blocks": waiting * pinned(self._block_at_rest),
        }
        parts = {"weights": blocks + others - self._modulation_bytes - swapped}
        if self.is_sharded:
            parts = {"weights": blocks // self.num_shards + others, "whole blocks": self.whole_blocks[0]}
        return _Usage(parts, host)

    def _encoders_that_stay(self) -> _Usage:
        """The VAE for samples, the text encoder for shuffled captions, which are encoded at each use; both for a
        stream."""
        vae = {"VAE": self._vae_bytes} if self.samples or self.is_streamed else {}
        text = {"text encoder": self._text_bytes} if any(group.shuffled for group in self.groups) else {}
        text_waits = self._low_vram or self._text_on_host
        return (_Usage({}, vae) if self._low_vram else _Usage(vae)) | (_Usage({}, text) if text_waits else _Usage(text))

    def _cached(self) -> _Usage:
        """Latents and text embeddings that are cached in CPU memory."""
        total = 0.0
        for group in self.groups:
            if group.keeps_latents:
                pixels = prod(group.bucket) + group.references * self.sizes.reference_pixels(group)
                total += group.count * pixels * self.facts.latent_numbers
            if group.keeps_text and not group.shuffled:
                total += group.count * self.sizes.text_tokens(group.references, group.longest) * self.facts.text_width
        return _Usage({}, {"cached data": int(total * self.number)})

    @property
    def is_streamed(self) -> bool:
        """Whether images and captions are encoded as they come."""
        return any(group.streamed for group in self.groups)

    @property
    def _low_vram(self) -> bool:
        """Whether unused parts of the model are moved off the GPU."""
        return self.on_gpu and self.model.low_vram

    @property
    def _text_on_host(self) -> bool:
        """Whether the text encoder runs on the CPU beside a GPU."""
        return self.on_gpu and self.model.text_encoder_cpu

    # ------------------------------------------------------------ sizes

    @cached_property
    def _text_bytes(self) -> int:
        per_linear = self.facts.bytes_per_weight[self.model.qtype_te] if self.model.quantize_te else self.number
        return self.facts.text.stored(per_linear, self.number)

    @cached_property
    def _vae_bytes(self) -> int:
        return self.facts.vae.stored(self.number, self.number)

    @property
    def _block_weights(self) -> int:
        """Number of weights in the linear layers of one block."""
        return self.facts.linear_params // self.facts.blocks

    @property
    def _modulation_bytes(self) -> int:
        """Bytes of the modulation layers that the modulation cache replaces."""
        return (
            self.facts.stored(self.facts.tabulated_weights, self.qtype, self.weight_bytes)
            if self.caches_modulation
            else 0
        )

    @property
    def _block_at_rest(self) -> int:
        """Bytes of one block's frozen weights, without cached modulation layers."""
        blocks = self.facts.stored(self.facts.linear_params, self.qtype, self.weight_bytes)
        return (blocks - self._modulation_bytes) // self.facts.blocks

    @property
    def _modulation_layer(self) -> int:
        """Bytes of one of these layers."""
        return int(self._modulation_bytes // (TABULATED_LAYERS * self.facts.blocks))

    @property
    def _rows_at_once(self) -> int:
        """Rows of the modulation cache that are prefetched together."""
        return LOOKAHEAD_BATCHES * self.train.batch_size

    @cached_property
    def work(self) -> StepShape:
        """The shape of a training step."""
        return self._step_shape(self.largest)

    def _step_shape(self, seen: LargestBatch) -> StepShape:
        return step_shape(self.section, self.facts, self._local, self.sizes.tokens(seen), self.on_gpu)

    @property
    def _all_reduce_bytes(self) -> int:
        """Bytes of a gradient bucket during all-reduce."""
        if self.processes == 1:
            return 0
        bucket = min(BUCKET_BYTES + FLOAT * self.largest_trained, FLOAT * self.trained)
        return bucket if self.trained_bytes == FLOAT else 2 * bucket

    # ------------------------------------------------------------ what is trained

    @cached_property
    def _local(self) -> TrainableParams:
        return local_trainable_params(self.section)

    @cached_property
    def _global(self) -> TrainableParams:
        """What all ranks train."""
        return count_trainable_params(self.section) if self.is_sharded else self._local

    @cached_property
    def trained(self) -> int:
        """Number of parameters that this rank trains."""
        return self._local.weights

    @cached_property
    def largest_trained(self) -> int:
        return self._local.largest

    @cached_property
    def optimizer(self) -> int:
        return self._local.optimizer_bytes(self.train)

    @cached_property
    def caches_modulation(self) -> bool:
        """Whether the modulation cache is used: as `modulation_cache.check_modulation_frozen` decides."""
        if not self.wants_table or self.is_sharded:
            return False
        kind = KINDS[self.network.type]
        unfit = self.facts.modulation_layers if kind.needs_base or kind.trains_model else frozenset()
        unfit |= self.facts.table_inputs if kind.trains_model else frozenset()
        return not unfit & set(self._local.layers)


def _bytes_of_files(folder: Path) -> int:
    """The size of a part's weight files. Raises RunError when the folder cannot be read."""
    try:
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    except OSError as error:
        raise RunError(f"{folder}: cannot be read: {error.strerror or error}") from error


def _positive(parts: Mapping[str, int]) -> dict[str, int]:
    return {name: int(size) for name, size in parts.items() if size > 0}
