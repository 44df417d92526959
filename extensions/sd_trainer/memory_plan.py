"""What a section's job takes of memory, phase by phase: its settings, the model's facts and the arithmetic together.

Imports no torch. What is predicted is the worst moment of each phase:
encoding (nothing is taken to be in the cache), loading, the first step (before the optimizer has a state), training,
saving, sampling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod
from pathlib import Path
from typing import Any, Literal

from extensions.sd_trainer.counted import Trained, count_trained
from extensions.sd_trainer.sampling_config import draws_first
from toolkit.config.choices import CHECKPOINTING_LEVELS
from toolkit.contracts import Item, Size
from toolkit.host_memory import free_host_memory
from toolkit.memory.plan import (
    CUDA_CONTEXT,
    PROGRAM,
    PROGRAM_WITH_CUDA,
    SLACK,
    SLACK_OF_HOST,
    MemoryPlan,
    Passes,
    Phase,
    backward_peak,
)
from toolkit.models.families import family_for

NUMBER_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
FLOAT = 4

TABLE_ROWS = 192
"""Noise levels whose rows the modulation table keeps."""

AHEAD = 32
"""Micro-batches whose noise levels are announced at once."""

LETTERS_PER_TOKEN = 3
"""Of captions; a cautious average."""

SWAP_BUFFERS = 2
"""Blocks that have room on the device while they wait in the main memory."""

STEPPING_COPIES = 3
"""Float32 copies of the largest weight while an optimizer steps one parameter after the other."""

QUANTIZING_COPIES = 4
"""Float32 copies of a layer while it is quantized."""


@dataclass(frozen=True)
class Machine:
    """Where the job runs."""

    kind: Literal["cuda", "cpu"]
    limit: int | None = None
    """Bytes it has; None: not known."""


def machine_for(device: str) -> Machine:
    """The machine a config's `device` means, as far as that is known without torch: `auto` is a card."""
    return Machine("cpu", free_host_memory() or None) if device in ("cpu", "mps") else Machine("cuda")


@dataclass(frozen=True)
class Group:
    """Items that take the same memory, counted."""

    bucket: Size
    references: int
    keeps_latents: bool
    """Whether their cached latents are in the main memory, because no file holds them."""

    keeps_text: bool
    """The same of their text embeddings."""

    shuffled: bool
    """Whether their captions are encoded at each use."""

    count: int
    uses: int
    """In an epoch."""

    longest: int
    """Letters of a caption."""


def group_items(section: Any, items: Iterable[Item]) -> tuple[Group, ...]:
    """The items of a section, alike ones together: there may be very many, and a plan looks at them often."""
    keeps = [
        (not (dataset.cache_latents and dataset.cache_latents_to_disk), section.asked_text_cache(dataset) is False)
        for dataset in section.datasets
    ]
    found: dict[tuple, list[int]] = {}
    for item in items:
        sample = item.sample
        shuffled = sample.rules.shuffle_tokens
        key = item.crop.bucket, len(sample.controls), *keeps[sample.dataset], shuffled
        numbers = found.setdefault(key, [0, 0, 0])
        numbers[0] += 1
        numbers[1] += sample.repeats
        numbers[2] = max(numbers[2], len(sample.caption))
    return tuple(Group(*key, *numbers) for key, numbers in found.items())


def plan_memory(
    section: Any, groups: Sequence[Group], machine: Machine, level: str | None = None, area: float = 1.0
) -> MemoryPlan:
    """The plan at a level of checkpointing; by default the one that the section asks for.

    `auto`: the fastest level that fits the machine; where its memory is not known, `full`. area: factor on the pixels
    of all targets.
    """
    wanted = level or section.train.checkpointing_level()
    if wanted != "auto":
        return _Job(section, groups, machine, wanted, area).plan()
    if machine.limit is None:
        return _Job(section, groups, machine, "full", area).plan()
    levels = CHECKPOINTING_LEVELS if machine.kind == "cuda" else CHECKPOINTING_LEVELS[:-1]
    plans = (_Job(section, groups, machine, level, area).plan() for level in levels)
    fitting = (plan for plan in plans if plan.peak_bytes <= machine.limit)
    return next(fitting, None) or _Job(section, groups, machine, levels[-1], area).plan()


# ------------------------------------------------------------ the job in numbers


@dataclass(frozen=True)
class _Largest:
    """The batch, or picture, that the transformer has most tokens of."""

    images: int
    pixels: int
    """Of the target."""

    references: int
    reference_pixels: int
    text_tokens: int


@dataclass(frozen=True)
class _Parts:
    """Bytes by what takes them; on the CPU `device` is the main memory too."""

    device: Mapping[str, int]
    host: Mapping[str, int] = field(default_factory=dict)

    def __or__(self, more: _Parts) -> _Parts:
        """Both; a part that is in both is the second one's."""
        return _Parts({**self.device, **more.device}, {**self.host, **more.host})


class _Job:
    """A section on a machine, at a level of checkpointing."""

    def __init__(self, section: Any, groups: Sequence[Group], machine: Machine, level: str, area: float) -> None:
        """area: factor on the pixels of all targets."""
        self.section, self.groups, self.level, self.area = section, groups, level, area
        self.on_card = machine.kind == "cuda"
        self.slack = SLACK if self.on_card else SLACK_OF_HOST
        self.model, self.train, self.network = section.model, section.train, section.network
        self.folder = self.model.folder()
        self.family = family_for(self.model)
        self.facts = self.family.footprint(self.folder)
        self.number = NUMBER_BYTES[self.train.dtype]
        self.weight_bytes = NUMBER_BYTES[section.weights_dtype()]
        self.qtype = self.model.qtype if self.model.quantize else None

    def plan(self) -> MemoryPlan:
        phases = [
            self._phase("encoding", self._encoding()),
            self._phase("loading", self._loading()),
            self._phase("first step", self._step(optimizer=0)),
            self._phase("training", self._step(self.optimizer)),
            self._phase("saving", self._saving()),
        ]
        if self.pictures:
            phases.append(self._phase("sampling", self._sampling()))
        return MemoryPlan(tuple(phases), self.on_card)

    def _phase(self, name: str, parts: _Parts) -> Phase:
        if self.on_card:
            device = {"context": CUDA_CONTEXT, **parts.device}
            return Phase(name, _positive(device), _positive({"program": PROGRAM_WITH_CUDA, **parts.host}))
        return Phase(name, {}, _positive(Counter(program=PROGRAM) + Counter(parts.device) + Counter(parts.host)))

    # ------------------------------------------------------------ phases

    def _encoding(self) -> _Parts:
        """Pictures come first; the VAE then waits on the device while texts are encoded, unless it makes room."""
        text, vae = self._text_bytes, self._vae_bytes
        pixels = max([self.largest.pixels, self.largest.reference_pixels, *(p.pixels for p in self.pictures)])
        images = int(self.slack * pixels * self.facts.encode_numbers * self.number)
        prompts = int(self.slack * self.largest.text_tokens * self.facts.text_token_numbers * self.number)
        waiting_vae = 0 if self._makes_room else vae
        if vae + images > waiting_vae + text + prompts:
            return _Parts({"VAE": vae, "activations": images}) | self._cached()
        whole = (self.facts.text.linears + self.facts.text.others + self.facts.text.unused) * self.number
        read = whole if self.on_card else max(0, whole - text - prompts)
        there = {"text encoder": text, "VAE": waiting_vae, "activations": prompts}
        return _Parts(there, {"text encoder, read": read}) | self._cached()

    def _loading(self) -> _Parts:
        """At the last block: it is in its stored precision while it is quantized."""
        quantizing = 0
        if self.qtype:
            quantizing = self.facts.linears // self.facts.blocks * self.weight_bytes
            quantizing += QUANTIZING_COPIES * FLOAT * self.facts.largest_layer
        block = {"one block, quantized": quantizing}
        # On the CPU the pages of the file count as this process's until it is closed.
        file = 0 if self.on_card else _bytes_of_files(self.folder / self.family.trained_part)
        place = _Parts({}, block) if self._makes_room else _Parts(block)
        return self._model() | place | _Parts({}, {"model file": file}) | self._encoders_that_stay() | self._cached()

    def _step(self, optimizer: int) -> _Parts:
        """The worse of two moments: in the backward pass, or while the optimizer steps."""
        waiting = self.train.gradient_accumulation > 1
        fused = self.train.fused_backward_pass and not waiting
        gradients = self.trained_bytes * (self.largest_trained if fused else self.trained)
        tokens = self._tokens(self.largest)
        backward = backward_peak(self.passes, tokens, gradients, waiting, self.slack)
        copies = 0 if self._steps_in_place else STEPPING_COPIES * FLOAT * self.largest_trained
        if sum(backward) >= gradients + copies:
            work = dict(zip(("activations", "gradients"), backward, strict=True))
        else:
            work = {"gradients": gradients, "optimizer's copies": copies}
        offloaded = {"activations, offloaded": self.passes.kept_on_host(tokens)}
        return self._at_rest(optimizer) | _Parts(work, offloaded)

    def _saving(self) -> _Parts:
        """Everything is copied; where training goes on meanwhile, a step's memory is needed beside the copies."""
        averages = FLOAT * self.trained * self.train.ema_config.use_ema
        state = self.trained * self.trained_bytes + averages + self.optimizer
        raw = bool(averages) and "raw" in self.section.save.also
        files = self._counted.written * NUMBER_BYTES[self.section.save.dtype] * (1 + raw)
        files = 0 if self.section.save.mem_eff_save else files
        every, by_epochs = self.section.save.interval()
        goes_on = bool(by_epochs) or 0 < every < (self.train.steps or every + 1)
        now = self._step(self.optimizer) if goes_on else self._at_rest(self.optimizer)
        read_back = 0 if self.on_card else files  # its pages count as this process's meanwhile
        return now | _Parts({}, {"copies to be saved": state + files, "file, read back": read_back})

    def _sampling(self) -> _Parts:
        forward = max(self.passes.forward(self._tokens(picture)) for picture in self.pictures)
        decoding = max(p.pixels for p in self.pictures) * self.facts.decode_numbers * self.number
        work = {
            "VAE": self._vae_bytes,  # on the device while it decodes, whatever low_vram says
            "activations": int(self.slack * max(forward, decoding)),
            "weights beside their average": self.trained * self.trained_bytes * self.train.ema_config.use_ema,
        }
        return self._at_rest(self.optimizer) | _Parts(work)

    # ------------------------------------------------------------ what stays

    def _at_rest(self, optimizer: int) -> _Parts:
        """Between two steps. optimizer: bytes of its state."""
        own = {
            f"{self.network.type} weights": 0 if self.network.trains_model else FLOAT * self.trained,
            "optimizer": optimizer,
            "average": FLOAT * self.trained * self.train.ema_config.use_ema,
        }
        rows = max(TABLE_ROWS, AHEAD * self.train.batch_size) * self.facts.row_numbers * self.number
        table = {"modulation table": rows if self.tabulated else 0}
        return self._model() | _Parts(table | own) | self._encoders_that_stay() | self._cached()

    def _model(self) -> _Parts:
        """The weights of the transformer, wherever they are."""
        facts = self.facts
        blocks = facts.stored(facts.linears, self.qtype, self.weight_bytes)
        table = facts.stored(facts.tabulated_weights, self.qtype, self.weight_bytes) if self.tabulated else 0
        per_block = (blocks - table) // facts.blocks
        waiting = min(self.model.blocks_to_swap, facts.blocks)
        swapped = max(0, waiting - SWAP_BUFFERS) * per_block
        others = facts.others * self.weight_bytes
        if self.network.trains_model:  # what is not trained of it is kept in the type of the computation
            others -= (facts.linears + facts.others - self.trained) * (self.weight_bytes - self.number)
        recovery = Path(self.model.accuracy_recovery_adapter or "-").expanduser()
        others += recovery.stat().st_size if self.qtype and recovery.is_file() else 0
        # On the host a block stays where it was while it is in a buffer.
        host = {"weights of the table": table, "swapped blocks": waiting * per_block}
        return _Parts({"weights": blocks + others - table - swapped}, host)

    def _encoders_that_stay(self) -> _Parts:
        """The VAE for samples, the text encoder for captions that are encoded at each use."""
        parts = {"VAE": self._vae_bytes} if self.pictures else {}
        if any(group.shuffled for group in self.groups):
            parts["text encoder"] = self._text_bytes
        return _Parts({}, parts) if self._makes_room else _Parts(parts)

    def _cached(self) -> _Parts:
        """Cached pictures and texts that no file holds."""
        total = 0.0
        for group in self.groups:
            if group.keeps_latents:
                pixels = prod(group.bucket) + group.references * self._reference_pixels(group)
                total += group.count * pixels * self.facts.latent_numbers
            if group.keeps_text and not group.shuffled:
                total += group.count * self._text_tokens(group.references, group.longest) * self.facts.text_width
        return _Parts({}, {"cached data": int(total * self.number)})

    @property
    def _makes_room(self) -> bool:
        """Whether parts that are not at work leave the device."""
        return self.on_card and self.model.low_vram

    # ------------------------------------------------------------ sizes

    @cached_property
    def _text_bytes(self) -> int:
        per_linear = self.facts.bytes_per_weight[self.model.qtype_te] if self.model.quantize_te else self.number
        return self.facts.text.stored(per_linear, self.number)

    @cached_property
    def _vae_bytes(self) -> int:
        return self.facts.vae.stored(self.number, self.number)

    @cached_property
    def passes(self) -> Passes:
        casts = 0 if self.trained_bytes == self.number else self.trained * self.number // self.facts.blocks
        wide = self.model.int8_matmul is True or (self.model.int8_matmul == "auto" and self.facts.width >= 512)
        int8 = self.qtype == "int8" and not self.on_card and wide
        return Passes(
            kind=self.network.type,
            level=self.level,
            number_bytes=self.number,
            width=self.facts.width,
            blocks=self.facts.blocks,
            largest_layer=self.facts.largest_layer,
            expanded=(self.number + (self.qtype in ("int4", "int2"))) if self.qtype and not int8 else 0,
            casts=casts,
            int8_products=int8,
            dropout=bool(self.network.dropout),
        )

    def _text_tokens(self, references: int, letters: int) -> int:
        of_references = self.facts.text_tokens_per_reference * references
        return self.facts.text_tokens + of_references + ceil(letters / LETTERS_PER_TOKEN)

    def _tokens(self, largest: _Largest) -> int:
        """That the transformer sees."""
        pixels = largest.pixels + largest.references * largest.reference_pixels
        return largest.images * (pixels // self.facts.pixels_per_token + largest.text_tokens)

    # ------------------------------------------------------------ what is trained

    @cached_property
    def _counted(self) -> Trained:
        return count_trained(self.section)

    @cached_property
    def trained(self) -> int:
        """Weights that are trained."""
        return self._counted.weights

    @cached_property
    def largest_trained(self) -> int:
        return max(map(prod, self._counted.shapes))

    @property
    def trained_bytes(self) -> int:
        """Of a trained weight, and of its gradient: adapters are always float32."""
        return self.weight_bytes if self.network.trains_model else FLOAT

    @cached_property
    def optimizer(self) -> int:
        return self._counted.optimizer_bytes(self.train)

    @property
    def _steps_in_place(self) -> bool:
        """Whether the optimizer's step makes no copies of weights: torch's fused ones, and SGD."""
        return self.train.optimizer in ("adamw", "adam", "sgd") and not self.train.full_bf16

    @cached_property
    def tabulated(self) -> bool:
        """Whether the table stands for its layers: as `modulation.refuse_trained` decides."""
        wanted = self.model.modulation_table
        if wanted is False or (wanted == "auto" and not self.on_card):
            return False
        unfit = {"dora": self.facts.tabulated, "full": self.facts.tabulated | self.facts.table_inputs}
        return not unfit.get(self.network.type, set()) & set(self._counted.layers)

    # ------------------------------------------------------------ the largest of each

    @cached_property
    def largest(self) -> _Largest:
        """The batch of the most tokens that the buckets can give."""
        uses = Counter[Size]()
        for group in self.groups:
            uses[group.bucket] += group.uses
        candidates = (
            _Largest(
                images=min(self.train.batch_size, uses[group.bucket]),
                pixels=int(self.area * prod(group.bucket)),
                references=group.references,
                reference_pixels=self._reference_pixels(group) if group.references else 0,
                text_tokens=self._text_tokens(group.references, group.longest),
            )
            for group in self.groups
        )
        return max(candidates, key=self._tokens)

    @cached_property
    def pictures(self) -> list[_Largest]:
        """The samples that are drawn, one at a time; guidance is a second pass, not a larger one."""
        if self.train.disable_sampling:
            return []
        given = [part for part in (self.section.sample, self.section.first_sample) if part]
        return [
            _Largest(1, item.width * item.height, len(item.ctrl_img), self._sampled_reference(item), text)
            for part in given
            for item in part.pictures()
            for text in [self._text_tokens(len(item.ctrl_img), len(item.prompt))]
        ]

    def _reference_pixels(self, group: Group) -> int:
        if self.model.model_kwargs.match_target_res:
            return int(self.area * prod(group.bucket))
        return self.facts.reference_pixels

    def _sampled_reference(self, item: Any) -> int:
        return item.width * item.height if self.model.model_kwargs.match_target_res else self.facts.reference_pixels


def samples_before_training(section: Any) -> bool:
    """Whether a set of samples is drawn before the first step."""
    return bool(section.sample or section.first_sample) and draws_first(section) and not section.train.disable_sampling


def _bytes_of_files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _positive(parts: Mapping[str, int]) -> dict[str, int]:
    return {name: int(size) for name, size in parts.items() if size > 0}
