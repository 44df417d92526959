"""`network`: the adapter that is trained."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from toolkit.config.base import StrictModel
from toolkit.config.field_types import OneOf, PathStr, StrOrList, as_list, schema_of_list, value_error
from toolkit.config.findings import Findings, JobContext, check_path
from toolkit.errors import UserError
from toolkit.networks.kinds import KINDS

IN_LYCORIS = tuple(name for name, kind in KINDS.items() if kind.in_lycoris)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise value_error(f"{text!r} is not a valid regular expression: {error}.") from error
    return text


MATCH_SECONDS = 10.0
"""How long one pattern may take for the names of all layers; usual are milliseconds."""


class _OutOfTime(Exception):
    """Raised by the alarm within a match."""


def _ring(*_: object) -> None:
    raise _OutOfTime


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a regular expression matches whole.

    Raises UserError where it takes longer than MATCH_SECONDS: nested repetition can take longer than any run. Only the
    main thread, and not on Windows, has the alarm that ends a match.
    """
    compiled = re.compile(pattern)
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return [name for name in names if compiled.fullmatch(name)]
    earlier = signal.signal(signal.SIGALRM, _ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, MATCH_SECONDS)
        try:
            return [name for name in names if compiled.fullmatch(name)]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _OutOfTime:
        raise UserError(
            f"the pattern {pattern!r} is not done with the names of the layers after {MATCH_SECONDS:g} s. "
            "Take out repetition within repetition, such as (a+)+."
        ) from None
    finally:
        signal.signal(signal.SIGALRM, earlier)


def _factor(value: int) -> int:
    if value == 0:
        raise value_error("0 is not a valid factor. Give -1 (balanced) or a number above 0.")
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]
"""A regular expression."""

Patterns = Annotated[tuple[Pattern, ...], BeforeValidator(as_list), schema_of_list({"type": "string"})]
"""One regular expression or a list of them."""


if TYPE_CHECKING:  # the checker knows no Literal that is computed
    Algo: TypeAlias = str
    Kind: TypeAlias = str
else:
    Algo, Kind = Literal[IN_LYCORIS], Literal[tuple(KINDS)]


class NetworkKwargs(StrictModel):
    """`network.network_kwargs`: which layers carry the adapter."""

    algo: Annotated[Algo, OneOf(*IN_LYCORIS, spellings={"locon": "lora"})] = "lora"
    """With `type: lycoris` the kind of adapter, under LyCORIS' names."""

    only_if_contains: StrOrList = ()
    """Adapt only layers whose dotted name contains one of these texts; empty: all."""

    ignore_if_contains: StrOrList = ()
    """Leave out layers whose dotted name contains one of these texts."""

    foreign: ClassVar = "network_kwargs"


class NetworkConfig(StrictModel):
    """`network`: the adapter that is trained and its size."""

    type: Annotated[Kind, OneOf(*KINDS, spellings={"lycoris": "lora", "fullrank": "full"})] = "lora"
    """Kind of adapter; `lycoris`: the one that `network_kwargs.algo` names. LoRA files load in ComfyUI and diffusers,
    the others in ComfyUI only. full: no adapter, the model itself is trained and written as a model folder; layers are
    then all its modules with weights of their own, biases and norms included."""

    linear: int = Field(default=16, ge=1, le=100_000)
    """Rank r of each adapted layer; the file grows in proportion."""

    linear_alpha: float = Field(
        default_factory=lambda given: float(given.get("linear", 16)),
        ge=0,
        le=65504,  # the largest number of float16, in which files are saved
        json_schema_extra={"default": "linear"},
    )
    """The adapter is scaled by linear_alpha / linear. 0: it has no effect (one warning). LoKr layers with a whole
    second factor are not scaled."""

    dropout: float = Field(default=0.0, ge=0, le=1)
    """Probability that an input of the adapter is zeroed during training; 0: off."""

    rank_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a rank of the adapter (LoHa, LoKr: an output) is left out for one image in training; 0: off."""

    module_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that the adapter of a layer is left out of one call in training; 0: off."""

    loraplus_lr_ratio: float = Field(default=0.0, ge=0, le=1e6)
    """LoRA+: the up matrices (B) of a LoRA or DoRA learn at this many times the rate of the others; usual are 4 to 16.
    0 or 1: at the same rate."""

    scale_weight_norms: float = Field(default=0.0, ge=0)
    """After each step the change of a layer's weight is scaled down to this Frobenius norm where it is larger; usual
    is 1. 0: off. metrics.jsonl has `max_norm/keys_scaled`, `max_norm/average_key_norm` and `max_norm/max_key_norm`."""

    factor: Annotated[int, AfterValidator(_factor)] = Field(default=-1, ge=-1)
    """LoKr: size of the first factor of inputs and of outputs (the nearest divisor not above it); -1: as near to
    the second factor as can be. Larger means fewer weights, up to the balance. 0 is an error."""

    lokr_full_rank: bool = False
    """LoKr: keep the second factor whole whatever `linear` is; without it, it is whole only where `linear` would
    save nothing."""

    include_patterns: Patterns = ()
    """Regular expressions that match whole layer names: these layers are adapted, even if an exclude pattern
    matches too. Without exclude patterns no others are; with them only layers that they leave out are brought back,
    as in musubi-tuner."""

    exclude_patterns: Patterns = ()
    """Regular expressions that match whole layer names: these layers are not adapted."""

    pretrained_lora_path: PathStr | None = None
    """A LoRA file (.safetensors) that training starts from when there is nothing to resume."""

    network_kwargs: NetworkKwargs = Field(default_factory=NetworkKwargs)
    """Which layers carry the adapter."""

    on_resume: ClassVar = {
        **dict.fromkeys(
            ("type", "linear", "factor", "lokr_full_rank", "include_patterns", "exclude_patterns", "network_kwargs"),
            "impossible",
        ),
        "pretrained_lora_path": "harmless",  # it has done its work by then
    }
    foreign: ClassVar = "network"

    def check(self, job: JobContext) -> Findings:
        """A file that is missing."""
        yield from check_path("pretrained_lora_path", self.pretrained_lora_path, "Give a LoRA file.", job, file=True)

    @property
    def trains_model(self) -> bool:
        """Whether the model's own weights are trained instead of an adapter's."""
        return KINDS[self.type].trains_model

    def size(self) -> str:
        """What decides the size and the strength of the adapter on a layer, in words; nothing without one."""
        if self.trains_model:
            return "model"
        given = "" if "linear_alpha" in self.model_fields_set else " (not given: the rank)"
        rank = f"rank {self.linear}, alpha {self.linear_alpha:g}{given}"
        if self.type != "lokr":
            return rank
        factor = "balanced" if self.factor == -1 else f"factor {self.factor}"
        return f"{factor}, second factor whole" if self.lokr_full_rank else f"{factor}, {rank}"
