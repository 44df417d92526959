"""What `network.type: full` rules out, and what means nothing with it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from toolkit.config.choices import ONE_BY_ONE
from toolkit.config.process import Finding, JobContext
from toolkit.optim.choice import is_schedule_free

RESERVED_NAMES = ("state", "samples", "control", "superseded")
"""Folders of a run beside which the model's own folder `<name>/` lies."""

OF_ADAPTERS = ("linear", "linear_alpha", "dropout", "rank_dropout", "module_dropout", "loraplus_lr_ratio",
               "scale_weight_norms")  # fmt: skip
"""Keys of `network` that describe an adapter; the LoKr ones are told anyway."""


def check_full(section: Any, job: JobContext) -> Iterable[Finding]:
    """Mistakes of a job whose `network.type` is full, or that asks for what only such a job can do."""
    network, train = section.network, section.train
    if not network.trains_model:
        if train.full_bf16:
            message = "true: an adapter's weights are always float32. It belongs to 'network: {type: full}'."
            yield Finding(("train", "full_bf16"), message)
    else:
        if section.model.quantize:
            message = "true: quantized weights cannot be trained, and 'network.type: full' trains them. Write false."
            yield Finding(("model", "quantize"), message)
        if network.pretrained_lora_path is not None:
            message = "'type: full' trains no adapter that could start from a file. Leave it out."
            yield Finding(("network", "pretrained_lora_path"), message)
        if train.full_bf16 and train.dtype != "bfloat16":
            yield Finding(("train", "full_bf16"), f"true needs 'dtype: bf16', not {train.dtype}.")
        if section.display_name(job) in RESERVED_NAMES:
            message = f"{section.display_name(job)!r} is a folder of every run; the model's folder has the same name."
            yield Finding(("name",) if section.name else ("network", "type"), f"{message} Choose another.")
    yield from _check_single_steps(section)


def _check_single_steps(section: Any) -> Iterable[Finding]:
    """Both keys step one parameter at a time."""
    train = section.train
    for key in ("fused_backward_pass", "full_bf16"):
        if getattr(train, key) and train.optimizer not in ONE_BY_ONE:
            reason = "averages the weights itself" if is_schedule_free(train.optimizer) else "may need all gradients"
            message = f"true steps one parameter at a time, and {train.optimizer} {reason}. Use {_listed(ONE_BY_ONE)}."
            yield Finding(("train", key), message)


def note_full(section: Any) -> Iterable[Finding]:
    """Keys that are given and do nothing."""
    network = section.network
    if not network.trains_model:
        if section.save.mem_eff_save:
            yield Finding(("save", "mem_eff_save"), "has no effect: it belongs to 'network: {type: full}'.")
        return
    for key in OF_ADAPTERS:
        if key in network.model_fields_set:
            yield Finding(("network", key), "has no effect: 'type: full' trains the model itself, without an adapter.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
