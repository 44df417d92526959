"""`train`: length, optimizer, loss and precision of the training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from toolkit.config.base import StrictModel
from toolkit.config.choices import Dtype, mistake, one_of
from toolkit.config.ema import EmaConfig
from toolkit.config.node import Node, show
from toolkit.config.normalise import prefer
from toolkit.config.report import Report
from toolkit.config.train_names import NO_EFFECT, UNSUPPORTED

OPTIMIZERS = (
    "adamw", "adamw8bit", "adam", "adam8bit", "sgd", "adafactor", "lion8bit", "ademamix8bit", "prodigy",
    "schedulefree_adamw",
)  # fmt: skip
_OPTIMIZERS_LATER = (
    "lion sgd8bit adagrad rmsprop lamb lars ademamix prodigy8bit prodigy_schedule_free prodigyplus dadaptation "
    "dadaptadam dadaptlion automagic automagic2 automagic3 came pagedadamw pagedadamw8bit muon"
)
_OPTIMIZER_SPELLINGS = {
    "adamw_8bit": "adamw8bit",
    "adam_8bit": "adam8bit",
    "lion_8bit": "lion8bit",
    "prodigyopt": "prodigy",
    "adamw_schedule_free": "schedulefree_adamw",
    "adamwschedulefree": "schedulefree_adamw",
    "schedulefree": "schedulefree_adamw",
}

SCHEDULES = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial",
    "warmup_stable_decay", "inverse_sqrt", "rex", "step", "piecewise_constant",
)  # fmt: skip

TIMESTEP_TYPES = (
    "sigmoid", "linear", "uniform", "weighted", "sigma", "shift", "model_shift", "flux_shift", "logsnr",
    "lognorm_blend", "qinglong_flux", "qinglong_qwen",
)  # fmt: skip

_short_name, _ = one_of(*OPTIMIZERS, later=_OPTIMIZERS_LATER, spellings=_OPTIMIZER_SPELLINGS)


def _optimizer(value: Any) -> Any:
    if not isinstance(value, str) or "." not in value:
        return _short_name.func(value)
    parts = value.strip().split(".")
    if not all(part.isidentifier() for part in parts):
        raise mistake(f"{value!r} is no dotted path. Write a class such as 'torch.optim.SGD'.")
    return ".".join(parts)


def _trained(value: bool) -> bool:
    if not value:
        raise mistake("false leaves nothing to train: the text encoder is never trained. Write true.")
    return value


def _not_trained(value: bool) -> bool:
    if value:
        raise mistake(
            "true is not possible: Qwen-Image's text encoder is a frozen vision-language model whose "
            "embeddings are computed once. Write false."
        )
    return value


def _steps_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise mistake(f"{value} is neither a number of steps nor a share below 1.")
    return value


def _checkpointing(value: Any) -> Any:
    if isinstance(value, bool) or value == "auto":
        return value
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise mistake(f"{value!r} is not one of true, false or 'auto'.")


class TrainConfig(StrictModel):
    """`train`: length, optimizer, loss and precision of the training."""

    batch_size: int = Field(default=1, ge=1)
    """Images per micro-batch; all of one bucket."""

    gradient_accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step; the gradient is the mean over all their images."""

    steps: int = Field(default=1000, ge=0)
    """Optimizer steps. 0 only together with `epochs`."""

    epochs: int = Field(default=0, ge=0)
    """Passes over the repeat-weighted images; above 0 it decides instead of `steps`. 0: `steps` decides."""

    train_unet: Annotated[bool, AfterValidator(_trained)] = True
    """Train the transformer's adapter; must be true."""

    train_text_encoder: Annotated[bool, AfterValidator(_not_trained)] = False
    """Must be false: the text encoder stays as it is."""

    optimizer: Annotated[
        str,
        BeforeValidator(_optimizer),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "enum": [*OPTIMIZERS, *_OPTIMIZER_SPELLINGS]},
                    {"type": "string", "pattern": r"\."},
                    {"type": "object"},
                ]
            }
        ),
    ] = "adamw"
    """Optimizer, or the dotted path of a class such as `torch.optim.SGD`. The 8-bit ones keep their state in one byte
    per weight (bitsandbytes); prodigy finds the rate itself (give `lr: 1`); schedulefree_adamw averages the weights
    and wants no `lr_scheduler`."""

    lr: float = Field(default=1e-4, ge=0)
    """Highest learning rate. 0: nothing is learned (one warning)."""

    optimizer_params: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimizer by name, such as weight_decay or betas; texts such as "0.9,0.999" are read."""

    lr_scheduler: Annotated[
        Literal[SCHEDULES],
        *one_of(*SCHEDULES, later="adafactor"),
    ] = "constant"
    """Course of the learning rate after the warm-up. linear, cosine, polynomial and rex fall to their end; with
    restarts several times; warmup_stable_decay only in the last `lr_decay_steps`."""

    lr_scheduler_params: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the schedule by name: `num_warmup_steps`; `factor` (constant); `start_factor`, `end_factor`
    (linear); `T_0` (cosine_with_restarts); `step_size`, `gamma` (step); `step_rules` (piecewise_constant); `rex_alpha`,
    `rex_beta` (rex); `eta_min`, `min_lr` or `lr_end`, the end as a rate, for those that fall."""

    lr_warmup_steps: Annotated[float, AfterValidator(_steps_or_share)] = Field(default=0, ge=0)
    """Optimizer steps in which the learning rate rises from 0; below 1: that share of all steps. 0: none."""

    lr_decay_steps: Annotated[float, AfterValidator(_steps_or_share)] = Field(default=0, ge=0)
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

    noise_scheduler: Annotated[
        Literal["flowmatch"],
        *one_of(
            "flowmatch",
            later="ddpm ddim euler euler_a lms pndm dpm dpmsolver++ custom_lcm lcm",
            refusal="cannot train Qwen-Image",
        ),
    ] = "flowmatch"
    """Noise process; Qwen-Image knows flow matching only."""

    timestep_type: Annotated[
        Literal[TIMESTEP_TYPES],
        *one_of(
            *TIMESTEP_TYPES,
            spellings={"qwen_shift": "model_shift"},
            later=(
                "next_sample one_step two_step four_step eight_step gaussian content style "
                "logit_normal mode lumina2_shift flux2_shift krea2_shift ideogram4_shift"
            ),
        ),
    ] = "sigmoid"
    """How noise levels are drawn. uniform, linear: all alike; weighted: so, with weighted loss; sigmoid: the middle
    most; shift: the same, moved by `discrete_flow_shift` (without it: the levels of a sampling run at the image's
    size); qwen_shift (= model_shift): moved as the model's own sampling is at the image's size; flux_shift: by Flux's
    rule; logsnr: by signal-to-noise ratio; lognorm_blend: around 0.65; sigma: by `weighting_scheme`;
    qinglong_flux, qinglong_qwen: mostly flux_shift or qwen_shift, a tenth or a twentieth with little noise."""

    sigmoid_scale: float = Field(default=1.0, gt=0)
    """Width of sigmoid, shift, qwen_shift and flux_shift: above 1 the ends more often, below 1 the middle."""

    discrete_flow_shift: float | None = Field(default=None, ge=0)
    """Of timestep_type shift: above 1 more noise, below 1 less. 0 is an error: there would be no noise at all."""

    weighting_scheme: Annotated[
        Literal["none", "sigma_sqrt", "logit_normal", "mode", "cosmap"],
        *one_of("none", "sigma_sqrt", "logit_normal", "mode", "cosmap"),
    ] = "none"
    """Loss weight by noise level t: sigma_sqrt 1/t^2, cosmap 2/(pi(1-2t+2t^2)). logit_normal and mode weigh nothing but
    decide what timestep_type sigma draws."""

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

    num_timestep_buckets: int = Field(default=0, ge=0)
    """Equal parts of the distribution of noise levels; in each epoch every part is drawn from equally often. 0: off."""

    content_or_style: Annotated[
        Literal["balanced", "content", "style"],
        *one_of("balanced", "content", "style", later="gaussian fixed_cycle"),
    ] = "balanced"
    """Noise levels preferred beyond `timestep_type`: content high ones, style low ones (u^3 for a uniform u)."""

    linear_timesteps: bool = False
    """Weigh the loss by a bell around the middle noise levels; 0 at pure noise."""

    linear_timesteps2: bool = False
    """The same above the middle, and the bell's top below it."""

    loss_type: Annotated[
        Literal["mse", "mae", "huber"],
        *one_of(
            "mse",
            "mae",
            "huber",
            spellings={"l2": "mse", "l1": "mae"},
            later="wavelet stepped pseudo_huber smooth_l1 mean_flow pixelspace",
        ),
    ] = "mse"
    """Loss between predicted and true velocity, in float32: mean of d^2, of |d|, or d^2 that goes over into |d|."""

    huber_schedule: Annotated[Literal["constant", "exponential", "snr"], *one_of("constant", "exponential", "snr")] = (
        "constant"
    )
    """Where huber goes over, by noise level t: c; c^t; (1 - c)(1 - t)^2 + c; each times `huber_scale`."""

    huber_c: float = Field(default=0.1, gt=0, le=1)
    """c of huber: differences far below it count squared, far above it as they are. 0 is an error: no loss at all."""

    huber_scale: float = Field(default=1.0, gt=0)
    """Factor of huber's c. 0 is an error."""

    ema_config: EmaConfig = Field(default_factory=EmaConfig)
    """Running average of the trained weights."""

    dtype: Dtype = "bfloat16"
    """Number type of the computation; the LoRA's own weights are float32."""

    gradient_checkpointing: Annotated[
        bool | Literal["auto"],
        BeforeValidator(_checkpointing),
        WithJsonSchema({"enum": [True, False, "auto"]}),
    ] = True
    """Compute activations a second time instead of keeping them: less memory, slower. auto: by free memory."""

    cache_text_embeddings: bool | None = None
    """`cache_text_embeddings` of all datasets that do not give their own."""

    skip_first_sample: bool = False
    """Draw no samples before step 1."""

    disable_sampling: bool = False
    """Draw no samples at all."""

    aliases: ClassVar = {
        "gradient_accumulation_steps": "gradient_accumulation",
        "max_train_steps": "steps",
        "max_train_epochs": "epochs",
        "learning_rate": "lr",
        "optimizer_type": "optimizer",
        "timestep_sampling": "timestep_type",
    }
    shapes: ClassVar = {
        "seed": "training_seed of the process",
        "optimizer_args": "optimizer_params, as a list of texts `name=value`",
        "lr_scheduler_args": "lr_scheduler_params, as a list of texts `name=value`",
    }
    no_effect: ClassVar = NO_EFFECT
    unsupported: ClassVar = UNSUPPORTED

    @classmethod
    def reshape(cls, entries: dict[str, Node], report: Report) -> dict[str, Node]:
        """`optimizer: {name, lr, ...}` becomes `optimizer`, `lr` and `optimizer_params`; `..._args` likewise."""
        for key in ("optimizer", "lr_scheduler"):
            if f"{key}_args" in entries:
                arguments = _pairs(entries.pop(f"{key}_args"), report)
                entries[f"{key}_params"] = _merged(entries.get(f"{key}_params"), arguments, report)
        optimizer = entries.get("optimizer")
        if optimizer is None or not isinstance(optimizer.value, dict):
            return entries
        parts = dict(entries.pop("optimizer").value)
        kinds = [parts.pop(key) for key in ("name", "type") if key in parts]
        for field, node in [("optimizer", kinds[0] if kinds else None), ("lr", parts.pop("lr", None))]:
            if node is not None:
                entries[field] = prefer(entries.get(field), node, report)
        if parts:
            given = entries.get("optimizer_params")
            extra = given.value if given is not None and isinstance(given.value, dict) else {}
            entries["optimizer_params"] = replace(given or optimizer, value={**parts, **extra})
        return entries

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """Keys given with another value than their default that the rest of the section makes no use of, and why."""
        kind, scheme = self.timestep_type, self.weighting_scheme
        scaled = kind in ("sigmoid", "model_shift", "flux_shift", "qinglong_flux", "qinglong_qwen") or (
            kind == "shift" and self.discrete_flow_shift
        )
        normal = kind in ("logsnr", "qinglong_flux") or (kind == "sigma" and scheme == "logit_normal")
        uses = {
            "sigmoid_scale": (scaled, "timestep_type sigmoid, shift, qwen_shift, flux_shift or qinglong"),
            "discrete_flow_shift": (kind == "shift", "timestep_type shift"),
            "logit_mean": (normal, "timestep_type logsnr, qinglong_flux, or sigma with logit_normal"),
            "logit_std": (normal, "timestep_type logsnr, qinglong_flux, or sigma with logit_normal"),
            "mode_scale": (kind == "sigma" and scheme == "mode", "timestep_type sigma with weighting_scheme mode"),
            "weighting_scheme": (kind == "sigma" or scheme not in ("logit_normal", "mode"), "timestep_type sigma"),
            "preserve_distribution_shape": (self.min_timestep > 0 or self.max_timestep < 1000, "min_ and max_timestep"),
            **dict.fromkeys(_HUBER, (self.loss_type == "huber", "loss_type huber")),
        }
        for key, (used, needed) in uses.items():
            if not used and getattr(self, key) != type(self).model_fields[key].default:
                yield key, f"has no effect: it belongs to {needed}."


_HUBER = ("huber_schedule", "huber_c", "huber_scale")


def _pairs(node: Node, report: Report) -> Node:
    """`["a=1", "b=2"]`, or the same in one text, as a mapping."""
    if isinstance(node.value, dict):
        return node
    items = node.value if isinstance(node.value, list) else [replace(node, value=t) for t in str(node.value).split()]
    pairs = {}
    for item in items:
        key, equals, value = str(item.value).partition("=")
        if not equals:
            report.mistake(item, f"{show(item)} is not of the form name=value.")
            continue
        pairs[key.strip()] = replace(item, value=_number(value.strip()), text=value.strip())
    return replace(node, value=pairs)


def _number(text: str) -> int | float | str:
    """A number where the text spells one, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _merged(given: Node | None, more: Node, report: Report) -> Node:
    if given is None or not isinstance(given.value, dict):
        return given or more
    merged = {key: prefer(given.value.get(key), child, report) for key, child in more.value.items()}
    return replace(given, value={**given.value, **merged})
