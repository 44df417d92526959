"""`train`: length, optimizer, loss and precision of the training, with its sections `lr_groups`, `ema_config` and
`compile`; `stop_when`: ends a process once a number is low enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from toolkit.config.base import ChangeKind, StrictModel
from toolkit.config.field_types import AutoOrBool, Checkpointing, Dtype, OneOf, reader_of, value_error
from toolkit.config.findings import Findings, JobContext, error, warning
from toolkit.config.network import Pattern
from toolkit.errors import UserError
from toolkit.flow.noise_levels import MOST_NOISE_LEVELS, NoiseLevels
from toolkit.flow.settings import HUBER_SCHEDULES, LOSS_TYPES, TIMESTEP_TYPES, WEIGHTING_SCHEMES
from toolkit.optim.optimizer_args import (
    OPTIMIZERS,
    ArgumentError,
    check_optimizer,
    is_schedule_free,
    requires_single_lr,
)
from toolkit.optim.schedules import SCHEDULES, check_parameters

BASE = "base"
"""Name of the group of all other layers."""

LORA_B_SUFFIX = " up"
"""Follows the name of a group in that of its up matrices, where LoRA+ gives these a rate of their own."""


class LrGroupConfig(StrictModel):
    """`train.lr_groups`: layers that learn at a rate of their own; the first entry that matches a layer decides."""

    match: Pattern
    """Regular expression that matches whole layer names, such as '.*attn.*'. One that matches nothing is an error."""

    lr: float | None = Field(default=None, ge=0)
    """Highest learning rate of these layers. Not given: `train.lr`. 0: they are not trained."""

    lr_scale: float = Field(default=1.0, ge=0)
    """Factor of that rate. 0: they are not trained."""

    name: str = ""
    """What metrics.jsonl calls the group: `lr/<name>`. Empty: as `match`."""

    foreign: ClassVar = "lr_group"

    def label(self) -> str:
        """The name of the group."""
        return self.name or self.match

    def rate(self, base: float) -> float:
        """The highest learning rate of the group. base: `train.lr`."""
        return self.lr_scale * (base if self.lr is None else self.lr)


POWER_WIDTHS = (0.05, 0.1)
"""Relative widths of the averages that `power_averages` keeps. Source: Karras et al., arXiv 2312.02696, section 3.2."""


class EmaConfig(StrictModel):
    """`train.ema_config`: running average of the trained weights, once per optimizer step."""

    use_ema: bool = False
    """Keep the average; samples and the saved LoRA are made of it."""

    ema_decay: float = Field(default=0.999, ge=0, le=1)
    """Share of the old average that stays at each step. 0: the average is the weights themselves."""

    use_num_updates: bool = True
    """Warm up: the decay after n steps is at most (1 + n) / (10 + n), so that early files are not the start."""

    power_averages: bool = False
    """Keep two more averages in each state, with which `run.py post_hoc_ema RUN --width W` makes the average of any
    width after the training. They change neither samples nor saved files."""

    foreign: ClassVar = "ema"
    on_resume: ClassVar = {"power_averages": "harmless"}
    example: ClassVar = "ema_config: {use_ema: true}"

    def check(self, job: JobContext) -> Findings:
        """An average that never moves."""
        if self.use_ema and self.ema_decay == 1 and not self.use_num_updates:
            message = "1 never moves: samples and saved files would use the initial weights. A typical value is 0.999."
            yield warning("ema_decay", message)

    @property
    def copies(self) -> int:
        """Float32 copies of the trained weights that are kept."""
        return self.use_ema + len(POWER_WIDTHS) * self.power_averages


MAX_STEPS = 999_999_999
UNTIL_THE_DATA_ENDS = MAX_STEPS
"""Optimizer steps that the names of files have digits for."""

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class CompileConfig(StrictModel):
    """`train.compile`: torch.compile of the transformer's blocks."""

    enabled: AutoOrBool = "auto"
    """Compile the blocks at their first use, which takes a minute or more; each step is faster then. The results
    differ by rounding; with dropouts also by the draws, which inductor makes itself. auto: on CUDA with Triton and a C
    compiler, but for `parallel: fsdp`; a block that cannot be compiled runs uncompiled."""

    backend: str = "inductor"
    """Compiler, by PyTorch's name for it. inductor needs a C++ compiler on the CPU and Triton on CUDA."""

    mode: Annotated[str, OneOf(*MODES)] = "default"
    """What inductor optimises for; max-autotune tries more and takes longer to start. CUDA graphs are never recorded:
    one program serves all blocks, whose weights have other addresses. So reduce-overhead is default."""

    dynamic: AutoOrBool = "auto"
    """Programs for any size instead of one per size. auto: from the second size on, which suits captions of many
    lengths."""

    fullgraph: bool = False
    """Fail where a block cannot be compiled in one piece, instead of compiling the pieces."""

    cache_size_limit: int = Field(default=0, ge=0, le=100_000)
    """Programs made of the same code before PyTorch goes on uncompiled. 0: 32."""

    def check(self, job: JobContext) -> Findings:
        """Keys of a compiler that is off, or of another one."""
        if not self.enabled:
            for key in sorted(self.model_fields_set - {"enabled"}):
                yield warning(key, "has no effect with 'enabled: false'.")
        elif self.mode != "default" and self.backend != "inductor":
            yield warning("mode", f"has no effect: backend '{self.backend}' has no modes.")


class StopWhenConfig(StrictModel):
    """`stop_when`: ends the process as finished once the mean of a number is below a bound.

    The final file is saved and the job's next process runs.
    """

    metric: str = "loss"
    """A number that is logged: of a step `loss`, `grad_norm`, `lr` or `t_mean`; `validation/loss`, or that of one
    noise level, such as `validation/loss_t0.125` (with the section `validation`)."""

    below: float
    """The process ends when the mean is lower than this. 0: never, for a number that is never negative."""

    smooth: int = Field(default=20, ge=1, le=MAX_STEPS)
    """How many values the mean is over: the last finite ones, one per step (or validation). With fewer the process goes
    on."""

    min_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Optimizer steps that are done in any case. 0: none."""

    check_every: int = Field(default=10, ge=1, le=MAX_STEPS)
    """Optimizer steps between two checks of the mean."""

    foreign: ClassVar = "stop_when"


SCHEDULE_SPELLINGS = {
    "reduce_lr_on_plateau": "plateau",
    "reducelronplateau": "plateau",
    "steplr": "step",
    "exponentiallr": "exponential",
    "constantlr": "ConstantLR",
    "linearlr": "LinearLR",
    "cosineannealinglr": "CosineAnnealingLR",
}
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
}
"""Other programs' names -> ours."""

OPTIMIZER_INSTEAD = {
    **dict.fromkeys(("automagic", "dadapt"), "Use 'prodigy', which finds its rate itself too, with 'lr: 1'."),
    "prodigy8": "Use 'prodigy', whose state is small with a LoRA.",
}
"""Beginnings of other programs' optimizers -> what to use here."""

_short_name = reader_of(
    OPTIMIZERS, OPTIMIZER_SPELLINGS, ", or the path of a class, such as 'torch.optim.RMSprop'", OPTIMIZER_INSTEAD
)


def _level_counts(value: Any) -> Any:
    """Whole numbers, or `auto`."""
    if value == "auto":
        return value
    counts = value if isinstance(value, list | tuple) else [value]
    if not counts or not all(type(count) is int and 1 <= count <= MOST_NOISE_LEVELS for count in counts):
        raise value_error(f"{value!r}: must be a whole number from 1 to {MOST_NOISE_LEVELS}, a list of them, or 'auto'")
    return tuple(counts) if isinstance(value, list | tuple) else value


def _optimizer(value: Any) -> Any:
    if not isinstance(value, str) or "." not in value:
        return _short_name(value)
    parts = value.strip().split(".")
    if not all(part.isidentifier() for part in parts):
        raise value_error(f"{value!r} is not a dotted path. Write a class such as 'torch.optim.SGD'.")
    return ".".join(parts)


def _trained(value: bool) -> bool:
    if not value:
        raise value_error("false leaves nothing to train: the text encoder is never trained. Write true.")
    return value


def _not_trained(value: bool) -> bool:
    if value:
        raise value_error(
            "true is not possible: Qwen-Image's text encoder is a frozen vision-language model whose "
            "embeddings are computed once. Write false. (Of a flow_trainer 'model.text_encoder.train' decides.)"
        )
    return value


def _steps_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise value_error(f"{value} is neither a number of steps nor a share below 1.")
    return value


PRESERVATIONS = ("diff_output_preservation", "blank_prompt_preservation")
"""Switches of losses that hold the base model's prediction for another prompt; `<switch>_multiplier` is the factor."""

SCHEDULES_WITHOUT_LENGTH = (
    "constant", "constant_with_warmup", "inverse_sqrt", "step", "exponential", "piecewise_constant", "plateau",
    "ConstantLR", "LinearLR",
)  # fmt: skip


def _change_of_length(train: Mapping[str, Any]) -> ChangeKind:
    """Harmless when the learning rate does not depend on the number of steps."""
    name, params = train.get("lr_scheduler"), train.get("lr_scheduler_params", {})
    warmup = params.get("num_warmup_steps", train.get("lr_warmup_steps", 0))
    is_share = isinstance(warmup, float) and 0 < warmup < 1
    is_free = name in SCHEDULES_WITHOUT_LENGTH or (name == "CosineAnnealingLR" and params.get("T_max") is not None)
    return "harmless" if is_free and not is_share else "changes the result"


class OptimizerConfig(StrictModel):
    """The optimizer of a set of parameters, and its learning rate."""

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
    """Optimizer, or the dotted path of a class such as `torch.optim.SGD`. The 8-bit ones keep their state in one byte
    per weight (bitsandbytes); lion moves every weight by the whole rate, so it wants a third to a tenth of AdamW's rate
    and three to ten times its weight decay; muon moves matrices and kernels along orthogonalised momentum, at AdamW's
    rate or some times that; prodigy finds the rate itself (give `lr: 1`); schedulefree_adamw averages the weights and
    wants no `lr_scheduler`."""

    lr: float = Field(default=1e-4, ge=0, le=1000)
    """Highest learning rate. 0: nothing is learned (one warning)."""

    lr_groups: tuple[LrGroupConfig, ...] = ()
    """Layers with a learning rate of their own; the schedule is the same for all. Empty: all learn at `lr`."""

    optimizer_params: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimizer by name, such as weight_decay or betas; texts such as "0.9,0.999" are read."""

    lr_scheduler: Annotated[str, OneOf(*SCHEDULES, spellings=SCHEDULE_SPELLINGS)] = "constant"
    """Course of the learning rate after the warm-up. linear, cosine, polynomial and rex fall to their end; with
    restarts several times; warmup_stable_decay only in the last `lr_decay_steps`; exponential by the factor `gamma` at
    each optimizer step; plateau whenever the loss, or the validation loss, has not fallen for a while. By the name of a
    class of PyTorch, such as CosineAnnealingLR, its arguments and defaults are PyTorch's, in optimizer steps."""

    lr_scheduler_params: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the schedule by name: `num_warmup_steps`; `factor` (constant); `start_factor`,
    `end_factor` (linear; where one of them is missing it is 1/3 or 1); `step_size`, `gamma` (step); `gamma`
    (exponential); `total_iters` with `factor` (ConstantLR) or `start_factor`, `end_factor` (LinearLR); `T_max`
    (CosineAnnealingLR; not given: to the end of the run); `step_rules` (piecewise_constant); `rex_alpha`, `rex_beta`
    (rex); `metric` (loss or validation/loss), `every` (optimizer steps whose mean loss is one value, 100), `factor`,
    `patience`, `threshold`, `threshold_mode`, `cooldown`, `eps` (plateau, as in PyTorch's ReduceLROnPlateau);
    `eta_min`, `min_lr` or `lr_end`, the end as a rate, for those that fall and plateau, or `eta_min_factor` as a
    share of the rate. `total_iters`, `T_max`, `T_0` and `T_mult` of constant, linear and cosine ones have no effect,
    as in ai-toolkit: these are as long as the run."""

    lr_warmup_steps: Annotated[float, AfterValidator(_steps_or_share)] = Field(default=0, ge=0, le=MAX_STEPS)
    """Optimizer steps in which the learning rate rises from 0; below 1: that share of all steps. 0: none."""

    lr_decay_steps: Annotated[float, AfterValidator(_steps_or_share)] = Field(default=0, ge=0, le=MAX_STEPS)
    """The last optimizer steps, in which the rate falls; it is full until then. Below 1: that share of all steps.
    0: it falls from the end of the warm-up on (warmup_stable_decay: never)."""

    lr_scheduler_num_cycles: int = Field(default=1, ge=1)
    """How often cosine_with_restarts falls; half waves of cosine_with_min_lr."""

    lr_scheduler_power: float = Field(default=1.0, gt=0)
    """Exponent of polynomial; 1 is a line."""

    lr_scheduler_min_lr_ratio: float | None = Field(default=None, ge=0, le=1)
    """Where a falling rate ends, as a share of `lr`; 0: at 0. Not given: 0, for rex 0.01, for polynomial the
    rate 1e-7."""

    lr_scheduler_timescale: int = Field(default=0, ge=0)
    """Steps after which inverse_sqrt has fallen to 0.71 of the full rate. 0: as many as the warm-up, else 10000."""

    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0: no clipping."""

    foreign: ClassVar = "optimizer"

    def check_optimizer(self) -> Findings:
        """Arguments that do not exist, keys that exclude each other. Not a part of `check`: the section of a role
        has only what differs from `train`, and is asked once it is complete."""
        try:
            check_optimizer(self.optimizer, self.optimizer_params)
        except ArgumentError as fault:
            yield error("optimizer_params", str(fault))
        except UserError as fault:
            yield error("optimizer", str(fault))
        try:
            check_parameters(self.lr_scheduler, self.lr_scheduler_params)
        except UserError as fault:
            yield error("lr_scheduler_params", str(fault))
        if is_schedule_free(self.optimizer):
            both = f"'optimizer: {self.optimizer}' and"
            if self.lr_scheduler != "constant":
                message = f"{both} 'lr_scheduler: {self.lr_scheduler}' cannot be combined. Remove one of them."
                yield error("lr_scheduler", message)
            if self.lr_warmup_steps or self.lr_scheduler_params:
                key = "lr_warmup_steps" if self.lr_warmup_steps else "lr_scheduler_params"
                yield error(
                    key, f"{both} a schedule cannot be combined. Use 'optimizer_params: {{warmup_steps: 100}}'."
                )
        names = {BASE}
        for index, group in enumerate(self.lr_groups):
            if group.label() in names or group.label().endswith(LORA_B_SUFFIX):
                yield error(f"lr_groups.{index}", f"{group.label()!r} is the name of another group. Choose another.")
            names.add(group.label())
        if requires_single_lr(self.optimizer) and any(g.rate(self.lr) not in (0, self.lr) for g in self.lr_groups):
            message = (
                f"optimizer '{self.optimizer}' finds a single rate for all weights. Remove this key, or use 'adamw'."
            )
            yield error("lr_groups", message)

    def needs_length(self) -> bool:
        """Whether the learning rate depends on the number of optimizer steps of the run."""
        return _change_of_length(self.model_dump()) != "harmless"


class RoleOptimizerConfig(OptimizerConfig):
    """One entry of `optimizers`: keys of `train` that this role has for itself."""

    every: int = Field(default=1, ge=1)
    """Trained in the first optimizer step and then in each `every`-th one."""


class OptimizationConfig(OptimizerConfig):
    """`train`: length, optimizer and precision of any training."""

    batch_size: int = Field(default=1, ge=1, le=100_000)
    """Images per micro-batch; all of one bucket."""

    gradient_accumulation: int = Field(default=1, ge=1, le=100_000)
    """Micro-batches per optimizer step; the gradient is the mean over all their images. Under its other name, with
    which ai-toolkit's `steps` counts micro-batches, one line says what `steps` is here."""

    steps: int = Field(default=1000, ge=0, le=MAX_STEPS)
    """Optimizer steps. 0 only together with `epochs`."""

    epochs: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Passes over the repeat-weighted images; above 0 it decides, and one line says that a given `steps` has no effect.
    0: `steps` decides. Of a stream whose `samples` are not given, it is read through so often."""

    step_limit: int = Field(default=0, ge=0, le=MAX_STEPS)
    """At most so many optimizer steps, whatever `epochs` says. 0: no limit."""

    reg_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Factor on the loss of images from datasets with `is_reg`. 0: nothing is learned from them."""

    ema_config: EmaConfig = Field(default_factory=EmaConfig)
    """Running average of the trained weights."""

    dtype: Dtype = "bfloat16"
    """Number type of the computation; the weights that are trained are float32. float16 scales the loss, and skips a
    step where that was too much."""

    cuda_allow_tf32: bool = False
    """On CUDA, multiply float32 matrices in TF32: faster, with 10 bits of mantissa. Without CUDA: no effect."""

    cuda_cudnn_benchmark: bool = False
    """On CUDA, let cuDNN try its algorithms on each new size and keep the fastest; a run may then differ from the next
    in the last bits. Without CUDA: no effect."""

    ddp_timeout: float = Field(default=0, ge=0, le=1e6)
    """Minutes that the processes wait for one of them; longer than the slowest set of samples takes. 0: 30."""

    skip_first_sample: bool = False
    """Draw no samples before step 1."""

    force_first_sample: bool = False
    """Draw a set of samples also where the run resumes from a state, whatever the interval."""

    disable_sampling: bool = False
    """Draw no samples at all."""

    on_resume: ClassVar = {
        **dict.fromkeys(("skip_first_sample", "force_first_sample", "disable_sampling", "ddp_timeout"), "harmless"),
        "steps": _change_of_length,
        "epochs": _change_of_length,
        "step_limit": _change_of_length,
    }
    foreign: ClassVar = "optimization"

    def check(self, job: JobContext) -> Findings:
        """Keys that exclude each other."""
        yield from self.check_optimizer()
        if is_schedule_free(self.optimizer) and self.ema_config.use_ema:
            message = f"optimizer '{self.optimizer}' already averages the weights. Remove one of them."
            yield error("ema_config.use_ema", message)
        if self.force_first_sample and self.disable_sampling:
            message = "'force_first_sample: true' and 'disable_sampling: true' contradict each other. Remove one."
            yield error("force_first_sample", message)


class TrainConfig(OptimizationConfig):
    """`train`: length, optimizer, loss and precision of the training of a diffusion model."""

    train_unet: Annotated[bool, AfterValidator(_trained)] = True
    """Train the transformer's adapter; must be true."""

    train_text_encoder: Annotated[bool, AfterValidator(_not_trained)] = False
    """Must be false: the text encoder is frozen."""

    noise_scheduler: Annotated[Literal["flowmatch"], OneOf()] = "flowmatch"
    """Noise process; Qwen-Image knows flow matching only."""

    timestep_type: Annotated[
        str, OneOf(*TIMESTEP_TYPES, spellings={"qwen_shift": "model_shift", "qinglong_qwen": "qinglong_model"})
    ] = "sigmoid"
    """How noise levels are drawn. uniform, linear: all alike; weighted: so, with weighted loss; sigmoid: the middle
    most; shift: the same, moved by `discrete_flow_shift` (without it: the levels of a sampling run at the image's
    size); qwen_shift (= model_shift): moved as the model's own sampling is at the image's size; flux_shift: by Flux's
    rule; logsnr: by signal-to-noise ratio; lognorm_blend: around 0.65; sigma: by `weighting_scheme`;
    qinglong_flux, qinglong_qwen (= qinglong_model): mostly flux_shift or qwen_shift, some with little noise."""

    sigmoid_scale: float = Field(default=1.0, gt=0)
    """Width of sigmoid, shift, qwen_shift and flux_shift: above 1 the ends more often, below 1 the middle."""

    discrete_flow_shift: float | None = Field(default=None, ge=0, le=1000)
    """Of timestep_type shift: above 1 more noise, below 1 less. 0 is an error: there would be no noise at all."""

    weighting_scheme: Annotated[str, OneOf(*WEIGHTING_SCHEMES)] = "none"
    """Loss weight by noise level t: sigma_sqrt 1/t^2, cosmap 2/(pi(1-2t+2t^2)), bell that of `linear_timesteps`.
    logit_normal and mode weigh nothing but decide what timestep_type sigma draws."""

    logit_mean: float = 0.0
    """Centre of logsnr and of weighting_scheme logit_normal; above 0 less noise, 0 the middle, below 0 more noise."""

    logit_std: float = Field(default=1.0, gt=0)
    """Width of the same. 0 is an error: a single noise level."""

    mode_scale: float = Field(default=1.29, ge=-1, le=1.75)
    """Of weighting_scheme mode: above 0 the middle levels more often, below 0 the ends. 0: all alike."""

    min_timestep: float = Field(default=0.0, ge=0, lt=1000)
    """Least noise, in thousandths: noise levels of any `timestep_type` are squeezed between this and max_timestep. 0:
    no bound."""

    max_timestep: float = Field(default=1000.0, gt=0, le=1000)
    """Most noise, in thousandths; 1000: no bound. 0 is an error."""

    preserve_distribution_shape: bool = False
    """Cut the distribution of noise levels off at min_timestep and max_timestep instead of squeezing it between."""

    num_timestep_buckets: int = Field(default=0, ge=0, le=1_000_000)
    """Equal parts of the distribution of noise levels; in each epoch every part is drawn from equally often. 0: off."""

    noise_levels_per_sample: Annotated[NoiseLevels, BeforeValidator(_level_counts)] = 1
    """Noise levels of each image that share one pass over its text and references, each from its own equal part of the
    distribution; their loss is the mean. Cheaper than as many images, less varied. 0 is an error. A list: by the number
    of references, the last for more. `auto`: 4 where text and references are at least as long as the image, else 1.
    Only models whose references do not see the image can do it (Qwen-Image-2.1)."""

    content_or_style: Annotated[Literal["balanced", "content", "style"], OneOf()] = "balanced"
    """Noise levels preferred beyond `timestep_type`: content high ones, style low ones (u^3 for a uniform u)."""

    linear_timesteps: bool = False
    """Draw all noise levels alike, whatever `timestep_type`, and weigh the loss by a bell around the middle; 0 at pure
    noise. With timestep_type weighted: no effect, its weights count."""

    linear_timesteps2: bool = False
    """The same, but below the middle with the weight of the bell's top. It goes before linear_timesteps."""

    loss_type: Annotated[str, OneOf(*LOSS_TYPES, spellings={"l2": "mse", "l1": "mae"})] = "mse"
    """Loss between predicted and true velocity, in float32: mean of d^2, of |d|, or d^2 that goes over into |d|."""

    huber_schedule: Annotated[str, OneOf(*HUBER_SCHEDULES)] = "constant"
    """Where huber goes over, by noise level t: c; c^t; (1 - c)(1 - t)^2 + c; each times `huber_scale`."""

    huber_c: float = Field(default=0.1, ge=1e-6, le=1)
    """c of huber: differences far below it count squared, far above it as they are. 0 is an error: no loss at all."""

    huber_scale: float = Field(default=1.0, ge=1e-6, le=1e6)
    """Factor of huber's c. 0 is an error."""

    diff_output_preservation: bool = False
    """Hold what the base model predicts for each caption with `diff_output_preservation_class` in the place of the
    trigger word: the mean squared difference to the prediction without the adapter is added to the loss. Keeps what was
    trained from spreading over the whole class. Each step takes about twice as long."""

    diff_output_preservation_multiplier: float = Field(default=1.0, ge=0, le=1e6)
    """Factor of that loss. 0: it is not computed."""

    diff_output_preservation_class: str = ""
    """What the trigger word is an example of, such as 'woman'. Empty: the trigger word is left out."""

    blank_prompt_preservation: bool = False
    """The same with an empty prompt: holds what the model draws unasked. Each step takes about twice as long."""

    blank_prompt_preservation_multiplier: float = Field(default=1.0, ge=0, le=1e6)
    """Factor of that loss. 0: it is not computed."""

    full_bf16: bool = False
    """Of network.type full, with `dtype: bf16`: the trained weights and their gradients are bf16 too, which halves
    their memory. Each update is computed in float32 and rounded stochastically, so that small ones are not lost."""

    fused_backward_pass: bool = False
    """Step each parameter within the last backward pass of a step and drop its gradient at once: less memory, and
    exactly the same weights without clipping. `max_grad_norm` then limits the gradient of each parameter by itself."""

    gradient_checkpointing: Checkpointing = "auto"
    """What is recomputed in the backward pass instead of being kept: less memory, slower, and the same gradients (on a
    CPU bit for bit; on a GPU attention's backward pass adds up in another order each time). none (= false): nothing.
    cheap: all but matrix products and attention. keep_attention: all but attention. full (= true): everything.
    full_offload: everything, and what is left waits in the CPU memory. auto: the fastest that fits into the free
    memory, tried with the largest batch."""

    compile: CompileConfig = Field(default_factory=CompileConfig)
    """torch.compile of the transformer's blocks."""

    parallel: Annotated[Literal["ddp", "fsdp"], OneOf()] = "ddp"
    """With several processes (torchrun): ddp keeps the whole model in each; fsdp keeps a share of it in each and
    gathers block by block, for GPUs that do not hold it; with 'network.type: full' a share of the gradients, the
    optimizer's state and the averages too. With one process: no effect."""

    group_by_length: bool = False
    """Put captions of about one length into a micro-batch, as far as the epoch's order allows. The model takes one pass
    for each length in it: worth it where `batch_size` is large and the images are many."""

    cache_text_embeddings: bool | None = None
    """`cache_text_embeddings` of all datasets that do not give their own."""

    on_resume: ClassVar = {
        **dict.fromkeys(("cache_text_embeddings", "gradient_checkpointing", "compile", "parallel"), "harmless"),
        "full_bf16": "impossible",
    }
    foreign: ClassVar = "train"

    def preservations(self) -> dict[str, float]:
        """The losses of prior preservation that are computed -> their factors."""
        factors = {name: getattr(self, f"{name}_multiplier") for name in PRESERVATIONS if getattr(self, name)}
        return {name: factor for name, factor in factors.items() if factor}

    def preserved_prompts(self, caption: str, trigger: str) -> dict[str, str]:
        """The prompts of these losses for one caption. trigger: the word that the class is put for; empty: none."""
        of_class = caption.replace(trigger, self.diff_output_preservation_class) if trigger else caption
        prompts = {"diff_output_preservation": of_class, "blank_prompt_preservation": ""}
        return {name: prompts[name] for name in self.preservations()}

    def checkpointing_level(self) -> str:
        """`gradient_checkpointing` as a level, or "auto"."""
        given = self.gradient_checkpointing
        return given if isinstance(given, str) else "full" if given else "none"

    def noise_levels(self) -> str:
        """The `timestep_type` by which noise levels are drawn: linear where a bell weighs the loss."""
        bell = self.linear_timesteps or self.linear_timesteps2
        return "linear" if bell and self.timestep_type != "weighted" else self.timestep_type

    def check(self, job: JobContext) -> Findings:
        """Keys that the other values of the section leave unused."""
        yield from super().check(job)
        kind, scheme, uses = self.noise_levels(), self.weighting_scheme, TIMESTEP_TYPES[self.noise_levels()]
        if not ("sigmoid_scale" in uses or (kind == "shift" and self.discrete_flow_shift)):
            reason = ": only timestep_type sigmoid, shift, qwen_shift, flux_shift and qinglong use it."
            yield from self.unused("sigmoid_scale", reason)
        if "discrete_flow_shift" not in uses:
            yield from self.unused("discrete_flow_shift", ": only timestep_type shift uses it.")
        if not ("logit_mean" in uses or (kind == "sigma" and scheme == "logit_normal")):
            reason = ": only timestep_type logsnr, qinglong_flux, and sigma with weighting_scheme logit_normal use it."
            yield from self.unused("logit_mean logit_std", reason)
        if not (kind == "sigma" and scheme == "mode"):
            yield from self.unused("mode_scale", ": only timestep_type sigma with weighting_scheme mode uses it.")
        if kind != "sigma" and scheme != WEIGHTING_SCHEMES[scheme]:
            yield from self.unused("weighting_scheme", f": {scheme} only applies to timestep_type sigma.")
        if self.min_timestep == 0 and self.max_timestep == 1000:
            yield from self.unused("preserve_distribution_shape", " unless min_timestep or max_timestep is set.")
        if self.loss_type != "huber":
            yield from self.unused("huber_schedule huber_c huber_scale", ": only loss_type huber uses it.")
        for switch in PRESERVATIONS:
            keys = [key for key in (f"{switch}_multiplier", f"{switch}_class") if key in type(self).model_fields]
            if not getattr(self, switch):
                yield from self.unused(" ".join(keys), f" without '{switch}: true'.")
            elif getattr(self, f"{switch}_multiplier") == 0:
                yield warning(f"{switch}_multiplier", f"0 switches '{switch}' off.")
        if self.timestep_type == "weighted":
            yield from self.unused(
                "linear_timesteps linear_timesteps2", ": timestep_type weighted has its own loss weights."
            )
        elif self.linear_timesteps or self.linear_timesteps2:
            bell = "linear_timesteps2" if self.linear_timesteps2 else "linear_timesteps"
            if "timestep_type" in self.model_fields_set and self.timestep_type != "linear":
                yield warning("timestep_type", f"has no effect: '{bell}: true' samples all noise levels uniformly.")
            if self.linear_timesteps and self.linear_timesteps2:
                yield warning("linear_timesteps", "has no effect: 'linear_timesteps2: true' takes precedence.")
