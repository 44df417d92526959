"""Invalid combinations of keys of an `sd_trainer` section: one table of rules. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from toolkit.config.field_types import PER_PARAMETER_OPTIMIZERS
from toolkit.config.process import Diagnostic
from toolkit.config.sections import DiffusionSection
from toolkit.config.train import PRESERVATIONS
from toolkit.errors import UserError
from toolkit.models.families import family_for
from toolkit.networks.kinds import KINDS
from toolkit.optim.optimizer_args import (
    ELEMENTWISE,
    is_schedule_free,
    requires_single_lr,
)
from toolkit.system.distributed_env import read_distributed_env


@dataclass(frozen=True)
class Rule:
    """One check of a section, with its message."""

    key: str
    """Dotted key that the message is attached to."""

    when: Callable[[DiffusionSection], object]
    message: str
    """Format string with `s` (the section), `model`, `network`, `train`, and `processes` (the world size)."""

    def __call__(self, s: DiffusionSection) -> Iterator[Diagnostic]:
        if self.when(s):
            parts = {
                "model": s.model,
                "network": s.network,
                "train": s.train,
                "processes": read_distributed_env().world_size,
            }
            yield Diagnostic(tuple(self.key.split(".")), self.message.format(s=s, **parts))


Check = Callable[[DiffusionSection], Iterable[Diagnostic]]
"""A rule, or a function for what is no single condition."""

MERGED = tuple(name for name, kind in KINDS.items() if kind.extracts_lora)
"""Kinds of network beside whose files a plain LoRA can be written."""

MIN_BLOCKS_TO_SWAP = 3
"""Two swapped blocks have buffers on the device, so fewer than this save nothing."""

LEAST_SHIFT = 0.001
"""Of `train.discrete_flow_shift`, as of `sample.flow_shift`."""

OTHER_DRAWS = ("eager", "eager_debug", "eager_noexcept", "pre_dispatch_eager")
"""Compilers by which a block that is recomputed draws anew, so that its gradients are of another dropout
(torch/_higher_order_ops/wrap.py, `divide_kwargs`: the others make draws a part of the program)."""


def mistakes(section: DiffusionSection) -> Iterator[Diagnostic]:
    """All errors of the table."""
    for check in MISTAKES:
        yield from check(section)


# ------------------------------------------------------------ conditions


def is_full(s: DiffusionSection) -> bool:
    return s.network.trains_model


def with_full(when: Callable[[DiffusionSection], object]) -> Callable[[DiffusionSection], object]:
    return lambda s: s.network.trains_model and when(s)


def _with_schedule_free(when: Callable[[DiffusionSection], object]) -> Callable[[DiffusionSection], object]:
    return lambda s: is_schedule_free(s.train.optimizer) and when(s)


def _with_fsdp(when: Callable[[DiffusionSection], object]) -> Callable[[DiffusionSection], object]:
    """With a model that is sharded over several ranks, which have to make the same passes over its blocks."""
    return lambda s: not read_distributed_env().is_single_process and s.train.parallel == "fsdp" and when(s)


def _lowers_all_noise(shift: float | None) -> bool:
    """Whether levels shifted so far are no noise: 0.001 leaves a hundredth where there was nearly all (t = 0.91)."""
    return shift is not None and shift < LEAST_SHIFT


def _drops(s: DiffusionSection) -> bool:
    network = s.network
    return not is_full(s) and bool(network.dropout or network.rank_dropout or network.module_dropout)


def _preserves(name: str, s: DiffusionSection) -> bool:
    return name in s.train.preservations()


def _has_trigger(s: DiffusionSection) -> bool:
    return bool(s.trigger_word or any(dataset.trigger_word for dataset in s.datasets))


def _single_steps(key: str) -> tuple[Check, Check]:
    """Both keys step one parameter at a time."""
    remedy = f"Use {', '.join(PER_PARAMETER_OPTIMIZERS)}."

    def unfit(s: DiffusionSection) -> bool:
        return getattr(s.train, key) and s.train.optimizer not in PER_PARAMETER_OPTIMIZERS

    message = "true steps one parameter at a time, and {train.optimizer} "
    return (
        Rule(f"train.{key}", _with_schedule_free(unfit), f"{message}averages the weights itself. {remedy}"),
        Rule(
            f"train.{key}",
            lambda s: unfit(s) and not is_schedule_free(s.train.optimizer),
            f"{message}may need all gradients. {remedy}",
        ),
    )


def _excluded_by_fsdp(part: str, key: str, given: Callable[[DiffusionSection], object], reason: str) -> Rule:
    message = f"not with 'train.parallel: fsdp': {reason}. Leave one of them out."
    return Rule(f"{part}.{key}", _with_fsdp(given), message)


def _has_no_merged_lora(of_model: bool) -> Callable[[DiffusionSection], bool]:
    """of_model: of the kind that trains the model itself, else of all others."""
    return lambda s: (
        "merged_lora" in s.save.also and s.network.type not in MERGED and s.network.trains_model == of_model
    )


def _has_qinglong(key: str, plain: object) -> Rule:
    return Rule(
        f"train.{key}",
        lambda s: s.train.noise_levels().startswith("qinglong") and getattr(s.train, key) != plain,
        "'timestep_type: {train.timestep_type}' is a mixture and cannot be bent or cut. Leave it out.",
    )


# ------------------------------------------------------------ checks that are no single condition


def _swapped(s: DiffusionSection) -> Iterator[Diagnostic]:
    count, key = s.model.blocks_to_swap, ("model", "blocks_to_swap")
    if not count or is_full(s):
        return
    try:
        blocks = family_for(s.model).block_count(Path(s.model.name_or_path).expanduser())
    except UserError:  # another rule reports the model
        return
    if count >= blocks:
        most = blocks - 1 if blocks > MIN_BLOCKS_TO_SWAP else 0  # fewer save no memory
        yield Diagnostic(key, f"{count}, but the model has {blocks} blocks, of which one has to stay. Write {most}.")


def _first_samples(s: DiffusionSection) -> Iterator[Diagnostic]:
    """Keys that contradict each other about the first set."""
    train, sample = s.train, s.sample
    wanted = [
        (("sample", "sample_at_first"), "sample_at_first: true", sample and sample.sample_at_first),
        (("train", "force_first_sample"), "force_first_sample: true", train.force_first_sample),
        (("first_sample",), "first_sample", s.first_sample),
        (
            ("train", "skip_first_sample"),
            "skip_first_sample: false",
            "skip_first_sample" in train.model_fields_set and not train.skip_first_sample,
        ),
    ]
    unwanted = [
        ("skip_first_sample: true", train.skip_first_sample),
        ("sample_at_first: false", sample and sample.sample_at_first is False),
    ]
    asks = next(((key, text) for key, text, given in wanted if given), None)
    denies = next((text for text, given in unwanted if given), None)
    if asks and denies:
        yield Diagnostic(asks[0], f"{asks[1]!r} and {denies!r} contradict each other. Leave one of them out.")


_FSDP = "'train.parallel: fsdp'"
_ONE_RATE = "'optimizer: {train.optimizer}' finds one rate for all weights. Leave this key out, or take 'adamw'."

MISTAKES: tuple[Check, ...] = (
    # ---------------------------------------- the model itself is trained
    Rule(
        "train.full_bf16",
        lambda s: s.train.full_bf16 and not is_full(s),
        "true: an adapter's weights are always float32. It belongs to 'network: {{type: full}}'.",
    ),
    Rule(
        "model.quantize",
        with_full(lambda s: s.model.quantize),
        "true: quantized weights cannot be trained, and 'network.type: full' trains them. Write false.",
    ),
    Rule(
        "network.pretrained_lora_path",
        with_full(lambda s: s.network.pretrained_lora_path is not None),
        "'type: full' trains no adapter that could start from a file. Leave it out.",
    ),
    Rule(
        "train.full_bf16",
        with_full(lambda s: s.train.full_bf16 and s.train.dtype != "bfloat16"),
        "true needs 'dtype: bf16', not {train.dtype}.",
    ),
    Rule(
        "train.fused_backward_pass",
        lambda s: s.train.fused_backward_pass and s.train.dtype == "float16",
        "true does not go with 'dtype: float16', whose gradients count only when all are there. Use bf16.",
    ),
    *_single_steps("fused_backward_pass"),
    *_single_steps("full_bf16"),
    # ---------------------------------------- prior preservation
    *(
        Rule(
            f"train.{name}",
            with_full(partial(_preserves, name)),
            "true: the base model is what the adapter is switched off for, and 'network.type: full' has none. "
            "Leave it out.",
        )
        for name in PRESERVATIONS
    ),
    Rule(
        "train.diff_output_preservation",
        lambda s: _preserves("diff_output_preservation", s) and not _has_trigger(s),
        "true puts a class for the trigger word, and there is none. Give 'trigger_word', or use "
        "'blank_prompt_preservation'.",
    ),
    # ---------------------------------------- learning rates
    Rule(
        "network.loraplus_lr_ratio",
        lambda s: s.network.loraplus_lr_ratio not in (0, 1) and not KINDS[s.network.type].up_names,
        "'type: {network.type}' has no up matrix that could learn faster. Leave this key out.",
    ),
    Rule(
        "network.loraplus_lr_ratio",
        lambda s: requires_single_lr(s.train.optimizer) and s.network.loraplus_lr_ratio not in (0, 1),
        _ONE_RATE,
    ),
    Rule(
        "network.scale_weight_norms",
        with_full(lambda s: s.network.scale_weight_norms),
        "'type: full' has no adapter to limit. Leave this key out.",
    ),
    Rule(
        "network.scale_weight_norms",
        _with_schedule_free(lambda s: s.network.scale_weight_norms and not is_full(s)),
        "'optimizer: {train.optimizer}' saves an average of the weights, for which the limit would not hold. "
        "Leave this key out, or take 'adamw'.",
    ),
    # ---------------------------------------- how blocks are run
    Rule(
        "train.compile.backend",
        lambda s: (
            s.train.compile.enabled
            and s.train.compile.backend in OTHER_DRAWS
            and _drops(s)
            and s.train.checkpointing_level() != "none"
        ),
        "{train.compile.backend!r} draws dropout anew where a block is computed again, and the gradients would be "
        "wrong. Use inductor or aot_eager, or 'gradient_checkpointing: none'.",
    ),
    Rule(
        "model.blocks_to_swap",
        with_full(lambda s: s.model.blocks_to_swap),
        "{model.blocks_to_swap}: only frozen weights can be swapped, and 'network.type: full' trains them. Write 0.",
    ),
    _swapped,
    Rule(
        "train.num_timestep_buckets",
        lambda s: s.train.num_timestep_buckets and s.streamed and not s.streamed.webdataset.samples,
        "{train.num_timestep_buckets}: a stream needs 'datasets[0].webdataset.samples' for it. Give the number, or 0.",
    ),
    # ---------------------------------------- noise levels, files, samples, what is measured
    Rule(
        "train.discrete_flow_shift",
        lambda s: s.train.noise_levels() == "shift" and _lowers_all_noise(s.train.discrete_flow_shift),
        "{train.discrete_flow_shift:g} would train without any noise. Give a value of 0.001 or more; 1 shifts nothing.",
    ),
    Rule(
        "train.min_timestep",
        lambda s: s.train.min_timestep >= s.train.max_timestep,
        "{train.min_timestep:g} leaves nothing below max_timestep {train.max_timestep:g}.",
    ),
    _has_qinglong("content_or_style", "balanced"),
    _has_qinglong("preserve_distribution_shape", False),
    *(
        Rule(
            "save.also",
            _has_no_merged_lora(of_model),
            f"'merged_lora' goes with {', '.join(MERGED)}. With 'type: {{network.type}}' {why}. Leave it out.",
        )
        for of_model, why in (
            (False, "the files are plain LoRAs already"),
            (True, "no adapter is trained"),
        )
    ),
    _first_samples,
    Rule(
        "first_sample",
        lambda s: s.first_sample and not s.first_sample.samples,
        "holds no prompts. Give its own 'prompts' or 'samples': none are taken over from 'sample'.",
    ),
    # ---------------------------------------- several processes
    Rule(
        "train.fused_backward_pass",
        lambda s: not read_distributed_env().is_single_process and s.train.fused_backward_pass,
        "true steps each parameter before the gradients of all {processes} processes are added up. Write false.",
    ),
    Rule(
        "train.batch_size",  # items of unlike sizes take several passes
        _with_fsdp(lambda s: s.train.batch_size > 1),
        f"{{train.batch_size}}: with {_FSDP} write 1, and more gradient_accumulation.",
    ),
    Rule(
        "train.gradient_accumulation",
        _with_fsdp(lambda s: s.micro_batches_per_step % read_distributed_env().world_size),
        f"{{train.gradient_accumulation}}: with {_FSDP} give a multiple of the {{processes}} processes.",
    ),
    Rule(
        "train.optimizer",
        _with_fsdp(with_full(lambda s: s.train.optimizer not in ELEMENTWISE)),
        f"{{train.optimizer!r}} may look at more of a weight than one number of it, and {_FSDP} shares the weights "
        f"out. Use one of {', '.join(ELEMENTWISE)}.",
    ),
    Rule(
        "save.mem_eff_save",
        _with_fsdp(with_full(lambda s: s.save.mem_eff_save)),
        f"true writes the weights from where they are, and {_FSDP} has them in all processes. Write false.",
    ),
    Rule(
        "network.type",
        _with_fsdp(lambda s: KINDS[s.network.type].needs_base),
        f"'type: dora' needs the norms of whole weights, and {_FSDP} shares them out. Use lora, loha or lokr.",
    ),
    _excluded_by_fsdp(
        "model", "quantize", lambda s: s.model.quantize, "FSDP2 shares out parameters, and quantized weights are none"
    ),
    _excluded_by_fsdp(
        "model", "blocks_to_swap", lambda s: s.model.blocks_to_swap, "the blocks are on the GPUs, a share on each"
    ),
    _excluded_by_fsdp(
        "model",
        "modulation_table",
        lambda s: s.model.modulation_table is True,
        "the table's weights are shared out too",
    ),
    _excluded_by_fsdp(
        "train", "compile", lambda s: s.train.compile.enabled is True, "compiled blocks do not gather their weights"
    ),
)
