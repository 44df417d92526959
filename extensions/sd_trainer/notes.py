"""Warnings about `sd_trainer` settings that are allowed but have no effect or a doubtful one. Imports no torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from extensions.sd_trainer.rules import MIN_BLOCKS_TO_SWAP, Check, Rule, is_full, with_full
from toolkit.config.base import StrictModel
from toolkit.config.compat.model import QTYPE_SPELLINGS
from toolkit.config.dataset import LOSS
from toolkit.config.located import KeyPath
from toolkit.config.model_files import size_note
from toolkit.config.output import SampleConfig
from toolkit.config.process import Diagnostic
from toolkit.config.sections import DiffusionSection
from toolkit.config.train import PRESERVATIONS, EmaConfig
from toolkit.data.types import Size
from toolkit.errors import UserError
from toolkit.models.families import family_for, published_names
from toolkit.optim.schedules import KEYS, SCHEDULES, remarks
from toolkit.system.distributed_env import read_distributed_env

OF_ADAPTERS = ("linear", "linear_alpha", "dropout", "rank_dropout", "module_dropout", "loraplus_lr_ratio",
               "scale_weight_norms")  # fmt: skip
"""Keys of `network` that describe an adapter; other checks cover those of LoKr."""


HIGHEST_LR = {
    **dict.fromkeys(
        ("adamw", "adam", "lion", "adamw8bit", "adam8bit", "ademamix8bit", "lion8bit", "schedulefree_adamw"), 0.01
    ),
    "muon": 0.1,
    "prodigy": 10,
}
"""Optimizer -> learning rate above which a typing error, or the rate of another optimizer, is likely."""


ADAPTER_LR = 5e-4
"""Learning rate above which an adapter of a large model tends to burn (docs/first_character.md)."""

LARGE_MODEL_BLOCKS = 20


def notes(section: DiffusionSection) -> Iterator[Diagnostic]:
    """Settings that are allowed but have no effect, or train nothing."""
    for check in NOTES:
        yield from check(section)


def _given_alone(key: str) -> Callable[[DiffusionSection], bool]:
    return lambda s: read_distributed_env().is_single_process and _given(s.train, key)


def _given_of_network(key: str) -> Callable[[DiffusionSection], bool]:
    return lambda s: key in s.network.model_fields_set


def _given(section: StrictModel, key: str) -> bool:
    """Whether a key differs from its default."""
    return getattr(section, key) != type(section).model_fields[key].default


def _without_effect(s: DiffusionSection) -> Iterator[Diagnostic]:
    for name in ("train", "logging", "save", "sample"):
        part = getattr(s, name)
        yield from (Diagnostic((name, key), message) for key, message in (part.unused_keys() if part else ()))


def _schedule(s: DiffusionSection) -> Iterator[Diagnostic]:
    train, uses = s.train, SCHEDULES[s.train.lr_scheduler].uses
    for field, key in KEYS.items():
        if _given(train, key) and field not in ("warmup", *uses):
            yield Diagnostic(("train", key), f"has no effect: {train.lr_scheduler} does not use it.")
    for param, message in remarks(train.lr_scheduler, train.lr_scheduler_params):
        yield Diagnostic(("train", "lr_scheduler_params", param), message)


def _high_lr(s: DiffusionSection) -> Iterator[Diagnostic]:
    """Rates that small models bear and large ones do not."""
    highest = HIGHEST_LR.get(s.train.optimizer)
    if is_full(s) or highest != HIGHEST_LR["adamw"] or not ADAPTER_LR < s.train.lr <= highest:
        return
    folder = s.model.files_folder()
    if not folder.is_dir() and s.model.name_or_path not in published_names():
        return  # an earlier process makes it, of a size that is not known here
    try:
        blocks = family_for(s.model).block_count(folder)
    except UserError:  # the plan reports the model
        return
    if blocks >= LARGE_MODEL_BLOCKS:
        message = f"{s.train.lr:g}: above {ADAPTER_LR:g} the images of so large a model tend to burn."
        yield Diagnostic(("train", "lr"), f"{message} Usual is 0.0001 to 0.0002.")


def _sizes(s: DiffusionSection) -> Iterator[Diagnostic]:
    """Sizes that a model from nothing has never seen."""
    folder = s.model.files_folder()
    for index, dataset in enumerate(s.datasets):
        sizes = [(r, r) if isinstance(r, int) else (r.width, r.height) for r in dataset.resolution]
        if note := size_note(folder, sizes):
            yield Diagnostic(("datasets", index, "resolution"), note)
    if note := size_note(folder, [(item.width, item.height) for item in s.sample_pictures()]):
        yield Diagnostic(("sample",), note)


def _datasets(s: DiffusionSection) -> Iterator[Diagnostic]:
    for index, dataset in enumerate(s.datasets):
        if dataset.loss_multiplier == 0:
            yield Diagnostic(("datasets", index, "loss_multiplier"), "0: nothing is learned from these images.")
        for slot, control in enumerate(dataset.control_path):
            if Path(control).expanduser().resolve() == Path(dataset.folder_path).expanduser().resolve():
                message = f"{control!r} is the folder of the images: each is its own reference, to be copied."
                yield Diagnostic(("datasets", index, "control_path", slot), message)
        if dataset.mask_path is None:
            alone = [key for key in ("mask_min_value", "invert_mask") if getattr(dataset, key)]
            for key in ("mask_optional", *([] if dataset.alpha_mask else alone)):
                if getattr(dataset, key):
                    yield Diagnostic(("datasets", index, key), "has no effect without a mask.")


def _of_accelerate(s: DiffusionSection) -> Iterator[Diagnostic]:
    """`accelerate launch --mixed_precision` (or its configuration) hands its choice on in a variable."""
    asked = {"fp16": "float16", "bf16": "bfloat16", "no": "float32"}.get(
        os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    )
    if asked and asked != s.train.dtype:
        message = f"decides ({s.train.dtype}), not accelerate's --mixed_precision, which asks for {asked}."
        yield Diagnostic(("train", "dtype"), message)


def _two_sizes(s: DiffusionSection) -> Iterator[Diagnostic]:
    """Two sides of a rectangle, as musubi-tuner's `resolution`, look like ai-toolkit's list of two sizes."""
    for index, dataset in enumerate(s.datasets):
        sizes = dataset.resolution
        if len(sizes) == 2 and all(isinstance(size, int) for size in sizes):
            rectangle = f"{{width: {sizes[0]}, height: {sizes[1]}}}"
            message = f"[{sizes[0]}, {sizes[1]}] are two sizes, and each image is trained at both. One rectangle is"
            yield Diagnostic(("datasets", index, "resolution"), f"{message} '{rectangle}'.")


def _few_validations(s: DiffusionSection) -> Iterator[Diagnostic]:
    """An early stop that cannot happen."""
    if not (s.validation and s.stop_when and s.stop_when.metric.startswith(LOSS)):
        return
    every, smooth, steps = s.validation.every, s.stop_when.smooth, _steps(s)
    if s.validation.every_n_epochs or (every and not steps):
        return  # their number is known only once the images are counted
    times = 1 + steps // every if every else 1
    if times < smooth:
        message = f"no effect: {smooth} validations are never reached, there are {times} before the end."
        yield Diagnostic(("stop_when", "smooth"), f"{message} Lower it, or 'validation.every'.")


def _steps(s: DiffusionSection) -> int:
    """Optimizer steps of the run; 0: known only once the images are counted."""
    return 0 if s.train.epochs else s.train.steps


def _validates_training(s: DiffusionSection) -> bool:
    if not s.validation or s.validation.folder_path is None:
        return False
    if s.streamed:
        return False
    folders = (s.validation.folder_path, *(dataset.folder_path for dataset in s.datasets))
    first, *others = (Path(folder).expanduser().resolve() for folder in folders)
    return first in others


def _of_first_samples(s: DiffusionSection) -> Iterator[Diagnostic]:
    given = s.first_sample.model_fields_set if s.first_sample else set()
    for key in ("sample_every", "sample_every_n_epochs", "sample_start_step", "sample_at_first"):
        if key in given:
            yield Diagnostic(("first_sample", key), "has no effect: these pictures are drawn once, before step 1.")


def _compile(s: DiffusionSection) -> Iterator[Diagnostic]:
    settings = s.train.compile
    for name in sorted(settings.model_fields_set - {"enabled"}):
        if not settings.enabled:
            yield Diagnostic(("train", "compile", name), "has no effect with 'enabled: false'.")
        elif name == "mode" and settings.mode != "default" and settings.backend != "inductor":
            yield Diagnostic(
                ("train", "compile", name), f"has no effect: 'backend: {settings.backend}' knows no modes."
            )


def _drawn_sizes(s: DiffusionSection) -> Iterator[Diagnostic]:
    """Sides that the model cannot generate."""
    try:
        family = family_for(s.model)
    except UserError:  # the plan reports the model
        return
    for name in ("sample", "first_sample"):
        section: SampleConfig | None = getattr(s, name)
        items: list[tuple[KeyPath, Any]] = [((name,), section)] if section else []
        items += [((name, "samples", index), item) for index, item in enumerate(section.samples if section else ())]
        for (key, item), side in product(items, ("width", "height")):
            pixels = getattr(item, side) or 0  # not given: that of the section
            drawn = family.drawable(Size(pixels, pixels)).width
            if drawn != pixels:
                yield Diagnostic((*key, side), f"{pixels}: drawn at {drawn}, the nearest below that the model has.")


def _base_loras(s: DiffusionSection) -> Iterator[Diagnostic]:
    for index, lora in enumerate(s.model.base_loras):
        if lora.multiplier == 0:
            yield Diagnostic(("model", "base_loras", index, "multiplier"), "0: the file is left out.")


_TYPE_IN_A_NAME = re.compile(r"(?<![a-z0-9])(?:q?u?int[2-8]|q?float8|fp8|nf4|nvfp4)(?![a-z0-9])")


def _recovery_of_another_type(s: DiffusionSection) -> Iterator[Diagnostic]:
    """An adapter makes up for the errors of the type that it was made with, and its file's name mostly says it."""
    if not s.model.quantize or not s.model.accuracy_recovery_adapter:
        return
    named = _TYPE_IN_A_NAME.findall(s.model.recovery_name().lower().replace("_", " "))
    if named and s.model.qtype not in {QTYPE_SPELLINGS.get(name, name) for name in named}:
        message = f"its name says {named[0]}, and qtype is {s.model.qtype}: it makes up for other errors than are made."
        yield Diagnostic(("model", "accuracy_recovery_adapter"), f"{message} Leave it out, or give one for this type.")


def _is_zero(switch: str, factor: str) -> Callable[[DiffusionSection], bool]:
    return lambda s: getattr(s.train, switch) and not getattr(s.train, factor)


def _needs_switch(key: str, switch: str) -> Rule:
    return Rule(
        f"model.{key}",
        lambda s: key in s.model.model_fields_set and not getattr(s.model, switch),
        f"has no effect without '{switch}: true'.",
    )


NOTES: tuple[Check, ...] = (
    _of_accelerate,
    Rule("train.lr", lambda s: s.train.lr == 0, "0: nothing is learned."),
    Rule(
        "train.optimizer",
        lambda s: s.train.optimizer == "prodigy" and 0 < s.train.lr < 0.1,
        "prodigy finds the rate itself, and lr {train.lr:g} slows it. Usual is 'lr: 1'.",
    ),
    Rule(
        "train.lr",
        lambda s: s.train.lr > HIGHEST_LR.get(s.train.optimizer, math.inf),
        "{train.lr:g} is far above the usual for {train.optimizer}: the weights are likely to diverge. "
        "Usual is 1e-4, with prodigy 1.",
    ),
    _high_lr,
    _without_effect,
    _schedule,
    Rule(
        "train.steps",
        lambda s: s.train.epochs and s.train.steps and "steps" in s.train.model_fields_set,
        "has no effect: 'epochs: {train.epochs}' decides. Leave one of them out.",
    ),
    Rule(
        "train.ema_config.ema_decay",
        lambda s: s.train.ema_config == EmaConfig(use_ema=True, ema_decay=1, use_num_updates=False),
        "1: the average stays what the weights were at the start, and that is what is saved. Usual is 0.999.",
    ),
    Rule(
        "train.diff_output_preservation_class",
        lambda s: s.train.diff_output_preservation and not s.train.diff_output_preservation_class,
        "not given: the trigger word is left out of the captions. Usual is what it is an example of, such as 'woman'.",
    ),
    *(
        Rule(f"train.{name}_multiplier", _is_zero(name, f"{name}_multiplier"), f"0: '{name}' has no effect.")
        for name in PRESERVATIONS
    ),
    _datasets,
    _sizes,
    _two_sizes,
    Rule(
        "train.reg_weight",
        lambda s: s.train.reg_weight != 1 and not any(dataset.is_reg for dataset in s.datasets),
        "has no effect: no dataset has 'is_reg: true'.",
    ),
    Rule(
        "train.reg_weight",
        lambda s: s.train.reg_weight == 0 and any(dataset.is_reg for dataset in s.datasets),
        "0: nothing is learned from regularisation images.",
    ),
    Rule(
        "stop_when.min_steps",
        lambda s: s.stop_when and _steps(s) and s.stop_when.min_steps >= _steps(s),
        "{s.stop_when.min_steps}: the training ends at step {train.steps} anyway.",
    ),
    _few_validations,
    Rule(
        "validation.folder_path",
        _validates_training,
        "{s.validation.folder_path!r} is trained on as well: a low loss says nothing of other images.",
    ),
    *(
        Rule(
            f"train.{key}",
            _given_alone(key),
            "has no effect with one process. Start several with torchrun.",
        )
        for key in ("parallel", "ddp_timeout")
    ),
    _of_first_samples,
    Rule(
        "train.force_first_sample",
        lambda s: s.train.force_first_sample and not s.sample,
        "has no effect without a 'sample' section.",
    ),
    Rule(
        "save.mem_eff_save",
        lambda s: s.save.mem_eff_save and not is_full(s),
        "has no effect: it belongs to 'network: {{type: full}}'.",
    ),
    *(
        Rule(
            f"network.{key}",
            with_full(_given_of_network(key)),
            "has no effect: 'type: full' trains the model itself, without an adapter.",
        )
        for key in OF_ADAPTERS
    ),
    Rule(
        "model.blocks_to_swap",
        lambda s: 0 < s.model.blocks_to_swap < MIN_BLOCKS_TO_SWAP,
        "{model.blocks_to_swap} saves no memory: two swapped blocks have room on the device. "
        f"Use at least {MIN_BLOCKS_TO_SWAP}.",
    ),
    _compile,
    Rule(
        "network.linear_alpha",
        lambda s: s.network.linear_alpha == 0 and not is_full(s),
        "0: the network has no effect.",
    ),
    Rule(
        "network.dropout",
        lambda s: s.network.dropout == 1 and not is_full(s),
        "1: every input of the adapter is zeroed, and nothing is learned.",
    ),
    Rule(
        "save.merged_lora_rank",
        lambda s: "merged_lora_rank" in s.save.model_fields_set and "merged_lora" not in s.save.also,
        "has no effect without 'also: [merged_lora]'.",
    ),
    _base_loras,
    _drawn_sizes,
    *(_needs_switch(key, "quantize") for key in ("qtype", "accuracy_recovery_adapter", "int8_matmul")),
    _needs_switch("qtype_te", "quantize_te"),
    Rule(
        "model.int8_matmul",
        lambda s: (
            s.model.quantize
            and s.model.int8_matmul is True
            and s.model.qtype != "int8"
            and not s.model.accuracy_recovery_adapter
        ),
        "has no effect with 'qtype: {model.qtype}': it concerns int8.",
    ),
    Rule(
        "model.qtype",
        lambda s: s.model.quantize and s.model.qtype in ("int2", "uint2") and not s.model.accuracy_recovery_adapter,
        "{model.qtype}: weights are off by half without an adapter that makes up for it ('{model.qtype}|file').",
    ),
    _recovery_of_another_type,
)
