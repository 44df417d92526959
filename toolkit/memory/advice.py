"""What a user can change when memory runs out: keys and values that are not used yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from toolkit.config.choices import ONE_BY_ONE
from toolkit.config.datasets_job import DatasetsJob
from toolkit.config.train import TrainConfig
from toolkit.place import place_of

SectionT = TypeVar("SectionT", bound=DatasetsJob)

OF_ONE_PROCESS = frozenset({"fused_backward_pass"})
"""Keys that several processes cannot change."""

OF_WHOLE_BLOCKS = OF_ONE_PROCESS | {"quantize", "qtype", "blocks_to_swap", "optimizer"}
"""The same where they share the blocks out (`train.parallel: fsdp`)."""

SMALLER = 0.75
"""Of the largest resolution, the next one that is advised; rounded down to 64 pixels."""

EIGHT_BIT = {"adamw": "adamw8bit", "adam": "adam8bit"}
"""Optimizers, and the same with a quarter of their state."""

SWAPPED = 30
"""Blocks that are advised to wait in the main memory: half of the published model's."""


@dataclass(frozen=True)
class Change:
    """A change of a job."""

    words: str
    """As the user has to write it."""

    values: tuple[tuple[str, str, Any], ...] = ()
    """(section, key, value) of each key that changes."""

    area: float = 1.0
    """Factor on the pixels of the pictures that are trained on."""

    is_last_resort: bool = False
    """Whether something else is learned, not the same in another way."""

    def applied(self, section: SectionT) -> SectionT:
        """A copy of a training section with the change."""
        for part, key, value in self.values:
            section = section.model_copy(update={part: getattr(section, part).model_copy(update={key: value})})
        return section


def memory_advice(section: DatasetsJob) -> str:
    """One sentence of the settings of a training section that would save memory and are not used yet, in the order of
    their usual effect."""
    return f"To save memory, in order of effect: {'; '.join(change.words for change in changes(section))}."


def changes(section: DatasetsJob) -> Iterator[Change]:
    """The same, each by itself."""
    excluded = _excluded(section.train)
    for change in _thinkable(section):
        if excluded.isdisjoint(key for _, key, _ in change.values):
            yield change


def _excluded(train: TrainConfig) -> frozenset[str]:
    if place_of().alone:
        return frozenset()
    return OF_WHOLE_BLOCKS if train.parallel == "fsdp" else OF_ONE_PROCESS


def _thinkable(section: DatasetsJob) -> Iterator[Change]:
    """Those that one process could make."""
    model, train = section.model, section.train
    if train.checkpointing_level() not in ("auto", "full", "full_offload"):
        yield _set("train", gradient_checkpointing="auto")
    if section.network.trains_model:
        yield from _for_a_whole_model(train)
    elif not model.quantize:
        yield _set("model", "model.quantize: true with qtype: int8", quantize=True, qtype="int8")
    elif model.qtype not in ("int4", "int2"):
        yield _set("model", qtype="int4")
    if train.batch_size > 1:
        accumulation = train.batch_size * train.gradient_accumulation
        words = f"train.batch_size: 1 with gradient_accumulation: {accumulation}"
        yield _set("train", words, batch_size=1, gradient_accumulation=accumulation)
    if any(dataset.control_path for dataset in section.datasets) and not model.model_kwargs.match_target_res:
        kwargs = model.model_kwargs.model_copy(update={"match_target_res": True})
        yield _set("model", "model.model_kwargs.match_target_res: true", model_kwargs=kwargs)
    if train.checkpointing_level() == "full":
        yield _set("train", gradient_checkpointing="full_offload")
    if not section.network.trains_model and not model.blocks_to_swap:
        yield _set("model", blocks_to_swap=SWAPPED)
    if not section.network.trains_model and train.optimizer in EIGHT_BIT:
        yield _set("train", optimizer=EIGHT_BIT[train.optimizer])
    if train.ema_config.use_ema:
        ema = train.ema_config.model_copy(update={"use_ema": False})
        yield _set("train", "train.ema_config.use_ema: false", ema_config=ema)
    if not model.quantize_te:
        yield _set("model", "model.quantize_te: true with qtype_te: int8", quantize_te=True, qtype_te="int8")
    if not model.low_vram:
        yield _set("model", low_vram=True)
    if (section.sample or section.first_sample) and not train.disable_sampling:
        yield _set("train", "smaller pictures in sample, or train.disable_sampling: true", disable_sampling=True)
    largest = max(size for dataset in section.datasets for size in dataset.resolution)
    smaller = int(SMALLER * largest) // 64 * 64
    if smaller:
        yield Change(f"datasets[].resolution: {smaller}", area=(smaller / largest) ** 2, is_last_resort=True)
    if section.network.trains_model:
        yield _as_an_adapter(train)
    elif section.network.linear > 8:
        yield replace(_set("network", linear=8), is_last_resort=True)


def _for_a_whole_model(train: TrainConfig) -> Iterator[Change]:
    if train.optimizer not in ("adafactor", "sgd"):
        yield _set("train", optimizer="adafactor", optimizer_params={}, words="train.optimizer: adafactor")
    if not train.full_bf16 and train.optimizer in ONE_BY_ONE:
        yield _set("train", "train.full_bf16: true with dtype: bf16", full_bf16=True, dtype="bfloat16")
    if not train.fused_backward_pass and train.optimizer in ONE_BY_ONE:
        words = "train.fused_backward_pass: true with max_grad_norm: 0 and gradient_accumulation: 1"
        yield _set("train", words, fused_backward_pass=True, max_grad_norm=0.0, gradient_accumulation=1)


def _as_an_adapter(train: TrainConfig) -> Change:
    """A LoRA instead of the model itself; its weights are always float32."""
    words = "network.type: lora" + (" and train.full_bf16: false" if train.full_bf16 else "")
    return Change(words, (("network", "type", "lora"), ("train", "full_bf16", False)), is_last_resort=True)


def _set(part: str, words: str = "", **values: Any) -> Change:
    """words: by default the first key and its value."""
    key, value = next(iter(values.items()))
    shown = str(value).lower() if isinstance(value, bool) else value
    return Change(words or f"{part}.{key}: {shown}", tuple((part, key, value) for key, value in values.items()))
