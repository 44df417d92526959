"""`train` and `stop_when`: length, optimizer, loss and precision of the training.

`OptimizerConfig` is the optimizer of one set of parameters, `OptimizationConfig` adds
what every training has, and `TrainConfig` the keys of diffusion models. Smaller
sections are `ema_config` and `compile`. `stop_when` ends a process early, at a bound of
a metric or when the validation loss stops improving.

Names of optimizers and schedules come from `toolkit/optim`, those of losses and
timesteps from `toolkit/flow/settings.py`. Rules that concern other sections too are in
the `rules.py` of a trainer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from toolkit.config.reading.base import ChangeKind, StrictModel
from toolkit.config.reading.field_types import (
    UNCOMPILED_LEVELS,
    AutoOrBool,
    Checkpointing,
    Dtype,
    OneOf,
    reader_of,
    value_error,
)
from toolkit.config.reading.findings import (
    Findings,
    JobContext,
    error,
    warning,
)
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.config.reading.normalise import merge_aliases
from toolkit.config.sections.dataset import LOSS
from toolkit.config.sections.lora_beside import PathOrLora
from toolkit.errors import UserError, did_you_mean
from toolkit.flow.settings import (
    LOSS_TYPES,
    TIMESTEP_TYPES,
    WEIGHTING_SCHEMES,
)
from toolkit.optim.optimizer_args import (
    OPTIMIZERS,
    ArgumentError,
    check_optimizer,
    imported_code,
    is_schedule_free,
    takes_argument,
    unnamed_arguments,
)
from toolkit.optim.schedules import SCHEDULES, check_parameters


class EmaConfig(StrictModel):
    """`train.ema_config`: exponential moving average (EMA) of the trained weights,
    updated at each optimizer step.

    Example:
        ema_config: {use_ema: true, ema_decay: 0.99}
    """

    use_ema: bool = False
    """Keep an EMA of the weights; samples and saved LoRAs use it."""

    ema_decay: float = Field(default=0.999, ge=0, le=1)
    """Decay of the average per optimizer step; in step n at most (1 + n) / (10 + n), so
    that early files are not the initial weights. 0: the average equals the weights."""

    common_words: ClassVar = {"enabled": "use_ema"}
    lone_key: ClassVar = "use_ema"

    def check(self, job: JobContext) -> Findings:
        """Reports an average without a limit, or a decay that is given without
        `use_ema`."""
        if not self.use_ema and "use_ema" not in self.model_fields_set:
            yield from self.unused("ema_decay", " without 'use_ema: true'.")
        if self.use_ema and self.ema_decay == 1:
            yield warning(
                "ema_decay",
                "1 sets no limit: files are averages of about the last tenth of the run, however long it is. "
                "A typical value is 0.999.",
            )


MAX_STEPS = 999_999_999
UNTIL_THE_DATA_ENDS = MAX_STEPS
"""Optimizer steps that the names of files have digits for."""

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


USUAL_BACKENDS = ("inductor", "aot_eager", "eager", "cudagraphs")
BACKENDS = (
    *USUAL_BACKENDS, "aot_eager_decomp_partition", "aot_eager_decomp_partition_crossref",
    "aot_eager_decomp_partition_with_mode", "aot_eager_default_partitioner", "aot_ts", "eager_debug", "eager_noexcept",
    "invoke_subgraph", "openxla", "openxla_eval", "pre_dispatch_eager", "tensorrt", "ts", "tvm",
)  # fmt: skip
"""Backends of torch.compile in PyTorch 2.13 that run models; tensorrt is that of the
package torch_tensorrt."""


class CompileConfig(StrictModel):
    """`train.compile`: torch.compile of the transformer's blocks.

    Example:
        compile: {enabled: true, backend: inductor}
    """

    enabled: AutoOrBool = "auto"
    """Compile the blocks when they are first used, which takes a minute or more; steps
    are faster from then on. Results differ by rounding and, with dropout, by inductor's
    own random numbers. auto: on CUDA with Triton and a C compiler, except with
    `parallel: fsdp`, and in a run so short that compiling takes longer than it saves:
    as long as the last time on this machine, else 47 seconds; the plan says so. When a
    compiled block fails, now or later, the step is computed again, and all blocks run
    in eager mode from then on. true: its error ends the run."""

    backend: str = "inductor"
    """Backend of torch.compile. inductor needs a C++ compiler on the CPU, and Triton on
    CUDA."""

    mode: Annotated[str, OneOf(*MODES)] = "default"
    """Mode of inductor; max-autotune tunes more and takes longer to start. CUDA graphs
    are never used, because all blocks share one compiled graph and their weights have
    different addresses: reduce-overhead is the same as default."""

    dynamic: AutoOrBool = "auto"
    """Compile with dynamic shapes instead of recompiling for each size. auto: from the
    start where there is more than one image, because sizes and captions differ; else
    from the second size on."""

    fullgraph: bool = False
    """Raise an error on a graph break, instead of compiling the parts."""

    cache_size_limit: int = Field(default=0, ge=0, le=100_000)
    """Maximum number of compiled versions of the same code, before PyTorch falls back
    to eager mode. 0: 32."""

    short_for: ClassVar = "enabled"
    place: ClassVar = "train.compile"
    """The section's name in messages."""

    def for_sizes(self, several: bool) -> CompileConfig:
        """The section with what `dynamic: auto` becomes. several: whether inputs of
        several sizes come. A program for the first size would then be thrown away.

        >>> CompileConfig().for_sizes(several=True).dynamic
        True
        """
        if self.dynamic == "auto" and several:
            return self.model_copy(update={"dynamic": True})
        return self

    def check(self, job: JobContext) -> Findings:
        """Keys of a compiler that is off, or of another one; a compiler that PyTorch
        does not have. The start asks PyTorch itself, and packages add to its compilers:
        so this is only a warning."""
        if self.enabled and self.backend not in BACKENDS:
            remedy = did_you_mean(self.backend, USUAL_BACKENDS, list_all=False)
            yield warning(
                "backend", f"PyTorch itself has no backend {self.backend!r}. {remedy}"
            )
        if not self.enabled:
            for key in sorted(self.model_fields_set - {"enabled"}):
                yield warning(key, "has no effect with 'enabled: false'.")
        elif self.mode != "default" and self.backend != "inductor":
            yield warning(
                "mode",
                f"has no effect: only the backend 'inductor' has modes, not '{self.backend}'.",
            )


LEAST_IMAGES = 8
"""Validation images without which there is no interval: the spread of their differences
is not known well enough."""

LEAST_LATER = 5
"""Validations after the best one that a stop by the validation loss needs: two for a
line, the others for the spread around it."""

CHECK_EVERY = 10
"""Optimizer steps between two checks of the mean of `stop_when`."""


class StopWhenConfig(StrictModel):
    """`stop_when`: ends the process early, as finished, once the mean of a metric falls
    below a bound (`below`), or once the validation loss stops improving
    (`metric: validation/loss` alone).

    The final file is saved, and the job continues with its next process.

    Example:
        stop_when: {metric: validation/loss}
    """

    metric: str = "loss"
    """A logged metric: of each step `loss`, `grad_norm`, `lr` or `t_mean`; with the
    section `validation` also `validation/loss`, or that of one noise level, such as
    `validation/loss_t0.125`."""

    below: float | None = None
    """The process ends when the mean of `metric` is lower than this; it is checked every
    10 optimizer steps. 0: never, for a metric that is never negative. Not given, with
    `metric: validation/loss`: the process ends when the validation losses, compared
    image by image, show that no later step of the run will be better than the best one
    so far by more than these images can resolve. Of 100 runs that still improve, it ends
    at most 5. This needs at least 8 validation images, `validation.every`, and 5
    validations after the best one (docs/when_to_stop.md)."""

    smooth: int = Field(default=20, ge=1, le=MAX_STEPS)
    """Number of values that are averaged: the last finite ones, one per step (or
    validation). The process does not end before there are as many."""

    def check(self, job: JobContext) -> Findings:
        """A metric without a bound, and a key that has no effect without one."""
        if self.below is not None:
            return
        if self.metric != LOSS:
            yield error(
                "below",
                f"is not set. Set it, or 'metric: {LOSS}', which needs none.",
            )
        yield from self.unused("smooth", " without 'below'.")


SCHEDULE_SPELLINGS = {
    "reduce_lr_on_plateau": "plateau",
    "reducelronplateau": "plateau",
    "steplr": "step",
    "exponentiallr": "exponential",
    "constantlr": "ConstantLR",
    "linearlr": "LinearLR",
    "cosineannealinglr": "CosineAnnealingLR",
}
_CONSTANT = "Write constant: the learning rate then stays as it is."
SCHEDULE_INSTEAD = dict.fromkeys(("none", "no", "off", "false", "disabled"), _CONSTANT)
"""Words for no schedule -> what to write."""

OPTIMIZER_SPELLINGS = {
    "adamw_8bit": "adamw8bit",
    "adamw8": "adamw8bit",
    "adam8": "adam8bit",
    "adam_8bit": "adam8bit",
    "lion_8bit": "lion8bit",
    "prodigyopt": "prodigy",
    "adamw_schedule_free": "schedulefree_adamw",
    "adamwschedulefree": "schedulefree_adamw",
    "schedulefree": "schedulefree_adamw",
    "prodigy_plus_schedule_free": "prodigyplus",
    "prodigyplusschedulefree": "prodigyplus",
    "stable_adamw": "stableadamw",
}
"""Other programs' names -> ours."""

OPTIMIZER_INSTEAD = {
    **dict.fromkeys(
        ("automagic", "dadapt"),
        "Use 'prodigy' with 'lr: 1', which adapts its learning rate too.",
    ),
    "prodigy8": "Use 'prodigy', whose state is small for a LoRA.",
}
"""Beginnings of other programs' optimizers -> what to use here."""

_short_name = reader_of(
    OPTIMIZERS,
    OPTIMIZER_SPELLINGS,
    ", or the path of a class, such as 'torch.optim.RMSprop'",
    OPTIMIZER_INSTEAD,
)


def _optimizer(value: Any) -> Any:
    if not isinstance(value, str) or "." not in value:
        return _short_name(value)
    parts = value.strip().split(".")
    if not all(part.isidentifier() for part in parts):
        raise value_error(
            f"{value!r} is not a dotted path. Write a class such as 'torch.optim.SGD'."
        )
    return ".".join(parts)


def _trained(value: bool) -> bool:
    if not value:
        raise value_error(
            "false trains nothing: the text encoder is always frozen. Write true."
        )
    return value


def _not_trained(value: bool) -> bool:
    if value:
        raise value_error(
            "true is not supported: the text encoder is frozen, and its embeddings are computed once. Write false."
        )
    return value


def _steps_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise value_error(
            f"{value} is neither a number of steps nor a fraction below 1."
        )
    return value


PRESERVATIONS = ("diff_output_preservation", "blank_prompt_preservation")
"""Switches of losses that hold the base model's prediction for another prompt;
`<switch>_multiplier` is the factor."""

LEAST_SHIFT = 0.001
"""Least value of `discrete_flow_shift` and of `sample.flow_shift`; 0.001 turns a noise
level of 0.91 into 0.01."""

SCHEDULES_WITHOUT_LENGTH = (
    "constant", "constant_with_warmup", "inverse_sqrt", "step", "exponential", "piecewise_constant", "plateau",
    "ConstantLR", "LinearLR",
)  # fmt: skip


def _change_of_length(train: Mapping[str, Any]) -> ChangeKind:
    """Harmless when the learning rate does not depend on the number of steps."""
    name = train.get("lr_scheduler")
    params = train.get("lr_scheduler_params", {})
    warmup = params.get("num_warmup_steps", train.get("lr_warmup_steps", 0))
    is_share = isinstance(warmup, float) and 0 < warmup < 1
    is_free = name in SCHEDULES_WITHOUT_LENGTH or (
        name == "CosineAnnealingLR" and params.get("T_max") is not None
    )
    return "harmless" if is_free and not is_share else "changes the result"


class OptimizerConfig(StrictModel):
    """The optimizer of a set of parameters, and its learning rate.

    >>> OptimizerConfig(optimizer="lion", lr=2e-5).lr
    2e-05
    """

    optimizer: Annotated[
        str,
        BeforeValidator(_optimizer),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "enum": [*OPTIMIZERS, *OPTIMIZER_SPELLINGS]},
                    {"type": "string", "pattern": r"\."},
                    {"type": "object"},
                ]
            }
        ),
    ] = "adamw"
    """Optimizer, or the dotted path of a class such as `torch.optim.SGD`, whose module
    is imported when the training starts. The 8-bit optimizers keep their state in one
    byte per weight (bitsandbytes). lion's updates have the size of the learning rate:
    use a third to a tenth of AdamW's learning rate and three to ten times its weight
    decay. muon orthogonalizes the momentum of matrices and kernels: use AdamW's
    learning rate or a few times that. prodigy adapts the learning rate itself: use `lr:
    1`. schedulefree_adamw averages the weights: use no `lr_scheduler`. Further
    packages, each an extra: prodigyplus (finds the rate and averages: `lr: 1`, no
    `lr_scheduler`), came, stableadamw, adopt, soap (its matrices are limited to 512
    numbers a side), adamw_adv, prodigy_adv (`lr: 1`). Any class is tried before the
    first step: whether its state comes back to the same bits, and how many bytes it
    takes."""

    lr: float = Field(default=1e-4, ge=0, le=1000)
    """Peak learning rate. 0: nothing is learned (one warning)."""

    optimizer_params: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimizer, such as weight_decay or betas; strings such
    as "0.9,0.999" are parsed."""

    lr_scheduler: Annotated[
        str, OneOf(*SCHEDULES, spellings=SCHEDULE_SPELLINGS, instead=SCHEDULE_INSTEAD)
    ] = "constant"
    """Schedule of the learning rate after the warm-up. linear, cosine, polynomial and
    rex decay over the run; those with restarts several times; warmup_stable_decay only
    in the last `lr_decay_steps`; exponential multiplies by `gamma` at each optimizer
    step; plateau reduces the rate when the loss, or the validation loss, stops falling.
    With the name of a class of PyTorch, such as CosineAnnealingLR, arguments and
    defaults are PyTorch's, in optimizer steps."""

    lr_scheduler_params: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the schedule: `num_warmup_steps`; `factor` (constant);
    `start_factor`, `end_factor` (linear; if only one is given, the other is 1/3 or 1);
    `step_size`, `gamma` (step); `gamma` (exponential); `total_iters` with `factor`
    (ConstantLR) or `start_factor`, `end_factor` (LinearLR); `T_max` (CosineAnnealingLR;
    not given: the length of the run); `step_rules` (piecewise_constant); `rex_alpha`,
    `rex_beta` (rex); `metric` (loss or validation/loss), `every` (optimizer steps over
    which the loss is averaged, 100), `factor`, `patience`, `threshold`,
    `threshold_mode`, `cooldown`, `eps` (plateau, as in PyTorch's ReduceLROnPlateau);
    `num_cycles`, from 1 (cycles of cosine_with_restarts, half waves of
    cosine_with_min_lr); `power` (the exponent of polynomial; 1: linear); `timescale`
    (steps after which inverse_sqrt has decayed to 0.71 of the peak; 0: the length of the
    warm-up, if any, else 10000); `eta_min`, `min_lr` or `lr_end`, the final learning
    rate of decaying schedules and plateau, or `min_lr_ratio` or `eta_min_factor`, the
    same as a fraction of `lr` (not given: 0, for rex 0.01, for polynomial the learning
    rate 1e-7). `total_iters`,
    `T_max`, `T_0` and `T_mult` have no effect on constant, linear and cosine schedules,
    as in ai-toolkit: these span the run."""

    lr_warmup_steps: Annotated[float, AfterValidator(_steps_or_share)] = Field(
        default=0.0, ge=0, le=MAX_STEPS
    )
    """Optimizer steps of linear warm-up from 0; below 1: as a fraction of all steps. 0:
    no warm-up."""

    lr_decay_steps: Annotated[float, AfterValidator(_steps_or_share)] = Field(
        default=0.0, ge=0, le=MAX_STEPS
    )
    """Number of optimizer steps at the end in which the learning rate decays; it is
    constant before. Below 1: as a fraction of all steps. 0: it decays from the end of
    the warm-up (warmup_stable_decay: never)."""

    max_grad_norm: float = Field(default=1.0, ge=0)
    """Maximum norm of the gradients, which are clipped to it; 0: no clipping."""

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """`optimizer: {name, lr, ...}` becomes `optimizer`, `lr` and
        `optimizer_params`."""
        optimizer = entries.get("optimizer")
        if optimizer is None or not isinstance(optimizer.value, dict):
            return entries
        parts = dict(entries.pop("optimizer").value)
        kinds = [parts.pop(key) for key in ("name", "type") if key in parts]
        for field, node in [
            ("optimizer", kinds[0] if kinds else None),
            ("lr", parts.pop("lr", None)),
        ]:
            if node is not None:
                entries[field] = merge_aliases(entries.get(field), node, diagnostics)
        if parts:
            given = entries.get("optimizer_params")
            extra = (
                given.value
                if given is not None and isinstance(given.value, dict)
                else {}
            )
            entries["optimizer_params"] = replace(
                given or optimizer, value={**parts, **extra}
            )
        return entries

    def check_optimizer(self) -> Findings:
        """Arguments that do not exist, keys that exclude each other. Not a part of
        `check`: the section of a role has only what differs from `train`, and is asked
        once it is complete."""
        try:
            check_optimizer(self.optimizer, self.optimizer_params)
            for message in unnamed_arguments(self.optimizer, self.optimizer_params):
                yield warning("optimizer_params", message)
            if "." in self.optimizer:
                if code := imported_code(self.optimizer):
                    yield warning(
                        "optimizer",
                        f"{self.optimizer!r}: the training imports {code}, and so runs its code. Start "
                        "it only if you trust that file.",
                    )
        except ArgumentError as fault:
            yield error("optimizer_params", str(fault))
        except UserError as fault:
            yield error("optimizer", str(fault))
        try:
            check_parameters(self.lr_scheduler, self.lr_scheduler_params)
        except UserError as fault:
            given = self.lr_scheduler_params
            yield error("lr_scheduler_params" if given else "lr_scheduler", str(fault))
        if self.is_schedule_free:
            both = f"'optimizer: {self.optimizer}' and"
            if self.lr_scheduler != "constant":
                yield error(
                    "lr_scheduler",
                    f"{both} 'lr_scheduler: {self.lr_scheduler}' cannot be combined. Remove one of them.",
                )
            if self.lr_warmup_steps or self.lr_scheduler_params:
                key = (
                    "lr_warmup_steps" if self.lr_warmup_steps else "lr_scheduler_params"
                )
                has_its_own = takes_argument(self.optimizer, "warmup_steps")
                remedy = (
                    "Use 'optimizer_params: {warmup_steps: 100}'."
                    if has_its_own
                    else "Remove this key."
                )
                yield error(key, f"{both} a schedule cannot be combined. {remedy}")

    common_words: ClassVar = {
        **dict.fromkeys(
            ("warmup", "warmup_steps", "num_warmup_steps"), "lr_warmup_steps"
        ),
        **dict.fromkeys(("scheduler", "schedule"), "lr_scheduler"),
        "optim": "optimizer",
        **{
            key: f"Write 'optimizer_params: {{{key}: ...}}'."
            for key in ("weight_decay", "betas", "eps", "momentum")
        },
    }

    @property
    def is_schedule_free(self) -> bool:
        """Whether the optimizer, with its arguments, averages the weights itself."""
        return is_schedule_free(self.optimizer, self.optimizer_params)

    def needs_length(self) -> bool:
        """Whether the learning rate depends on the number of optimizer steps of the
        run."""
        return _change_of_length(self.model_dump()) != "harmless"


class RoleOptimizerConfig(OptimizerConfig):
    """One entry of `optimizers`: keys of `train` that differ for this role.

    Example:
        flow: {lr: 1.0e-4, every: 2}
    """

    every: int = Field(default=1, ge=1)
    """Train this role in the first optimizer step and in every `every`-th step after
    it."""


class OptimizationConfig(OptimizerConfig):
    """`train`: length, optimizer and precision of any training.

    Example:
        train: {steps: 2000, lr: 1.0e-4, batch_size: 4}
    """

    batch_size: int = Field(default=1, ge=1, le=100_000)
    """Number of images per micro-batch, all from the same bucket."""

    gradient_accumulation: int = Field(default=1, ge=1, le=100_000)
    """Number of micro-batches per optimizer step; the gradient is the mean over all
    their images. Its ai-toolkit name, with which `steps` counts micro-batches there,
    gives a warning that explains the difference."""

    steps: int = Field(default=1000, ge=0, le=MAX_STEPS)
    """Number of optimizer steps. 0 only together with `epochs`."""

    epochs: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Number of passes over the images, repeats included; above 0 it takes precedence
    over `steps`, with a warning if both are given. 0: `steps` applies. A stream without
    `samples` is read as many times."""

    ema_config: EmaConfig = Field(default_factory=EmaConfig)
    """Exponential moving average of the trained weights."""

    dtype: Dtype = "bfloat16"
    """Data type of the forward and backward pass; trained weights are float32. With
    float16 the loss is scaled, and steps with overflowing gradients are skipped."""

    cuda_allow_tf32: bool = False
    """On CUDA, multiply float32 matrices in TF32: faster, with 10 bits of mantissa.
    Without CUDA: no effect."""

    cuda_cudnn_benchmark: bool = False
    """On CUDA, let cuDNN benchmark its algorithms for each new size and use the
    fastest; runs may then differ in the last bits. Without CUDA: no effect."""

    ddp_timeout: float = Field(default=0.0, ge=0, le=1e6)
    """Timeout of collective operations in minutes; longer than the slowest set of
    samples takes. 0: 30."""

    skip_first_sample: bool = False
    """Generate no samples before step 1."""

    force_first_sample: bool = False
    """Also generate a set of samples when the run resumes from a state, whatever the
    interval."""

    disable_sampling: bool = False
    """Generate no samples at all."""

    common_words: ClassVar = {
        **OptimizerConfig.common_words,
        **dict.fromkeys(("bs", "batch", "train_batch_size"), "batch_size"),
        **dict.fromkeys(("iterations", "iters", "max_steps"), "steps"),
    }
    on_resume: ClassVar = {
        **dict.fromkeys(
            (
                "skip_first_sample",
                "force_first_sample",
                "disable_sampling",
                "ddp_timeout",
            ),
            "harmless",
        ),
        "steps": _change_of_length,
        "epochs": _change_of_length,
    }

    def check(self, job: JobContext) -> Findings:
        """Keys that exclude each other."""
        yield from self.check_optimizer()
        if self.is_schedule_free and self.ema_config.use_ema:
            yield error(
                "ema_config.use_ema",
                f"optimizer '{self.optimizer}' already averages the weights. Remove one of them.",
            )
        if self.epochs and self.steps and "steps" in self.model_fields_set:
            yield warning(
                "steps",
                f"has no effect: 'epochs: {self.epochs}' takes precedence. Remove one of them.",
            )
        if self.force_first_sample and self.disable_sampling:
            yield error(
                "force_first_sample",
                "'force_first_sample: true' and 'disable_sampling: true' contradict each other. Remove one.",
            )


class TrainConfig(OptimizationConfig):
    """`train`: length, optimizer, loss and precision of the training of a diffusion
    model.

    Example:
        train: {steps: 2000, lr: 1.0e-4, batch_size: 1}
    """

    train_unet: Annotated[bool, AfterValidator(_trained)] = True
    """Train the transformer's adapter; must be true."""

    train_text_encoder: Annotated[bool, AfterValidator(_not_trained)] = False
    """Must be false: the text encoder is frozen."""

    noise_scheduler: Annotated[Literal["flowmatch"], OneOf()] = "flowmatch"
    """Noise process: flow matching only."""

    timestep_type: Annotated[
        str,
        OneOf(
            *TIMESTEP_TYPES,
            spellings={"qwen_shift": "model_shift", "qinglong_qwen": "qinglong_model"},
        ),
    ] = "sigmoid"
    """Distribution from which noise levels are sampled. uniform, linear: uniform;
    weighted: uniform, with a weighted loss; sigmoid: concentrated in the middle; shift:
    sigmoid, shifted by `discrete_flow_shift` (without it: the levels of a sampling run
    at the size of the image); qwen_shift (= model_shift): sigmoid, shifted as the
    model's own sampling is at the size of the image; flux_shift: by Flux's rule;
    logsnr: by signal-to-noise ratio; lognorm_blend: around 0.65; sigma: by
    `weighting_scheme`; qinglong_flux, qinglong_qwen (= qinglong_model): mostly
    flux_shift or qwen_shift, some with little noise."""

    sigmoid_scale: float = Field(default=1.0, gt=0)
    """Width of sigmoid, shift, qwen_shift and flux_shift: above 1 more weight at the
    ends, below 1 in the middle."""

    discrete_flow_shift: float | None = Field(default=None, ge=0, le=1000)
    """For timestep_type shift: above 1 more noise, below 1 less. 0 is an error: there
    would be no noise at all."""

    weighting_scheme: Annotated[str, OneOf(*WEIGHTING_SCHEMES)] = "none"
    """Loss weight by noise level t: sigma_sqrt 1/t^2, cosmap 2/(pi(1-2t+2t^2)), bell as
    in `linear_timesteps`. logit_normal and mode do not weight the loss, but set the
    distribution of timestep_type sigma."""

    logit_mean: float = 0.0
    """Mean of logsnr and of weighting_scheme logit_normal; above 0 less noise, 0 the
    middle, below 0 more noise."""

    logit_std: float = Field(default=1.0, gt=0)
    """Standard deviation of the same. 0 is an error: a single noise level."""

    mode_scale: float = Field(default=1.29, ge=-1, le=1.75)
    """For weighting_scheme mode: above 0 the middle levels are more frequent, below 0
    the ends. 0: uniform."""

    min_timestep: float = Field(default=0.0, ge=0, lt=1000)
    """Lowest noise level, in thousandths: the levels of any `timestep_type` are
    rescaled to the range from this to max_timestep. 0: no bound."""

    max_timestep: float = Field(default=1000.0, gt=0, le=1000)
    """Highest noise level, in thousandths; 1000: no bound. 0 is an error."""

    preserve_distribution_shape: bool = False
    """Truncate the distribution of noise levels at min_timestep and max_timestep
    instead of rescaling it."""

    num_timestep_buckets: int = Field(default=0, ge=0, le=1_000_000)
    """Stratified sampling: the distribution of noise levels is divided into so many
    equal parts, which are sampled equally often in each epoch. 0: off."""

    content_or_style: Annotated[Literal["balanced", "content", "style"], OneOf()] = (
        "balanced"
    )
    """Bias of the noise levels in addition to `timestep_type`: content to high levels,
    style to low ones (u^3 for a uniform u)."""

    linear_timesteps: bool = False
    """Sample noise levels uniformly, whatever `timestep_type` is, and weight the loss
    by a bell around the middle; 0 at pure noise. No effect with timestep_type weighted,
    which has its own weights."""

    loss_type: Annotated[
        str, OneOf(*LOSS_TYPES, spellings={"l2": "mse", "l1": "mae"})
    ] = "mse"
    """Loss between predicted and true velocity, in float32, with the difference d: mean
    of d^2, of |d|, or huber: quadratic far below 0.1, and linear far above it."""

    diff_output_preservation: bool = False
    """Preserve the base model's prediction for each caption with
    `diff_output_preservation_class` in place of the trigger words, those of all
    datasets: adds the mean squared difference from the prediction without the adapter
    to the loss. Prevents the trained subject from spreading to its whole class. Each
    step takes about twice as long."""

    diff_output_preservation_multiplier: float = Field(default=1.0, ge=0, le=1e6)
    """Factor on this loss. 0: it is not computed."""

    diff_output_preservation_class: str = ""
    """Class of the trigger word, such as 'woman'. Empty: the trigger word is
    removed."""

    blank_prompt_preservation: bool = False
    """The same for an empty prompt: preserves the model's unconditional prediction.
    Each step takes about twice as long."""

    blank_prompt_preservation_multiplier: float = Field(default=1.0, ge=0, le=1e6)
    """Factor on this loss. 0: it is not computed."""

    assistant: PathOrLora | None = None
    """A LoRA file that is added to the frozen model during training, such as the
    training adapter of a distilled model or of Qwen-Image-2.1; not in samples,
    validation or saved files. Its path or name on the hub, or {path, multiplier}. None
    without this key."""

    full_bf16: bool = False
    """With network.type full and `dtype: bf16`: the trained weights and their gradients
    are bf16 too, which halves their memory. Updates are computed in float32 and rounded
    stochastically, so that small ones are not lost."""

    fused_backward_pass: bool = False
    """Update each parameter during the last backward pass of a step, and free its
    gradient at once: less memory, and exactly the same weights if nothing is clipped.
    `max_grad_norm` then clips the gradient of each parameter separately. With `compile:
    auto` a step in which blocks are compiled, or meet a size for the first time, is
    computed twice, because a step in which weights have moved cannot be repeated."""

    gradient_checkpointing: Checkpointing = "auto"
    """What is recomputed in the backward pass instead of stored: less memory, slower,
    and the same gradients (bit for bit on a CPU; on a GPU the backward pass of
    attention is not deterministic). none (= false): nothing. cheap: everything but
    matrix products and attention. keep_attention: everything but attention.
    offload_attention: the same, with its results in CPU memory (no GPU has measured it,
    so `auto` does not choose it). full (= true): everything. full_offload: everything,
    with the checkpoints in CPU memory.
    block_offload: so is what a block saves while it is recomputed; such blocks are not
    compiled. auto: the fastest level up to full_offload that fits the free memory,
    tested with the largest batch."""

    compile: CompileConfig = Field(default_factory=CompileConfig)
    """torch.compile of the transformer's blocks."""

    parallel: Annotated[Literal["ddp", "fsdp"], OneOf()] = "ddp"
    """With several processes (torchrun): ddp keeps a full copy of the model in each;
    fsdp shards it and gathers it block by block, for models that do not fit one GPU;
    with 'network.type: full' it also shards gradients, optimizer state and EMA. With
    one process: no effect."""

    group_by_length: bool = False
    """Group captions of similar length into micro-batches, as far as the order of the
    epoch allows. The model needs one pass for each length in a micro-batch: useful with
    a large `batch_size` and many images."""

    on_resume: ClassVar = {
        **dict.fromkeys(("gradient_checkpointing", "compile", "parallel"), "harmless"),
        **dict.fromkeys(("full_bf16", "assistant"), "impossible"),
    }
    lone_key: ClassVar = "steps"

    def preservations(self) -> dict[str, float]:
        """The losses of prior preservation that are computed -> their factors."""
        factors = {
            name: getattr(self, f"{name}_multiplier")
            for name in PRESERVATIONS
            if getattr(self, name)
        }
        return {name: factor for name, factor in factors.items() if factor}

    def preserved_prompts(
        self, caption: str, triggers: Collection[str]
    ) -> dict[str, str]:
        """The prompts of these losses for one caption. triggers: all words that the
        class is put for, also those of other datasets: what is learned of them must not
        be held back where a caption names them."""
        of_class = caption
        # one may be the beginning of another
        for word in sorted(triggers, key=len, reverse=True):
            of_class = of_class.replace(word, self.diff_output_preservation_class)
        prompts = {
            "diff_output_preservation": of_class,
            "blank_prompt_preservation": "",
        }
        return {name: prompts[name] for name in self.preservations()}

    def checkpointing_level(self) -> str:
        """`gradient_checkpointing` as a level: true is "full" and false is "none". Any
        text, "auto" included, stays."""
        given = self.gradient_checkpointing
        if isinstance(given, str):
            return given
        return "full" if given else "none"

    def against_compiling(self) -> str:
        """Why the level excludes compiled blocks; empty where it does not."""
        level = self.checkpointing_level()
        return (
            f"'gradient_checkpointing: {level}' moves what they save"
            if level in UNCOMPILED_LEVELS
            else ""
        )

    def noise_levels(self) -> str:
        """The `timestep_type` by which noise levels are sampled: linear if a bell
        weights the loss."""
        bell = self.linear_timesteps and self.timestep_type != "weighted"
        return "linear" if bell else self.timestep_type

    def check(self, job: JobContext) -> Findings:
        """Values that exclude each other, and keys that the others leave unused."""
        yield from super().check(job)
        yield from self._check_noise()
        if self.full_bf16 and self.dtype != "bfloat16":
            yield error(
                "full_bf16", f"requires 'dtype: bf16', but dtype is {self.dtype}."
            )
        against = self.against_compiling()
        if against and self.compile.enabled is True:
            yield error(
                "gradient_checkpointing",
                f"{against}, and a compiled block decides by itself what it saves. "
                "Use full_offload, or 'compile.enabled: auto'.",
            )
        offloads = self.checkpointing_level() in (
            "offload_attention",
            *UNCOMPILED_LEVELS,
        )
        if offloads and self.parallel == "fsdp":
            yield error(
                "gradient_checkpointing",
                "is not supported with 'parallel: fsdp'. Use full_offload, or remove one of them.",
            )
        kind = self.noise_levels()
        scheme = self.weighting_scheme
        uses = TIMESTEP_TYPES[self.noise_levels()]
        sigmoid = "sigmoid_scale" in uses or (
            kind == "shift" and self.discrete_flow_shift
        )
        normal = "logit_mean" in uses or (kind == "sigma" and scheme == "logit_normal")
        scheme_counts = kind == "sigma" or scheme == WEIGHTING_SCHEMES[scheme]
        cut = self.min_timestep > 0 or self.max_timestep < 1000
        for is_used, unused, reason in (
            (
                sigmoid,
                "sigmoid_scale",
                ": only timestep_type sigmoid, shift, qwen_shift, flux_shift and qinglong use it.",
            ),
            (
                "discrete_flow_shift" in uses,
                "discrete_flow_shift",
                ": only timestep_type shift uses it.",
            ),
            (
                normal,
                "logit_mean logit_std",
                ": only timestep_type logsnr, qinglong_flux, and sigma with weighting_scheme logit_normal use it.",
            ),
            (
                kind == "sigma" and scheme == "mode",
                "mode_scale",
                ": only timestep_type sigma with weighting_scheme mode uses it.",
            ),
            (
                scheme_counts,
                "weighting_scheme",
                f": {scheme} only applies to timestep_type sigma.",
            ),
            (
                cut,
                "preserve_distribution_shape",
                " unless min_timestep or max_timestep is set.",
            ),
        ):
            if not is_used:
                yield from self.unused(unused, reason)
        for switch in PRESERVATIONS:
            keys = [
                key
                for key in (f"{switch}_multiplier", f"{switch}_class")
                if key in type(self).model_fields
            ]
            if not getattr(self, switch):
                yield from self.unused(" ".join(keys), f" without '{switch}: true'.")
            elif getattr(self, f"{switch}_multiplier") == 0:
                yield warning(f"{switch}_multiplier", f"0 disables '{switch}'.")
        if self.timestep_type == "weighted":
            yield from self.unused(
                "linear_timesteps",
                ": timestep_type weighted has its own loss weights.",
            )
        elif self.linear_timesteps:
            if (
                "timestep_type" in self.model_fields_set
                and self.timestep_type != "linear"
            ):
                yield warning(
                    "timestep_type",
                    "has no effect: 'linear_timesteps: true' samples all noise levels uniformly.",
                )

    def _check_noise(self) -> Findings:
        levels = self.noise_levels()
        shift = self.discrete_flow_shift
        if levels == "shift" and shift is not None and shift < LEAST_SHIFT:
            yield error(
                "discrete_flow_shift",
                f"{shift:g} would train without any noise. Use 0.001 or more; 1 means no shift.",
            )
        if self.min_timestep >= self.max_timestep:
            yield error(
                "min_timestep",
                f"{self.min_timestep:g} is not below max_timestep {self.max_timestep:g}.",
            )
        elif (most := self.max_timestep) <= 1:
            yield warning(
                "max_timestep",
                f"{most:g} of 1000: only images almost without noise are trained. "
                f"Write {most * 1000:g} for the share {most:g}.",
            )
        for key in ("content_or_style", "preserve_distribution_shape"):
            if levels.startswith("qinglong") and not self.is_default(key):
                yield error(
                    key,
                    f"does not work with timestep_type '{self.timestep_type}'. Remove it.",
                )
