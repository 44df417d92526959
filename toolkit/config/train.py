"""`train`: length, optimizer, loss and precision of the training."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from toolkit.config.base import StrictModel
from toolkit.config.choices import Dtype, mistake, one_of
from toolkit.config.ema import EmaConfig
from toolkit.config.node import Node
from toolkit.config.normalise import prefer
from toolkit.config.report import Report
from toolkit.config.train_names import NO_EFFECT, UNSUPPORTED

_OPTIMIZERS = ("adamw", "adamw8bit", "adam", "adafactor", "lion8bit")
_OPTIMIZERS_LATER = (
    "adam8bit lion sgd sgd8bit adagrad rmsprop lamb lars ademamix ademamix8bit prodigy prodigyopt prodigy8bit "
    "prodigy_schedule_free prodigyplus dadaptation dadaptadam dadaptlion automagic automagic2 automagic3 came "
    "adamw_schedule_free adamwschedulefree schedulefree pagedadamw pagedadamw8bit muon"
)


def _optimizer(value: Any) -> Any:
    if isinstance(value, str) and "." in value:
        raise mistake(f"{value!r}: an optimizer by its dotted path is not supported yet. Use 'adamw8bit'.")
    return value


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
        Literal["adamw", "adamw8bit", "adam", "adafactor", "lion8bit"],
        *one_of(*_OPTIMIZERS, later=_OPTIMIZERS_LATER),
        BeforeValidator(_optimizer),
        WithJsonSchema({"anyOf": [{"type": "string", "enum": list(_OPTIMIZERS)}, {"type": "object"}]}),
    ] = "adamw"
    """Optimizer; the 8-bit ones keep their state in one byte per weight (bitsandbytes)."""

    lr: float = Field(default=1e-4, ge=0)
    """Highest learning rate. 0: nothing is learned (one warning)."""

    optimizer_params: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimizer by name, such as weight_decay or betas."""

    lr_scheduler: Annotated[
        Literal["constant", "linear", "cosine"],
        *one_of(
            "constant",
            "linear",
            "cosine",
            later=(
                "constant_with_warmup cosine_with_restarts cosine_with_min_lr polynomial step inverse_sqrt rex "
                "piecewise_constant warmup_stable_decay adafactor"
            ),
        ),
    ] = "constant"
    """Course of the learning rate after the warm-up: stays, falls to 0 in a line, or along a cosine."""

    lr_scheduler_params: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the schedule by name."""

    lr_warmup_steps: Annotated[float, AfterValidator(_steps_or_share)] = Field(default=0, ge=0)
    """Optimizer steps in which the learning rate rises from 0; below 1: that share of all steps. 0: none."""

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
        Literal["sigmoid", "linear", "uniform", "weighted"],
        *one_of(
            "sigmoid",
            "linear",
            "uniform",
            "weighted",
            later=(
                "shift lognorm_blend next_sample one_step gaussian content style sigma logsnr flux_shift "
                "qwen_shift qinglong_flux qinglong_qwen logit_normal mode"
            ),
        ),
    ] = "sigmoid"
    """How noise levels are drawn: sigmoid of a normal, an even ladder, even, or even with weighted loss."""

    content_or_style: Annotated[
        Literal["balanced"], *one_of("balanced", later="content style gaussian fixed_cycle")
    ] = "balanced"
    """Which noise levels are preferred beyond `timestep_type`: none."""

    loss_type: Annotated[
        Literal["mse"],
        *one_of(
            "mse",
            later="mae l1 wavelet stepped pseudo_huber huber smooth_l1 mean_flow pixelspace",
        ),
    ] = "mse"
    """Loss between predicted and true velocity: the mean squared error, in float32."""

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
    shapes: ClassVar = {"seed": "training_seed of the process"}
    no_effect: ClassVar = NO_EFFECT
    unsupported: ClassVar = UNSUPPORTED

    @classmethod
    def reshape(cls, entries: dict[str, Node], report: Report) -> dict[str, Node]:
        """`optimizer: {name, lr, ...}` becomes `optimizer`, `lr` and `optimizer_params`."""
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
